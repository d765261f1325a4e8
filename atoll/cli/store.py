"""`atoll store`: keep what the orchestrator knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.figures import size
from atoll.cli.output import Form, plain, say, show_plain
from atoll.cli.session import session, verb
from atoll.cli.verbs import Noun

app = typer.Typer(cls=Noun, name="store", help="Keep what the orchestrator knows.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    root.add_typer(app)


@verb(
    app,
    "backup",
    epilog="""
    atoll store backup /var/backups/atoll-2025-01-31.sqlite
    """,
)
def backup(*, path: Annotated[str, typer.Argument(metavar="PATH", help="A new file on the orchestrator's machine.")]) -> None:
    """Copy the store while the orchestrator runs.

    To restore: stop it, put the copy in the place of atoll.sqlite, remove atoll.sqlite-wal and -shm if they are there, start it.
    """
    form = session().form
    with session().client() as client:
        done = client.backup(str(Path(path).absolute()))
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(done))
    else:
        say(f"{done.path}   {size(done.bytes)}" if form is not Form.NAME else done.path)
