"""`atoll costs`: what the estimates are made of and how good they are. The verbs are in modules of their own."""

from __future__ import annotations

import typer

from atoll.cli import estimates, rates, residuals
from atoll.cli.verbs import Noun

app = typer.Typer(cls=Noun, name="costs", help="What the estimates are made of, and how good they are.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    estimates.add_to(app)
    residuals.add_to(app)
    rates.add_to(app)
    root.add_typer(app)
