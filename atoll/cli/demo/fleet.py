"""The demo's fleet: which programs it consists of, how each is started, and when it is complete.

Decides names, ports and flags. Two sites are real: each has a Ray cluster of its own on this machine and runs diffusers on the CPU. The
sites of the fleet file are twins: they take the time that physics gives, and their results are marked simulated.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll.cli.demo.places import Places
from atoll.cli.demo.processes import PartFailedError, Processes, Program, Running
from atoll.model.adapter import AdapterSpec
from atoll.model.address import Address
from atoll.model.errors import AtollError
from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.site import SiteSpec

if TYPE_CHECKING:
    from atoll.client import Client

# Two harbours of one machine. Ray takes the second figure of an address for the whole of it, hence one address each.
REAL: Final = (("harbour", "127.0.1.1"), ("quay", "127.0.1.2"))
REAL_NAMES: Final = tuple(name for name, _ in REAL)
# Ray's control plane and workers of one site, as `agents.runtime` counts them.
_PORT_BLOCK: Final = 100
# Below the ephemeral range of the kernel, from 32768, where outgoing connections take ports between test and use.
_PORTS: Final = range(20_000, 32_000)
# A loopback copies gigabytes a second; whatever is said here, fetching the starters takes milliseconds.
_LOOPBACK_BYTES_PER_S: Final = 1_000_000_000
# Both starters take 13 MB.
_CACHE: Final = "1GB"
# The orchestrator's exit code for a port that somebody took first.
_ADDRESS_IN_USE: Final = 3
_START_TRIES: Final = 3
_START_S: Final = 60.0
# A Ray cluster is up in 5 to 14 s on a free core, and imports torch for 6 s more; a busy machine takes several times that.
CONNECT_S: Final = 180.0
POLL_S: Final = 0.1
# An agent stops its slot and then its cluster.
_AGENT_GRACE_S: Final = 25.0
_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What starting needs: where things go, who keeps the programs, and what is called between two looks."""

    places: Places
    processes: Processes
    breathe: Callable[[], None]


def atoll(*arguments: str) -> tuple[str, ...]:
    """The command line of this very program."""
    return (sys.executable, "-m", "atoll.cli", *arguments)


def build_starters(start: Start) -> Running:
    """Build the starter models, or verify that they are there; in a process of its own, as torch takes memory and seconds to load."""
    arguments = atoll("models", "build-starters", "--to", str(start.places.models))
    return start.processes.start(Program(name="starter models", arguments=arguments, wave=0, grace_s=_GRACE_S, once=True))


def starter_specs(places: Places) -> tuple[tuple[ModelSpec, ...], tuple[AdapterSpec, ...]]:
    """The starter models and adapters as built, with their digests."""
    from agents.engine.starter_adapters import build_starter_adapters
    from agents.engine.starters import build_starters as verify

    models = verify(places.models)
    return tuple(model.spec for model in models), tuple(adapter.spec for adapter in build_starter_adapters(places.models, models))


def start_orchestrator(start: Start) -> Address:
    """An orchestrator with a fresh store that answers calls; its address. PartFailedError when there is none."""
    for _ in range(_START_TRIES - 1):
        address, running = _orchestrator(start)
        try:
            return _answering(start, address, running)
        except PartFailedError:
            if running.exit_code != _ADDRESS_IN_USE:
                raise
            start.processes.forget(running)
    return _answering(start, *_orchestrator(start))


def _orchestrator(start: Start) -> tuple[Address, Running]:
    address = Address(host="127.0.0.1", port=next(free_ports()))
    run = start.places.run
    arguments = atoll(
        "orchestrator",
        *("--listen", str(address)),
        *("--metrics", "off"),
        *("--data-dir", str(run / "orchestrator")),
        *("--origin-url", start.places.models.as_uri()),
        *("--artifacts-url", (run / "artifacts").as_uri()),
    )
    return address, start.processes.start(Program(name="orchestrator", arguments=arguments, wave=1, grace_s=_GRACE_S))


def _answering(start: Start, address: Address, running: Running) -> Address:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        start.breathe()
        start.processes.check()
        with connect(address) as client:
            try:
                client.fleet()
                return address
            except AtollError:
                time.sleep(POLL_S)
    raise running.failed(f"does not answer at {address} after {_START_S:g} s")


def connect(address: Address) -> Client:
    """A client of this very orchestrator, whatever the person's configuration says."""
    from atoll.client import Client, Settings

    return Client(settings=Settings(addresses=(address,)), connect_timeout_s=1.0)


def real_specs() -> tuple[SiteSpec, ...]:
    """The two sites of this machine; what they have their agents find out."""
    return tuple(
        SiteSpec(
            site_id=SiteId(name),
            region="this machine",
            provider="local",
            wan_bytes_per_s=_LOOPBACK_BYTES_PER_S,
            origin_bytes_per_s=_LOOPBACK_BYTES_PER_S,
        )
        for name in REAL_NAMES
    )


def start_agents(start: Start, orchestrator: Address) -> None:
    """One agent for each real site. Their clusters end with them."""
    blocks = _free_blocks()
    for name, node_ip in REAL:
        arguments = atoll(
            "agent",
            *("--site", name),
            *("--orchestrator", str(orchestrator)),
            *("--data-dir", str(start.places.run / name)),
            *("--cache-dir", str(start.places.cache(name))),
            *("--cache", _CACHE),
            *("--ray-node-ip", node_ip),
            *("--ray-port-base", str(next(blocks))),
            *("--no-gpus", "--slots", "1"),
            "--stop-work-on-exit",
        )
        start.processes.start(Program(name=f"site {name}", arguments=arguments, wave=0, grace_s=_AGENT_GRACE_S))


def start_twins(start: Start, orchestrator: Address, file: Path) -> None:
    """One process with the twins of all sites of the fleet file."""
    arguments = atoll("rehearse", str(file.absolute()), "--orchestrator", str(orchestrator))
    start.processes.start(Program(name="twins", arguments=arguments, wave=0, grace_s=_GRACE_S))


def fleet_file() -> Path:
    """The reference fleet: clusters.yaml here, or that of the project."""
    import atoll as package

    beside = Path(package.__file__).resolve().parent.parent / "clusters.yaml"
    here = Path("clusters.yaml")
    return here if here.is_file() else beside


def free_ports() -> Iterator[int]:
    """Ports of this machine that nobody uses. PartFailedError when there is none."""
    for port in _from_anywhere(1):
        if _free("127.0.0.1", port):
            yield port
    raise PartFailedError("this machine", f"has no free port from {_PORTS.start} to {_PORTS.stop}")


def _free_blocks() -> Iterator[int]:
    """First ports of blocks of which nobody uses any. Ray listens on all interfaces whatever it is told."""
    for base in _from_anywhere(_PORT_BLOCK):
        if all(_free("0.0.0.0", port) for port in range(base, base + _PORT_BLOCK)):  # noqa: S104 - only tried, as Ray will
            yield base
    raise PartFailedError("this machine", f"has no {_PORT_BLOCK} free ports in a row from {_PORTS.start} to {_PORTS.stop}")


def _from_anywhere(step: int) -> Iterator[int]:
    """Every `step`-th port once, from a place that differs between processes: two demos seldom try the same."""
    places = _PORTS[::step]
    first = os.getpid() * 31 % len(places)
    yield from places[first:]
    yield from places[:first]


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
