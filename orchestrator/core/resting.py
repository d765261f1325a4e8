"""Resting classes by the pool for which they rest: whose turn it is there, who is the oldest, and how long the line is.

Decides nothing: one index of the queue. Must not know why a class rests, nor for how long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orchestrator.core.lanes import NO_POOL, JobClass, Lane
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.ranking import Ranking
from orchestrator.core.standing import EVERYWHERE, Queued
from orchestrator.core.turns import Turns

_NOBODY: Final[Mapping[int, Turns]] = {}


class Resting:
    """All resting classes. A class is entered as it is: its pool, and what one of its jobs takes there, stay until it leaves."""

    __slots__ = ("_elders", "_lines", "_turns")

    def __init__(self) -> None:
        self._turns: dict[int, dict[int, Turns]] = {}  # by priority's rank and pool
        self._elders: dict[int, Ranking[JobClass]] = {}  # the same classes by pool and age
        self._lines: dict[tuple[int, int, bool], Queued] = {}  # by pool, priority's rank, and whether any slot of it will do

    def enter(self, known: JobClass) -> None:
        """A class rests from now on."""
        there = self._turns.setdefault(known.key.rank, {})
        if known.pool not in there:
            there[known.pool] = Turns()
        if known.pool not in self._elders:
            self._elders[known.pool] = Ranking(JobClass.age_key)
        there[known.pool].enter(known)
        self._elders[known.pool].offer(known)
        self._count(known, 1, len(known.members))

    def leave(self, known: JobClass) -> None:
        """A class rests no longer."""
        self._count(known, -1, -len(known.members))
        there, elders = self._turns[known.key.rank], self._elders[known.pool]
        waiting = there[known.pool]
        waiting.leave(known)
        elders.withdraw(known)
        if not len(waiting):
            del there[known.pool]
        if not len(elders):
            del self._elders[known.pool]

    def count(self, known: JobClass, jobs: int) -> None:
        """So many more jobs rest in a class."""
        self._count(known, 0, jobs)

    def _count(self, known: JobClass, classes: int, jobs: int) -> None:
        key, stand = known.key, known.stand
        for told in stand.lines:
            where = (told[0], key.rank, stand.cold)
            line = self._lines.get(where)
            if line is None:
                line = self._lines[where] = Queued()
            line.add((key.model_id, key.gang_size), stand, told, classes, jobs)
            if not line.crowds:
                del self._lines[where]

    def lane_ended(self, lane: Lane) -> None:
        """A tenant has no job any more in a class that rests."""
        self._turns[lane.job_class.key.rank][lane.job_class.pool].lane_ended(lane)

    def first(self, pool: int, rank: int) -> JobClass | None:
        """Whose turn it is of those of a priority who rest for a pool."""
        waiting = self._turns.get(rank, _NOBODY).get(pool)
        return waiting.first() if waiting is not None else None

    def elsewhere(self, pool: int, rank: int) -> JobClass | None:
        """Whose turn it is of those of a priority who rest for other pools than this one, not for want of any."""
        firsts = [waiting.first() for where, waiting in self._turns.get(rank, _NOBODY).items() if where not in (pool, NO_POOL)]
        return min((first for first in firsts if first is not None), key=JobClass.fair_key, default=None)

    def elder(self, pool: int) -> JobClass | None:
        """Who of those that rest for a pool has waited longest."""
        elders = self._elders.get(pool)
        return elders.first() if elders is not None else None

    def before(self, pool: int, key: ClassKey, known: JobClass | None, *, cold: bool) -> list[Queued]:
        """Those as urgent as a class, or more so, who stand in line for slots of a pool that have their model, or for any slot of it; but
        for its own jobs, `known`."""
        lines = self._lines
        if not lines:
            return []
        found: list[Queued] = []
        rests = known is not None and known.resting and known.stand.cold is cold
        for where in (pool, EVERYWHERE):
            for rank in range(key.rank + 1):
                line = lines.get((where, rank, cold))
                if line is not None:
                    found.append(line)
            own = next((told for told in known.stand.lines if told[0] == where), None) if known is not None and rests else None
            if known is not None and own is not None:
                found[-1] = found[-1].without((key.model_id, key.gang_size), known.stand, own, len(known.members))
        return found
