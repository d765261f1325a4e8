"""`atoll adapters`: list, get, add, remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import arguments, drain
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, size
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_one, show_plain
from atoll.cli.session import session, verb
from atoll.cli.verbs import Noun
from atoll.model import limits

if TYPE_CHECKING:
    from atoll.client import AdapterView

app = typer.Typer(
    cls=Noun, name="adapters", help="LoRAs that change what models make: declare them, see where they are.", no_args_is_help=True
)

AdapterArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help="Name of an adapter, with or without 'adapter/'.")]


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    root.add_typer(app)


def adapter_id(text: str) -> str:
    """The name in "adapter/NAME" or "NAME"."""
    return text.removeprefix("adapter/")


def _some(sites: Sequence[str]) -> str:
    return ", ".join(sites[:3]) + (", ..." if len(sites) > 3 else "") or NONE


ADAPTERS: Listing[AdapterView] = Listing(
    kind="adapter",
    ref=lambda view: view.spec.adapter_id,
    columns=(
        Column(title="ADAPTER", cell=lambda view: view.spec.adapter_id),
        Column(title="FITS", cell=lambda view: view.spec.fits_text),
        Column(title="RUNS", cell=lambda view: "really" if view.spec.servable else "simulated"),
        Column(title="RANK", cell=lambda view: str(view.spec.rank), right=True),
        Column(title="WEIGHTS", cell=lambda view: size(view.spec.weights_bytes), right=True),
        Column(title="LOADED AT", cell=lambda view: _some(view.loaded_sites)),
        Column(title="REPLICAS", cell=lambda view: str(view.loaded_replicas), right=True),
        Column(title="ON DISK AT", cell=lambda view: _some(view.disk_sites)),
        Column(title="TITLE", cell=lambda view: view.spec.title, wide=True),
        Column(title="FILE", cell=lambda view: view.spec.origin_path, wide=True),
        Column(title="SOURCE", cell=lambda view: view.spec.source, wide=True),
    ),
)


@verb(
    app,
    "list",
    epilog="""
    atoll adapters list
    atoll adapters list --model tiny-image -o name
    """,
)
def list_adapters(
    *, model: Annotated[str, typer.Option("--model", metavar="MODEL", show_default=False, help="Only those that fit this model.")] = ""
) -> None:
    """List adapters. 'simulated' ones are known by their figures only: jobs that use them need --simulated."""
    form = session().form
    with session().client() as client:
        found = list(client.adapters_list())
        if model:
            spec = client.models_get(model.removeprefix("model/")).spec
            found = [view for view in found if view.spec.fits(spec)]
    show_list(form, ADAPTERS, found, empty="no adapters")


@verb(
    app,
    "get",
    epilog="""
    atoll adapters get tiny-ink -o yaml
    """,
)
def get(*, adapter: AdapterArgument) -> None:
    """Show an adapter and where it is."""
    form = session().form
    with session().client() as client:
        show_one(form, ADAPTERS, client.adapters_get(adapter_id(adapter)))


@verb(
    app,
    "add",
    epilog="""
    atoll adapters add ~/.local/share/atoll/origin/adapters/tiny-ink.safetensors
    atoll adapters add ./sketch.safetensors --model my-pipeline --origin s3://weights/atoll
    atoll adapters add --figures noir --family FLUX.1 --rank 32 --weights 75MB
    """,
)
def add(
    *,
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE...]", help="LoRAs as safetensors files.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="MODEL", help="A model that they fit; may be repeated.")] = None,
    family: Annotated[str, typer.Option("--family", show_default=False, help="A family of models, all of which they fit.")] = "",
    title: Annotated[str, typer.Option("--title", show_default=False, help="What people call it.")] = "",
    origin: Annotated[
        str, typer.Option("--origin", metavar="URL", show_default=False, help="Copy the files to the origin store first.")
    ] = "",
    figures: Annotated[
        str, typer.Option("--figures", metavar="NAME", show_default=False, help="No file: an adapter for rehearsals, by its figures.")
    ] = "",
    rank: Annotated[str | None, typer.Option("--rank", metavar="N", help="With --figures: its rank.")] = None,
    weights: Annotated[str, typer.Option("--weights", metavar="SIZE", show_default=False, help="With --figures: its size.")] = "",
) -> None:
    """Declare adapters under the names of their files, or one by its figures. Files are read as data only: safetensors, no code.

    Without --origin they are expected below the origin store as adapters/FILE already.
    """
    from atoll.cli.adapterfile import figures_only, put_in_origin, read_spec

    if bool(files) is bool(figures):
        raise CliError("expected files, or --figures with a name", code=Exit.USAGE)
    if not figures and (rank is not None or weights):
        raise CliError("--rank and --weights are read from the file: expected them with --figures only", code=Exit.USAGE)
    form, models = session().form, arguments.names(model)
    if figures:
        specs = [
            figures_only(
                figures,
                models,
                family,
                title,
                rank=arguments.whole("--rank", rank, 1, limits.ADAPTER_RANK_MAX, default=16),
                weights_bytes=arguments.size_bytes("--weights", weights or "100MB"),
            )
        ]
    else:
        specs = [read_spec(file, models, family, title) for file in files or ()]
    with session().client() as client:
        for file, spec in zip(files or (), specs, strict=False):
            if origin:
                note(f"{spec.adapter_id}: its file is at {put_in_origin(file, spec, origin)}")
        changed = client.adapters_add(specs)
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, [plain(spec) for spec in specs])
        return
    for spec in specs:
        done = "added" if spec.adapter_id in changed else "unchanged"
        what = f" {done}, rank {spec.rank}, {size(spec.weights_bytes)}, fits {spec.fits_text}"
        say(f"adapter/{spec.adapter_id}{'' if form is Form.NAME else what}")


@verb(
    app,
    "remove",
    epilog="""
    atoll adapters remove sketch --reason "superseded"
    """,
)
def remove(
    *,
    adapter: AdapterArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit. Required.")] = "",
) -> None:
    """Forget an adapter; jobs that wait for it fail. Its file stays in the origin store."""
    drain.demand_reason(reason)
    with session().client() as client:
        removed = client.adapters_remove(adapter_id(adapter), reason=reason)
    say(f"adapter/{removed}" if session().form is Form.NAME else f"adapter/{removed} removed")
