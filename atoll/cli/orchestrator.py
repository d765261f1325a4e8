"""`atoll orchestrator`: the server, in this process. Its code is loaded when it is started, not before.

Decides which flags there are; what they may hold is said by the server's own configuration.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from atoll.cli.exits import CliError
from atoll.cli.session import examples
from atoll.cli.storeoptions import (
    StoreCaOption,
    StoreCertOption,
    StoreKeyOption,
    StoreOption,
    StoreQuotaOption,
    StoreTlsNameOption,
    StoreUserOption,
)
from atoll.cli.verbs import Verb


def register(root: typer.Typer) -> None:
    """Add the verbs to the command."""
    root.command(
        "orchestrator",
        cls=Verb,
        epilog=examples(
            """
            atoll orchestrator
            atoll orchestrator --policy own.yaml  # see 'atoll policies --help'
            atoll orchestrator --data-dir /var/lib/atoll --listen 127.0.0.1:7443
            atoll orchestrator --store etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/atoll --store-ca ca.pem
            ATOLL_ORCHESTRATOR_TOKEN=... atoll orchestrator --listen 0.0.0.0:7443 --tls-cert cert.pem --tls-key key.pem
            """
        ),
    )(orchestrator)


def orchestrator(
    *,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where (default: 127.0.0.1:7443).")] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="FOLDER", help="Its store (default: ~/.local/state/atoll/orchestrator).")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="How others call it (default: the machine's name, and its port).")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option("--advertise", metavar="HOST:PORT", help="Where others reach it (default: where it listens).")
    ] = None,
    standby: Annotated[
        bool | None,
        typer.Option("--standby/--no-standby", show_default=False, help="While another leads: wait (default in etcd), or end."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Prometheus metrics (default: 127.0.0.1:7444), 'off': none.")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", metavar="FILE", help="Credentials of clients, hashed, as YAML.")] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = None,
    origin_url: Annotated[
        str | None, typer.Option("--origin-url", metavar="URL", help="Where weights are (default: a folder of its own).")
    ] = None,
    artifacts_url: Annotated[
        str | None, typer.Option("--artifacts-url", metavar="URL", help="Where results go (default: a folder of its own).")
    ] = None,
    store: StoreOption = None,
    store_user: StoreUserOption = None,
    store_ca: StoreCaOption = None,
    store_cert: StoreCertOption = None,
    store_key: StoreKeyOption = None,
    store_tls_name: StoreTlsNameOption = None,
    store_quota_bytes: StoreQuotaOption = None,
    time_scale: Annotated[
        str | None, typer.Option("--time-scale", metavar="X", help="Fleet time runs X times as fast; twins only.")
    ] = None,
    retention_hours: Annotated[
        str | None, typer.Option("--retention-hours", metavar="N", help="How long ended jobs stay readable (default: 24).")
    ] = None,
    ended_jobs_max: Annotated[
        str | None, typer.Option("--ended-jobs-max", metavar="N", help="How many of them (default: 1,000,000; in etcd 100,000).")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE|NAME", help="By which figures places are chosen (default: default).")
    ] = None,
    record: Annotated[str | None, typer.Option("--record", metavar="FILE", help="Write a snapshot and every event after it.")] = None,
    record_bytes_max: Annotated[str | None, typer.Option("--record-bytes-max", metavar="N", help="End the recording there.")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="auto, console or json.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
) -> None:
    """Run an orchestrator in the foreground, until SIGTERM or Ctrl-C.

    Each option may come from the environment instead: ATOLL_ORCHESTRATOR_ and its name, such as ATOLL_ORCHESTRATOR_LISTEN.
    """
    flags = dict(locals())  # each option by its name, which is its setting's
    from orchestrator.app import run_orchestrator
    from orchestrator.config import StartError, load_config

    try:
        config = load_config(flags, os.environ)
    except StartError as error:
        first, *more = str(error).splitlines()
        raise CliError(first, code=error.code, more=tuple(more)) from None
    raise typer.Exit(run_orchestrator(config))
