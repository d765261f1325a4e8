"""Two orchestrators on one etcd, of which the leader is killed again and again: `python -m tests.soak.leaders [--kills N] [--rate R]`.

Clients submit R jobs a second to whoever leads, and a site of twins runs them. Every few seconds the leader is killed (`kill -9`) and
started again, or stopped and continued later: then it stands by. Ends with 0 when every job that was accepted has succeeded, and none is
there twice; prints for how long nothing was accepted around each fault. Decides the faults, and what must be true after them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

from agents.app import packaged_gpus
from agents.runtime.twin import TwinRuntime
from atoll.client import AsyncClient, ClientError, Settings
from atoll.model.address import Address
from atoll.model.ids import ModelId
from atoll.model.job import JobState
from atoll.model.orchestrators import OrchestratorRole
from atoll.physics.hidden import HiddenWorld
from orchestrator.store.etcd.target import EtcdTarget
from tests.integration.etcd_members import Member, member, running
from tests.integration.running_agent import agent
from tests.unit.fleet_of_machines import GB, pool, site

# The smallest: there after a moment. A job of so many steps takes a second on the GPU of the site below.
MODEL: Final = ModelId("sd-1.5")
_STEPS: Final = 20
# Two hundred of these a second keep two thirds of it busy.
_NODES: Final = 40
_GPUS: Final = 8
# Submits on their way at once.
_SUBMITTERS: Final = 64
# Bounds what must come; how soon is never asserted with it.
PATIENCE_S: Final = 60.0


@dataclass(slots=True)
class Orchestrator:
    """One, running or not. Its address outlives it."""

    address: Address
    folder: Path
    target: EtcdTarget
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        settings = {
            "ATOLL_ORCHESTRATOR_LISTEN": str(self.address),
            "ATOLL_ORCHESTRATOR_DATA_DIR": str(self.folder),
            "ATOLL_ORCHESTRATOR_METRICS": "off",
            "ATOLL_ORCHESTRATOR_STORE": str(self.target),
            "ATOLL_ORCHESTRATOR_NAME": f"o{self.address.port}",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "orchestrator"], env={**os.environ, **settings}, stderr=log)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it, frozen or not, and wait until it is gone: its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(encoding="utf-8")


@dataclass(slots=True)
class Pair:
    """Two orchestrators, and a client of both."""

    orchestrators: list[Orchestrator]
    client: AsyncClient

    async def leader(self) -> Orchestrator:
        """The one that leads, once the other one stands by, and its records are level."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    views = await self.client.orchestrators()
                except ClientError:
                    views = ()
                level = [view for view in views if view.role is OrchestratorRole.STANDBY and view.lag_ms == 0]
                if views and len(level) == len(self.orchestrators) - 1 and views[0].last_beat_ms < 500:
                    return next(one for one in self.orchestrators if str(one.address) == views[0].address)
                await asyncio.sleep(0.1)


@contextmanager
def two(etcd: Member, folder: Path, ports: Callable[[], int]) -> Iterator[list[Orchestrator]]:
    """Two orchestrators, until the block ends; they may not answer yet."""
    target = EtcdTarget(members=(etcd.address,), prefix="leaders")
    ones = [Orchestrator(Address(host="127.0.0.1", port=ports()), folder / name, target) for name in ("a", "b")]
    try:
        for one in ones:
            one.start()
        yield ones
    finally:
        for one in ones:
            one.end()


@asynccontextmanager
async def asked(ones: list[Orchestrator]) -> AsyncIterator[Pair]:
    """With a client of both."""
    settings = Settings(addresses=tuple(one.address for one in ones))
    async with AsyncClient(settings=settings, connect_timeout_s=PATIENCE_S, timeout_s=PATIENCE_S) as client:
        yield Pair(ones, client)


@asynccontextmanager
async def twins(pair_: Pair, *, nodes: int = _NODES) -> AsyncIterator[None]:
    """A site of twins that dials both."""
    spec = replace(site("lab", pool("h100", gpu="H100-SXM", nodes=nodes, gpus=_GPUS), origin_gbs=10), wan_bytes_per_s=10 * GB)
    await pair_.client.sites_apply([spec])
    runtime = TwinRuntime(spec, gpus=packaged_gpus(), hidden=HiddenWorld(1))
    async with agent([one.address for one in pair_.orchestrators], "lab", runtime):
        yield


@dataclass(slots=True)
class Submits:
    """Submits jobs until it is stopped; remembers what was accepted under which key, and when."""

    client: AsyncClient
    rate: float
    accepted: dict[str, str] = field(default_factory=dict)
    times_s: list[float] = field(default_factory=list)
    slowest_s: float = 0.0
    refused: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Each under a key of its own, as due: late ones are made up for."""
        room, began_s, number = asyncio.Semaphore(_SUBMITTERS), time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self.stop.is_set():
                due_s = began_s + number / self.rate
                await asyncio.sleep(max(due_s - time.monotonic(), 0))
                await room.acquire()
                tasks.create_task(self._one(f"k{number}", room))
                number += 1

    async def _one(self, key: str, room: asyncio.Semaphore) -> None:
        began_s = time.monotonic()
        try:
            self.accepted[key] = await self.client.submit(MODEL, "a reef", steps=_STEPS, simulated=True, idempotency_key=key)
        except ClientError as error:
            self.refused.append(f"{key}: {error}")
        finally:
            room.release()
        self.times_s.append(time.monotonic())
        self.slowest_s = max(self.slowest_s, self.times_s[-1] - began_s)

    def gap_s(self, at_s: float) -> float:
        """The longest time after this moment in which nothing was accepted."""
        times = [at_s, *sorted(time_s for time_s in self.times_s if time_s > at_s), time.monotonic()]
        return max(after - before for before, after in pairwise(times))


async def check(pair_: Pair, submits: Submits) -> list[str]:
    """What is wrong: with what was accepted, or with what there is of it."""
    broken = [f"refused: {one}" for one in submits.refused[:5]]
    async with asyncio.timeout(PATIENCE_S * 2):
        live = [JobState.QUEUED, JobState.PLACED, JobState.RUNNING]
        while [job async for job in pair_.client.list(states=live, page_size=1_000)]:  # noqa: ASYNC110 - other processes end them
            await asyncio.sleep(0.5)
    found = {job.job_id: job async for job in pair_.client.list(page_size=1_000) if job.idempotency_key in submits.accepted}
    lost = [key for key, job_id in submits.accepted.items() if job_id not in found]
    broken += [f"lost: {len(lost)} jobs, such as {lost[0]}"] if lost else []
    doubled = found.keys() - set(submits.accepted.values())
    broken += [f"doubled: {len(doubled)} jobs under keys of others"] if doubled else []
    ended = {job.state for job in found.values()}
    return broken + ([f"ended as {', '.join(sorted(ended))}"] if ended != {JobState.SUCCEEDED} else [])


async def soak(pair_: Pair, *, kills: int, rate: float, freeze_s: float, seed: int) -> tuple[Submits, list[float], list[str]]:
    """Kill the leader so many times (0 < freeze_s: stop it, and continue it so long after); the gaps, and what is wrong after it all."""
    chance, submits, gaps_s = random.Random(seed), Submits(pair_.client, rate), list[float]()
    async with twins(pair_):
        submitting = asyncio.create_task(submits.run())
        for number in range(kills):
            leader = await pair_.leader()
            await asyncio.sleep(chance.uniform(1.0, 3.0))
            at_s = time.monotonic()
            if freeze_s:
                leader.send(signal.SIGSTOP)
                await asyncio.sleep(freeze_s)
                leader.send(signal.SIGCONT)
            else:
                leader.end()
                await asyncio.sleep(2.0)
                leader.start()
            await asyncio.sleep(max(8.0 - (time.monotonic() - at_s), 0))
            gaps_s.append(submits.gap_s(at_s))
            print(f"fault {number + 1}: nothing accepted for {gaps_s[-1]:.2f} s", flush=True)
        submits.stop.set()
        await submitting
        return submits, gaps_s, await check(pair_, submits)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _run(given: argparse.Namespace, folder: Path, etcd: Member) -> int:
    with two(etcd, folder, _free_port) as ones:
        async with asked(ones) as both:
            submits, gaps_s, broken = await soak(both, kills=given.kills, rate=given.rate, freeze_s=given.freeze, seed=given.seed)
    print(f"{len(submits.accepted)} jobs accepted, the slowest within {submits.slowest_s:.1f} s")
    print(f"gaps of {len(gaps_s)} faults: half within {median(gaps_s):.2f} s, the longest {max(gaps_s):.2f} s")
    for one in broken:
        print(f"BROKEN: {one}")
    return 1 if broken else 0


def main(arguments: list[str] | None = None) -> int:
    """0: every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.leaders", description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    parser.add_argument("--freeze", type=float, default=0.0, metavar="S", help="stop the leader, and continue it so long after")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for logs")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="atoll-leaders-") as made:
        folder = given.keep or Path(made)
        with running(member(Path(made) / "etcd", _free_port)) as etcd:
            return asyncio.run(_run(given, folder, etcd))


if __name__ == "__main__":
    sys.exit(main())
