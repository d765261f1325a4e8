"""`atoll up`: an orchestrator and a site on this machine, in one command.

Decides names, folders and the order of the start. Both are processes of their own and log here; both end with this one. Once both run,
the orchestrator goes on whatever becomes of the agent (`upkeep`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import places, policies, upkeep
from atoll.cli.agent import JOIN_TOKEN_VARIABLE
from atoll.cli.children import Children, Stopped
from atoll.cli.exits import CliError, Exit
from atoll.cli.output import note
from atoll.cli.session import examples
from atoll.cli.verbs import Verb
from atoll.model.adapter import AdapterSpec
from atoll.model.address import Address, parse_address
from atoll.model.ids import SiteId, parse_name
from atoll.model.site import SiteConnection, SiteSpec

if TYPE_CHECKING:
    from atoll.client import Client
    from atoll.model.modelspec import ModelSpec

# A store with a million ended jobs opens in seconds.
_ORCHESTRATOR_S: Final = 60.0
# It starts in two seconds where it finds its machine code.
_WORTH_A_WORD_S: Final = 3.0
# Ray needs 5 to 14 s for its head and torch 6 s for its imports, several times that on a busy machine.
_SITE_S: Final = 180.0
# First ports of blocks of 100, below those that outgoing connections take: several clusters of one machine have one each.
_RAY_PORTS: Final = range(21_000, 31_000, 100)
_POLL_S: Final = 0.2
_LOCAL_ETCD: Final = "etcd"
# What is local is limited by its disk; the figure only has to be larger than that.
_LOOPBACK_BYTES_PER_S: Final = 10**10
# Fetching weights from a folder of this machine: read, hashed and written. 5.4 GB took 8.4 s on a disk that reads 1.8 GB/s and writes 0.6.
_FETCH_BYTES_PER_S: Final = 600_000_000


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    root.command(
        "up",
        cls=Verb,
        epilog=examples(
            """
            atoll up
            atoll up --store etcd
            atoll up --listen 127.0.0.1:7500 --data-dir ./fleet --slots 2
            """
        ),
    )(up)


def up(
    *,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", show_default=False, help="Where (default: 127.0.0.1:7443).")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="FOLDER", show_default=False, help="All its data (default: ~/.local/share/atoll).")
    ] = None,
    site: Annotated[str, typer.Option("--site", metavar="NAME", help="Name of the site on this machine.")] = "local",
    slots: Annotated[str | None, typer.Option("--slots", metavar="N", show_default=False, help="Slots, without GPUs (default: 1).")] = None,
    no_gpus: Annotated[bool, typer.Option("--no-gpus", help="Work on the CPU, GPUs or not.")] = False,
    metrics: Annotated[str, typer.Option("--metrics", metavar="HOST:PORT", help="The orchestrator's metrics.")] = "off",
    policy: Annotated[
        str, typer.Option("--policy", metavar="FILE|NAME", help="By which figures places are chosen; see 'atoll policies'.")
    ] = "default",
    store: Annotated[
        str,
        typer.Option("--store", metavar="sqlite|etcd|URL", help="'sqlite', 'etcd' (one is started here), or etcd://HOST:PORT."),
    ] = "sqlite",
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "warning",
) -> None:
    """Run an orchestrator and a real site on this machine in the foreground, until Ctrl-C.

    Builds the starter models when they are not there. What was submitted survives; start it again and it goes on. Needs atoll[worker].
    Should the site's agent end, it is started again, five times in a row at most; the orchestrator goes on, also without it.
    """
    address = parse_address("--listen", listen or "127.0.0.1")
    more = [*(("--slots", slots) if slots is not None else ()), *(("--no-gpus",) if no_gpus else ())]
    site_id = SiteId(parse_name("--site", site))
    data = Path(data_dir).expanduser().absolute() if data_dir else places.data_dir(os.environ)
    policies.load(policy)
    _check_store(store)
    models, adapters = _starters(data)
    _refuse_taken(address)
    with ExitStack() as afterwards, Children() as children:
        try:
            servers, store_url = _store(children, store, data)
            servers.append(_orchestrator(children, address, data, metrics, log_level, policy, store_url))
            with _client(address) as client:
                join_token = _declare(client, site_id, models, adapters)
                arguments = _agent_arguments(site_id, address, data, log_level, more)
                afterwards.callback(upkeep.end_cluster, _site_dir(data, site_id))
                agent = children.start("agent", arguments, {JOIN_TOKEN_VARIABLE: join_token} if join_token else None)
                _await_site(children, client, site)
            _greet(address)
            # It has joined: its credential is in its folder.
            upkeep.keep(children, servers, agent, lambda: children.start("agent", arguments))
            _check(children)
        except Stopped:
            note("stopping")


def _starters(data: Path) -> tuple[tuple[ModelSpec, ...], tuple[AdapterSpec, ...]]:
    """The starter models and adapters, built where they are missing."""
    from agents.engine.errors import EngineError
    from agents.engine.starter_adapters import build_starter_adapters
    from agents.engine.starters import build_starters

    try:
        root = places.origin_dir(data)
        models = build_starters(root, on_progress=note)
        adapters = build_starter_adapters(root, models, on_progress=note)
        return tuple(model.spec for model in models), tuple(adapter.spec for adapter in adapters)
    except EngineError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"--data-dir is '{data}': cannot write there: {error.strerror or error}", code=Exit.USAGE) from None


def _check_store(store: str) -> None:
    """CliError for a store that there is not, before anything is built or started."""
    from orchestrator.store.etcd.local import NoLocalEtcdError, find_program
    from orchestrator.store.settings import read_target

    if store == _LOCAL_ETCD:
        try:
            find_program()
        except NoLocalEtcdError as error:
            raise CliError(str(error)) from None
    else:
        # Users and certificates are the orchestrator's to check: they come by its environment.
        read_target(lambda name: store if name == "store" else "")


def _store(children: Children, store: str, data: Path) -> tuple[list[Popen[bytes]], str]:
    """What keeps the records: started if it is to be here, and by what name the orchestrator finds it."""
    if store != _LOCAL_ETCD:
        return [], store
    clients, peers = _free_addresses(2)
    arguments = ["store", "etcd", "--data-dir", str(data / "etcd"), "--listen", str(clients), "--listen-peers", str(peers)]
    return [children.start("etcd", arguments)], f"etcd://{clients}"


def _free_addresses(number: int) -> list[Address]:
    """Different ones on this machine that nobody uses now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [Address(host="127.0.0.1", port=probe.getsockname()[1]) for probe in probes]


def _refuse_taken(address: Address) -> None:
    """CliError when somebody listens there already: it would answer in place of the orchestrator that is about to start."""
    try:
        with socket.create_connection((address.host, address.port), timeout=1.0):
            pass
    except OSError:
        return
    raise CliError(f"--listen is '{address}': expected an address that nobody uses; something answers there", code=Exit.CONFLICT)


def _orchestrator(
    children: Children, address: Address, data: Path, metrics: str, log_level: str, policy: str, store_url: str
) -> Popen[bytes]:
    """Start it and wait until it answers."""
    arguments = [
        "orchestrator",
        *("--listen", str(address)),
        *("--data-dir", str(data / "orchestrator")),
        *("--origin-url", places.origin_dir(data).as_uri()),
        *("--artifacts-url", (data / "artifacts").as_uri()),
        *("--metrics", metrics),
        *("--log-level", log_level),
        *("--policy", policy),
        *("--store", store_url),
    ]
    started = children.start("orchestrator", arguments)
    from atoll.client import UnavailableError

    begun_s, told = time.monotonic(), False
    while True:
        _check(children)
        with _client(address) as client:
            try:
                client.fleet()
                return started
            except UnavailableError:
                passed_s = time.monotonic() - begun_s
                if passed_s > _ORCHESTRATOR_S:
                    raise
                if passed_s > _WORTH_A_WORD_S and not told:
                    note("the orchestrator is starting: the first time it compiles, which takes some 10 s")
                    told = True
        time.sleep(_POLL_S)


def _client(address: Address) -> Client:
    """A client of this very orchestrator, whatever the environment and the configuration file say."""
    from atoll.client import Client, Settings

    secret = os.environ.get("ATOLL_ORCHESTRATOR_TOKEN", "")
    return Client(settings=Settings(addresses=(address,), token=secret), connect_timeout_s=1.0)


def _declare(client: Client, site: SiteId, models: tuple[ModelSpec, ...], adapters: tuple[AdapterSpec, ...]) -> str:
    """The site, the starter models and adapters, as at each start; the token with which a new site joins, if one is needed."""
    from atoll.client import NotFoundError

    client.models_add(models)
    client.adapters_add(adapters)
    try:
        client.sites_get(site)
        return ""
    except NotFoundError:
        spec = SiteSpec(
            site_id=site,
            region="this machine",
            provider="local",
            wan_bytes_per_s=_LOOPBACK_BYTES_PER_S,
            origin_bytes_per_s=_FETCH_BYTES_PER_S,
        )
        return client.sites_add(spec, reason="atoll up").join_token


def _site_dir(data: Path, site: SiteId) -> Path:
    return data / "sites" / site


def _agent_arguments(site: SiteId, address: Address, data: Path, log_level: str, more: Sequence[str]) -> list[str]:
    """The same at each start: by its ports an agent finds the Ray cluster that an earlier one left."""
    block = _free_block()
    return [
        "agent",
        *("--site", site),
        *("--orchestrator", str(address)),
        *("--data-dir", str(_site_dir(data, site))),
        *("--cache-dir", str(data / "weights")),
        *("--log-level", log_level),
        *("--ray-node-ip", f"127.0.1.{1 + block}"),
        *("--ray-port-base", str(_RAY_PORTS[block])),
        "--stop-work-on-exit",
        *more,
    ]


def _free_block() -> int:
    """Index of a block whose first port, that of Ray's control plane, nobody uses."""
    for block, port in enumerate(_RAY_PORTS):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - only tried, as Ray will
            except OSError:
                continue
            return block
    raise CliError(f"no port from {_RAY_PORTS.start} to {_RAY_PORTS.stop} is free for a Ray cluster")


def _await_site(children: Children, client: Client, site: str) -> None:
    note(f"site {site} is starting: its Ray cluster and its first process take half a minute")
    deadline_s = time.monotonic() + _SITE_S
    while True:
        _check(children)
        view = client.sites_get(site)
        if view.connection is SiteConnection.CONNECTED and view.pools:
            return
        if time.monotonic() > deadline_s:
            raise CliError(f"site {site} has not connected within {_SITE_S:.0f} s: what its agent said stands above", code=Exit.TIMEOUT)
        time.sleep(_POLL_S)


def _check(children: Children) -> None:
    ended = children.ended()
    if ended is not None:
        name, status = ended
        raise CliError(f"the {name} ended with status {status}: what it said stands above")


def _greet(address: Address) -> None:
    where = "" if str(address) == "127.0.0.1:7443" else f" --address {address}"
    note(f"ready at {address}; in another shell, for example:")
    note(f'    atoll{where} submit tiny-image --prompt "a lighthouse" --seed 7 --wait --out lighthouse.png')
    note("Ctrl-C ends it; what was submitted survives")
