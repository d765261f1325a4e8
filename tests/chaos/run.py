"""One run: a fleet under load, struck again and again by one fault; what was asked, what came of it, and how long nothing was accepted.

Decides when it strikes. What must hold is `history`'s to say.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from dataclasses import dataclass
from statistics import median
from typing import Final

from atoll.cli.fleetfile import read_fleet
from atoll.client import Client
from tests.chaos.faults import Fault
from tests.chaos.history import History, violations
from tests.chaos.load import Load
from tests.chaos.programs import FLEET, SITES, Fleet, Program

# Between two strikes all must be well again, so that each is told by itself.
_REST_S: Final = (1.0, 3.0)
# Bounds each wait for a program to be there; how soon is never asserted.
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run. `gaps_s`: after each strike, the longest time in which no submit was answered."""

    fault: Fault
    history: History
    accepted: int
    replayed: int
    gaps_s: tuple[float, ...]
    broken: tuple[str, ...]

    @property
    def vacuous(self) -> str:
        """Why the run shows nothing; "" if it does."""
        if not self.accepted:
            return "no job was accepted"
        if not self.fault.stalls and not self.tried_again:
            return "the fault met no work"
        return ""

    @property
    def tried_again(self) -> int:
        """Jobs that needed more than one attempt."""
        return sum(len(job.attempts) > 1 for job in self.history.jobs)

    @property
    def figures(self) -> tuple[str, ...]:
        """A line of the table, in the order of `COLUMNS`."""
        gaps = f"{median(self.gaps_s):.2f} / {max(self.gaps_s):.2f}" if self.fault.stalls else "-"
        return (
            self.fault.what,
            f"{len(self.gaps_s)}",
            f"{self.accepted:,}",
            f"{self.replayed:,}",
            f"{self.tried_again:,}",
            f"{len(self.broken)}",
            gaps,
        )


COLUMNS: Final = ("fault", "times", "jobs accepted", "sent twice", "tried again", "promises broken", "nothing accepted, s (median / most)")


def declare(fleet: Fleet) -> None:
    """Start all programs and declare the sites; returns when all of them are connected. Blocks."""
    for member in fleet.members:
        member.start()
    for program in fleet.programs:
        program.start()
    sites, links = read_fleet(FLEET)
    with Client(fleet.address, timeout_s=_PATIENCE_S, connect_timeout_s=_PATIENCE_S) as client:
        client.sites_apply(sites, links, reason="chaos")
        _until_connected(client, fleet)


def _until_connected(client: Client, fleet: Fleet) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        connected = sum(view.connection is not None for view in client.sites_list())
        if connected >= sum(map(len, SITES)):
            return
        time.sleep(0.1)
    raise AssertionError(_told(fleet.programs))


def _told(programs: tuple[Program, ...]) -> str:
    return "\n".join(f"--- {program.name} ({program.code})\n{program.log}" for program in programs)


async def play(fleet: Fleet, fault: Fault, *, times: int, rate: float, seed: int) -> Outcome:
    """Strike so often under load, then let all jobs end."""
    chance = random.Random(seed)
    load = Load(fleet.address, rate=rate, seed=seed)
    running = asyncio.create_task(load.run())
    struck_s: list[float] = []
    try:
        for _ in range(times):
            await asyncio.sleep(chance.uniform(*_REST_S))
            struck_s.append(time.monotonic())
            await fault.strike(fleet, chance)
            await _until_accepting(load)
        await asyncio.sleep(chance.uniform(*_REST_S))
    finally:
        load.stop()
        await running
    history = load.history
    keys = [one.key for one in history.asked]
    return Outcome(
        fault=fault,
        history=history,
        accepted=len({one.job_id for one in history.asked if one.job_id}),
        replayed=len(keys) - len(set(keys)),
        gaps_s=tuple(gap_after(load.accepted_s, at_s) for at_s in struck_s),
        broken=tuple(violations(history)),
    )


async def _until_accepting(load: Load) -> None:
    """Submits are answered again, more than were on their way."""
    async with asyncio.timeout(_PATIENCE_S):
        for _ in range(10):
            await load.answered()


def gap_after(accepted_s: list[float], at_s: float) -> float:
    """The longest time without an answer that begins within three seconds of a strike, in seconds."""
    times = sorted(accepted_s)
    first = max(bisect_right(times, at_s) - 1, 0)
    near = [(later - earlier) for earlier, later in zip(times[first:], times[first + 1 :], strict=False) if earlier <= at_s + 3.0]
    return max(near, default=0.0)
