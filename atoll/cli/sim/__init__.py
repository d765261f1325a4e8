"""`atoll sim`: the simulator's commands. The verbs are in modules of their own, and load the simulator when they run."""

from __future__ import annotations

import typer

from atoll.cli.sim import trace
from atoll.cli.verbs import Noun

app = typer.Typer(cls=Noun, name="sim", help="Traces in, decisions about the fleet out: the simulator.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    app.add_typer(trace.app)
    root.add_typer(app)
