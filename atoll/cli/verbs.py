"""Verbs and nouns as Typer prints them: what an option takes, said in words of this command line.

Decides that a flag takes nothing and shows nothing, and that text is called TEXT where an option has no better word.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

# Typer exports the kinds of a wrong command line, not their root.
USAGE_ERROR: Final[Any] = typer.BadParameter.__bases__[0]


class Verb(TyperCommand):
    """A verb whose help says what its options take."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual; an error knows whose it is, also where an option at the end lacks what it takes."""
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            error.ctx = error.ctx or ctx
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, --help among them."""
        return _worded(super().get_params(ctx))


class Noun(TyperGroup):
    """A noun with its verbs, likewise."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, --help among them."""
        return _worded(super().get_params(ctx))


def _worded(found: Iterable[Any]) -> list[Any]:
    params = list(found)
    for param in params:
        if isinstance(param, TyperArgument):
            setattr(param, "display_type_rich", _nothing)  # noqa: B010 - mypy knows it as a method; its name says what it takes
        elif param.metavar is None:
            param.metavar = "" if getattr(param, "is_flag", False) else "TEXT"
    return params


def _nothing(ctx: Any) -> None:
    """What Typer is to say of a type."""
