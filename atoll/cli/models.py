"""`atoll models`: list, get, add, remove, build-starters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import arguments, drain, places
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, size
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_one, show_plain
from atoll.cli.session import examples, session, verb
from atoll.cli.verbs import Noun, Verb
from atoll.model import limits
from atoll.model.errors import quoted
from atoll.model.modelspec import ModelSpec

if TYPE_CHECKING:
    from atoll.client import Client, ModelView

app = typer.Typer(cls=Noun, name="models", help="What can be made: declare models, see where they are warm.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, with or without 'model/'.")]


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    root.add_typer(app)


def model_id(text: str) -> str:
    """The name in "model/NAME" or "NAME"."""
    return text.removeprefix("model/")


MODELS: Listing[ModelView] = Listing(
    kind="model",
    ref=lambda view: view.spec.model_id,
    columns=(
        Column(title="MODEL", cell=lambda view: view.spec.model_id),
        Column(title="MAKES", cell=lambda view: view.spec.modality.value),
        Column(title="RUNS", cell=lambda view: "really" if view.spec.servable else "simulated"),
        Column(title="WEIGHTS", cell=lambda view: size(view.spec.weights_bytes), right=True),
        Column(title="RESIDENT", cell=lambda view: size(view.spec.resident_bytes), right=True),
        Column(title="SHAPE", cell=lambda view: str(view.spec.default_shape)),
        Column(title="WARM AT", cell=lambda view: ", ".join(view.warm_sites[:3]) + (", ..." if len(view.warm_sites) > 3 else "") or NONE),
        Column(title="REPLICAS", cell=lambda view: str(view.warm_replicas), right=True),
        Column(title="QUEUED", cell=lambda view: str(view.jobs_queued), right=True),
        Column(title="FAMILY", cell=lambda view: view.spec.family, wide=True),
        Column(title="PRECISION", cell=lambda view: view.spec.precision.value, wide=True),
        Column(title="STACK", cell=lambda view: "compile" if view.spec.compiled else "eager", wide=True),
        Column(title="CLASS", cell=lambda view: view.spec.pipeline_class, wide=True),
        Column(title="TITLE", cell=lambda view: view.spec.title, wide=True),
        Column(title="SOURCE", cell=lambda view: view.spec.source, wide=True),
    ),
)


@verb(
    app,
    "list",
    epilog="""
    atoll models list
    atoll models list --real  # those whose weights are there
    """,
)
def list_models(
    *,
    real: Annotated[bool, typer.Option("--real", help="Only models whose weights are in the origin store.")] = False,
    family: Annotated[str, typer.Option("--family", show_default=False, help="Only of this family.")] = "",
) -> None:
    """List models. 'simulated' ones are known by their figures only: jobs for them need --simulated."""
    form = session().form
    with session().client() as client:
        found = declared = [view for view in client.models_list() if view.spec.servable or not real]
    if family:
        found = [view for view in found if view.spec.family == family]
    other = f"no models of family {quoted(family)}{arguments.meant(family, {view.spec.family for view in declared})}"
    show_list(form, MODELS, found, empty=other if family and declared else "no models")


@verb(
    app,
    "get",
    epilog="""
    atoll models get tiny-image -o yaml
    """,
)
def get(*, model: ModelArgument) -> None:
    """Show a model and where it is warm."""
    form = session().form
    with session().client() as client:
        show_one(form, MODELS, client.models_get(model_id(model)))


@verb(
    app,
    "add",
    epilog="""
    atoll models add ~/.local/share/atoll/origin/tiny-image
    atoll models add ./my-pipeline --origin s3://weights/atoll --title "My pipeline" --size 768x768 --steps 20
    """,
)
def add(
    *,
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Folders with weights and atoll-manifest.json.")],
    origin: Annotated[
        str, typer.Option("--origin", metavar="URL", show_default=False, help="Copy the folder to the origin store first.")
    ] = "",
    title: Annotated[str, typer.Option("--title", show_default=False, help="What people call it.")] = "",
    size_: Annotated[str | None, typer.Option("--size", metavar="WxH", help="What it makes when a job names no size.")] = None,
    frames: Annotated[str | None, typer.Option("--frames", metavar="N", help="As --size, frames.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", metavar="N", help="As --size, steps.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Sites compile its denoiser: a slow first job per size, faster ones after.")
    ] = False,
) -> None:
    """Declare models from folders that diffusers wrote. Every file is checked against the manifest: safetensors only, no code."""
    from atoll.cli.modelfolder import Wishes, put_in_origin, read_spec

    width, height = arguments.size_px("--size", size_) if size_ else (0, 0)
    wishes = Wishes(
        title=title,
        width=width,
        height=height,
        frames=arguments.whole("--frames", frames, 1, limits.FRAMES_MAX),
        steps=arguments.whole("--steps", steps, 1, limits.STEPS_MAX),
        compiled=compiled,
    )
    form = session().form
    with session().client() as client:
        specs = []
        for text in folders:
            folder = Path(text).expanduser()
            spec = read_spec(folder, wishes, lambda name: _known(client, name))
            if origin:
                note(f"{spec.model_id}: its files are at {put_in_origin(folder, spec, origin)}")
            specs.append(spec)
        changed = client.models_add(specs)
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, [plain(spec) for spec in specs])
        return
    for spec in specs:
        done = "added" if spec.model_id in changed else "unchanged"
        what = f" {done}, {size(spec.weights_bytes)}, {spec.weights_digest}"
        say(f"model/{spec.model_id}{'' if form is Form.NAME else what}")


def _known(client: Client, name: str) -> ModelSpec | None:
    from atoll.client import NotFoundError

    try:
        return client.models_get(name).spec
    except NotFoundError:
        return None


@verb(
    app,
    "remove",
    epilog="""
    atoll models remove my-pipeline --reason "superseded"
    """,
)
def remove(
    *,
    model: ModelArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit. Required.")] = "",
) -> None:
    """Forget a model; jobs that wait for it fail. Its files stay in the origin store."""
    drain.demand_reason(reason)
    with session().client() as client:
        removed = client.models_remove(model_id(model), reason=reason)
    say(f"model/{removed}" if session().form is Form.NAME else f"model/{removed} removed")


@app.command(
    "build-starters",
    cls=Verb,
    epilog=examples(
        """
        atoll models build-starters
        atoll models build-starters --to ./origin --only tiny-image
        """
    ),
)
def build_starters(
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="FOLDER", show_default=False, help="Where (default: ~/.local/share/atoll/origin).")
    ] = "",
    only: Annotated[list[str] | None, typer.Option("--only", metavar="MODEL", help="Only these; may be repeated.")] = None,
) -> None:
    """Build the starter models and adapters: real, tiny, untrained, in seconds and without a download. Needs atoll[worker]."""
    from agents.engine.errors import EngineError
    from agents.engine.starter_adapters import build_starter_adapters
    from agents.engine.starters import build_starters as build

    root = Path(to).expanduser() if to else places.origin_dir(places.data_dir(os.environ))
    try:
        built = build(root, only=arguments.names(only), on_progress=note)
        adapters = build_starter_adapters(root, built, on_progress=note)
    except EngineError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"cannot write below {root}: {error.strerror or error}", code=Exit.FAILED) from None
    for model in built:
        say(str(model.folder))
    for adapter in adapters:
        say(str(adapter.path))
