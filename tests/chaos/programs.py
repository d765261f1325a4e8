"""The programs of a fleet as processes that can be killed, frozen and started again: an orchestrator, rehearsals of a few sites each, and
where the store is etcd its three members.

Decides how they are started; what befalls them is `faults`'. Each writes a log into the run's folder. All are ended by pid.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.integration.etcd_members import Member, Ports, cluster

ROOT: Final = Path(__file__).parents[2]
FLEET: Final = ROOT / "clusters.yaml"
# Three sites of an orchestrator's fleet, in two processes: where one is gone, the other must be able to go on.
SITES: Final = (("neo-hel", "colo-ams"), ("neo-osa",))
# How much faster fleet time runs: half a minute of load is five of the fleet's, in which silent sites are given up.
TIME_SCALE: Final = 10

# Of a program that did not come up, enough to see why.
_LOG_LINES: Final = 30


class Program:
    """A process that outlives its kills by being started again."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> None:
        self.name = name
        self._command = tuple(command)
        self._log = log
        self._environ = environ or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The last lines of what it wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start it (again)."""
        with self._log.open("ab") as log:
            environ = {**os.environ, **self._environ}
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=ROOT)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and wait until it has."""
        if self._process is not None:
            self._process.send_signal(number)
            if number != signal.SIGKILL:
                self._process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(self._process.wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What runs. `address` is what clients and sites dial."""

    address: str
    orchestrator: Program
    rehearsals: tuple[Program, ...]
    members: tuple[Member, ...] = ()

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of them, the orchestrator first."""
        return (self.orchestrator, *self.rehearsals)

    async def end(self) -> None:
        """Leave nothing behind."""
        await asyncio.gather(*(program.end() for program in self.programs))
        await asyncio.gather(*(asyncio.to_thread(member.end) for member in self.members))


def fleet_of(folder: Path, ports: Ports, *, etcd: bool = False) -> Fleet:
    """A fleet with its data in this folder, on a file of SQLite or three members of etcd; nothing is started."""
    address = f"127.0.0.1:{ports()}"
    members = tuple(cluster(folder / "etcd", ports)) if etcd else ()
    store = f"etcd://{','.join(str(member.address) for member in members)}/chaos" if etcd else "sqlite"
    settings = {
        "ATOLL_ORCHESTRATOR_LISTEN": address,
        "ATOLL_ORCHESTRATOR_DATA_DIR": str(folder / "data"),
        "ATOLL_ORCHESTRATOR_METRICS": "off",
        "ATOLL_ORCHESTRATOR_TIME_SCALE": str(TIME_SCALE),
        "ATOLL_ORCHESTRATOR_STORE": store,
        "ATOLL_ORCHESTRATOR_LOG_FORMAT": "json",
    }
    orchestrator = Program("orchestrator", (sys.executable, "-m", "orchestrator"), folder / "orchestrator.log", settings)
    rehearsals = tuple(
        Program(
            f"sites-{number}",
            (sys.executable, "-m", "atoll.cli", "rehearse", str(FLEET), "--sites", ",".join(sites), "--orchestrator", address),
            folder / f"sites-{number}.log",
        )
        for number, sites in enumerate(SITES)
    )
    return Fleet(address=address, orchestrator=orchestrator, rehearsals=rehearsals, members=members)
