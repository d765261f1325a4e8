"""What every verb that speaks to an orchestrator shares: where it is, who asks, and how the answer is printed.

Decides that these options may stand before or after the verb, and which of two counts (the later). Must not load the SDK until a
verb asks for it: `atoll --help` is answered at once.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_type_hints

import typer

from atoll.cli.exits import CliError, Exit
from atoll.cli.output import Form
from atoll.cli.verbs import Verb
from atoll.model.errors import quoted

if TYPE_CHECKING:
    from atoll.client import Client

F = TypeVar("F", bound=Callable[..., None])

PANEL: Final = "Connection and output"
OUTPUT_VARIABLE: Final = "ATOLL_OUTPUT"

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", rich_help_panel=PANEL, show_default=False,
        help="The orchestrator, or several with commas. (ATOLL_ADDRESS; default 127.0.0.1:7443)",
    ),
]  # fmt: skip
TokenOption = Annotated[
    str | None,
    typer.Option("--token", rich_help_panel=PANEL, show_default=False, help="The credential; better in the environment. (ATOLL_TOKEN)"),
]
CaOption = Annotated[
    str | None,
    typer.Option(
        "--ca", metavar="FILE", rich_help_panel=PANEL, show_default=False,
        help="Use TLS and trust this authority ('system': the system's). (ATOLL_CA)",
    ),
]  # fmt: skip
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", rich_help_panel=PANEL, show_default=False,
        help="File with address, token, ca, origin, output. (ATOLL_CONFIG; default ~/.config/atoll/config.yaml)",
    ),
]  # fmt: skip
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FORM", rich_help_panel=PANEL, show_default=False,
        help="table, wide, json, yaml or name. (ATOLL_OUTPUT; default table)",
    ),
]  # fmt: skip
_SHARED: Final = {
    "address": AddressOption,
    "token": TokenOption,
    "ca": CaOption,
    "config": ConfigOption,
    "output": OutputOption,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The shared options as given; None: not given."""

    address: str | None = None
    token: str | None = None
    ca: str | None = None
    config: str | None = None
    output: str | None = None

    def with_given(self, given: dict[str, str | None]) -> Session:
        """These options, where they were given, over the earlier ones."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @contextmanager
    def client(self, connect_timeout_s: float | None = None) -> Iterator[Client]:
        """A client of the orchestrator that these options name; `connect_timeout_s`: how long it looks for one."""
        # gRPC would log each try to connect in words of its own; an error says in one line what came of them.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from atoll.client import Client
        from atoll.client.patience import CONNECT_TIMEOUT_S

        patience_s = CONNECT_TIMEOUT_S if connect_timeout_s is None else connect_timeout_s
        with Client(address=self.address, token=self.token, ca=self.ca, config=self.config, connect_timeout_s=patience_s) as client:
            yield client

    @property
    def form(self) -> Form:
        """How to print. CliError for a form that there is not."""
        text, source = self.output, "--output"
        if text is None:
            text, source = os.environ.get(OUTPUT_VARIABLE) or None, OUTPUT_VARIABLE
        if text is None:
            from atoll.client.settings import resolve

            text, source = resolve(address=self.address, config=self.config).output or Form.TABLE.value, "output in the configuration"
        try:
            return Form(text)
        except ValueError:
            raise CliError(f"{source} is {quoted(text)}: expected one of {', '.join(Form)}", code=Exit.USAGE) from None


_SESSION: ContextVar[Session] = ContextVar("session")


def session() -> Session:
    """The options of the verb that runs."""
    return _SESSION.get(Session())


def begin(given: dict[str, str | None]) -> None:
    """Options that stood before the verb."""
    _SESSION.set(Session().with_given(given))


def verb(app: typer.Typer, name: str, *, epilog: str = "") -> Callable[[F], F]:
    """Register a verb that takes the shared options too. `epilog` holds its examples, one a line."""

    def register(function: F) -> F:
        app.command(name, cls=Verb, epilog=examples(epilog) if epilog else None)(_sharing(function))
        return function

    return register


def examples(lines: str) -> str:
    """Examples as an epilog that keeps its lines."""
    shown = [line.strip() for line in lines.strip().splitlines()]
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in shown)


def _sharing(function: Callable[..., None]) -> Callable[..., None]:
    own = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in _SHARED}
        _SESSION.set(session().with_given(given))
        function(**values)

    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in own.parameters.items()]
    shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in _SHARED.items()]
    run.__signature__ = own.replace(parameters=[*parameters, *shared], return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **_SHARED}
    del run.__wrapped__  # what reads signatures would look through it
    return run
