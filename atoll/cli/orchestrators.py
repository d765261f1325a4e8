"""`atoll orchestrators`: who leads, and who stands by to take over.

Decides how they look. Any of them can be asked, while nobody leads too.
"""

from __future__ import annotations

from typing import Any, Final

import typer

from atoll.cli.figures import NONE, duration, local_time, rfc3339
from atoll.cli.output import Column, Form, Listing, plain, show_list, show_plain
from atoll.cli.session import session, verb
from atoll.cli.verbs import Noun
from atoll.model.orchestrators import OrchestratorRole, OrchestratorView

app = typer.Typer(cls=Noun, name="orchestrators", help="Who leads the fleet, and who stands by.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    verb(
        app,
        "list",
        epilog="""
        atoll orchestrators list
        atoll orchestrators list --address 10.0.0.2:7443 -o json
        """,
    )(list_)
    root.add_typer(app)


def _lag(view: OrchestratorView) -> str:
    """How far its records are behind; a leader's are what others are measured by."""
    if view.role is OrchestratorRole.LEADER:
        return NONE
    return "loading" if view.lag_ms is None else duration(view.lag_ms * 1_000)


_LISTING: Final[Listing[OrchestratorView]] = Listing(
    kind="orchestrator",
    ref=lambda view: view.name,
    columns=(
        Column(title="NAME", cell=lambda view: view.name),
        Column(title="ADDRESS", cell=lambda view: view.address),
        Column(title="ROLE", cell=lambda view: view.role.value),
        Column(title="TERM", cell=lambda view: str(view.term), right=True),
        Column(title="SINCE", cell=lambda view: local_time(view.since_ms)),
        Column(title="LAST BEAT", cell=lambda view: f"{duration(view.last_beat_ms * 1_000)} ago", right=True),
        Column(title="LAG", cell=_lag, right=True),
        Column(title="PROCESS", cell=lambda view: view.process, wide=True),
        Column(title="VERSION", cell=lambda view: view.version, wide=True),
    ),
)


def list_() -> None:
    """Who leads, and who stands by: since when, when it was last heard, and how far its records are behind the leader's."""
    form = session().form
    with session().client() as client:
        found = client.orchestrators()
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, [_plain(view) for view in found])
    else:
        show_list(form, _LISTING, found, empty="nobody leads, and nobody stands by")


def _plain(view: OrchestratorView) -> dict[str, Any]:
    """With the names of its fields, and since when as RFC 3339."""
    return {**plain(view), "since": rfc3339(view.since_ms)}
