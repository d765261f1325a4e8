"""`atoll version`."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll import __version__
from atoll.cli.output import Form, say, show_plain
from atoll.cli.verbs import Verb
from atoll.model.errors import FieldError
from atoll.model.report import PROTOCOL_VERSION


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    root.command("version", cls=Verb)(version)


def version(*, output: Annotated[str, typer.Option("--output", "-o", metavar="FORM", help="table, json or yaml.")] = "table") -> None:
    """The version of this command line, and of the protocol it speaks."""
    try:
        form = Form(output)
    except ValueError:
        raise FieldError("--output", output, f"one of {', '.join(Form)}") from None
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, {"version": __version__, "protocol_version": PROTOCOL_VERSION})
    else:
        say(f"atoll {__version__} (protocol {PROTOCOL_VERSION})")
