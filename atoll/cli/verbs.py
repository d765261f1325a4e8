"""Verbs and nouns as Typer prints them: what an option takes, said in words of this command line.

Decides that a flag takes nothing and shows nothing, that text is called TEXT where an option has no better word, and which verb is
meant by one that there is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from atoll.model.errors import quoted

# Typer exports the kinds of a wrong command line, not their root.
USAGE_ERROR: Final[Any] = typer.BadParameter.__bases__[0]
# What other command lines call what ours call otherwise: the first of them that a noun has is meant.
_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "describe": ("get", "show", "inspect"),
    "info": ("get", "show", "inspect"),
    "inspect": ("get", "show"),
    "show": ("get", "inspect"),
    "get": ("show", "inspect"),
    "status": ("get", "fleet"),
    "ls": ("list",),
    "ps": ("list",),
    "create": ("add", "submit", "generate"),
    "new": ("add", "submit", "generate"),
    "register": ("add",),
    "upload": ("add", "push"),
    "delete": ("remove", "cancel"),
    "rm": ("remove", "cancel"),
    "kill": ("cancel",),
    "stop": ("cancel", "drain"),
    "why": ("explain",),
    "validate": ("check",),
    "disable": ("cordon",),
    "enable": ("uncordon",),
}
_MEANT_MAX: Final = 3
# So many verbs are read at a glance; more are in the help.
_NAMED_MAX: Final = 12


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
    """A noun with its verbs, likewise. A verb that it lacks is answered with the one that was meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As usual; the error of a verb that there is not says which may be meant."""
        try:
            return super().resolve_command(ctx, args)
        except USAGE_ERROR as error:
            if args and args[0] not in self.commands and not args[0].startswith("-"):
                error.message = self._lacks(ctx.command_path, args[0])
            raise

    def _lacks(self, path: str, word: str) -> str:
        meant = self._meant(word)
        if meant:
            rest = f"did you mean {' or '.join(map(repr, meant))}?"
        else:
            rest = f"expected one of {', '.join(self.commands)}" if len(self.commands) <= _NAMED_MAX else "none is like it"
        return f"{path} has no verb {quoted(word)}; {rest}"

    def _meant(self, word: str) -> list[str]:
        """Its own verb by another name, a verb that looks like the word, or the verb of a noun that it has."""
        from atoll.catalog.likeness import alike

        called = (word, *_ELSEWHERE.get(word.lower(), ()))
        nouns = {name: noun.commands for name, noun in self.commands.items() if isinstance(noun, TyperGroup)}
        own = next(([verb] for verb in called if verb in self.commands), [])
        within = [f"{name} {verb}" for verb in called for name, verbs in nouns.items() if verb in verbs]
        return own or within[:_MEANT_MAX] or alike(word, self.commands, _MEANT_MAX)

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
