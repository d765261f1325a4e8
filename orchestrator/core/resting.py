"""Resting classes by the pool for which they rest: whose turn it is there, who is the oldest, and how much work they make up.

Decides nothing: one index of the queue. Must not know why a class rests, nor for how long.
"""

from __future__ import annotations

from atoll.model.ids import ModelId
from orchestrator.core.lanes import JobClass, Lane
from orchestrator.core.ranking import Ranking
from orchestrator.core.turns import Turns


class Resting:
    """All resting classes. A class is entered as it is: its pool, and what one of its jobs takes there, stay until it leaves."""

    __slots__ = ("_elders", "_lines", "_turns")

    def __init__(self) -> None:
        self._turns: dict[tuple[int, int], Turns] = {}  # by pool and priority's rank
        self._elders: dict[int, Ranking[JobClass]] = {}  # the same classes by pool and age
        # By pool, priority's rank and model, and of any model (None): how many jobs rest, and for how long their work would hold a slot.
        self._lines: dict[tuple[int, int, ModelId | None], list[int]] = {}

    def enter(self, known: JobClass) -> None:
        """A class rests from now on."""
        where = (known.pool, known.key.rank)
        if where not in self._turns:
            self._turns[where] = Turns()
        if known.pool not in self._elders:
            self._elders[known.pool] = Ranking(JobClass.age_key)
        self._turns[where].enter(known)
        self._elders[known.pool].offer(known)
        self.count(known, len(known.members))

    def leave(self, known: JobClass) -> None:
        """A class rests no longer."""
        self.count(known, -len(known.members))
        where = (known.pool, known.key.rank)
        waiting, elders = self._turns[where], self._elders[known.pool]
        waiting.leave(known)
        elders.withdraw(known)
        if not len(waiting):
            del self._turns[where]
        if not len(elders):
            del self._elders[known.pool]

    def count(self, known: JobClass, jobs: int) -> None:
        """So many more jobs rest in a class."""
        pool, rank, work_us = known.pool, known.key.rank, jobs * known.each_us
        for where in ((pool, rank, known.key.model_id), (pool, rank, None)):
            line = self._lines.get(where)
            if line is None:
                self._lines[where] = [jobs, work_us]
                continue
            line[0] += jobs
            line[1] += work_us
            if not line[0]:
                del self._lines[where]

    def lane_ended(self, lane: Lane) -> None:
        """A tenant has no job any more in a class that rests."""
        self._turns[(lane.job_class.pool, lane.job_class.key.rank)].lane_ended(lane)

    def first(self, pool: int, rank: int) -> JobClass | None:
        """Whose turn it is of those of a priority who rest for a pool."""
        waiting = self._turns.get((pool, rank))
        return waiting.first() if waiting is not None else None

    def elder(self, pool: int) -> JobClass | None:
        """Who of those that rest for a pool has waited longest."""
        elders = self._elders.get(pool)
        return elders.first() if elders is not None else None

    def at(self, pool: int, rank: int, model_id: ModelId | None) -> tuple[int, int]:
        """How many jobs of this rank or a more urgent one rest until this pool frees a slot, and for how many microseconds in all they
        would hold one; of a model, or of any."""
        jobs = work_us = 0
        for urgent in range(rank + 1):
            line = self._lines.get((pool, urgent, model_id))
            if line is not None:
                jobs, work_us = jobs + line[0], work_us + line[1]
        return jobs, work_us
