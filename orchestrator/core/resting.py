"""Resting classes by the pool for which they rest: whose turn it is there, who is the oldest, and how much work they make up.

Decides nothing: one index of the queue. Must not know why a class rests, nor for how long.
"""

from __future__ import annotations

from collections import Counter

from atoll.model.ids import ModelId
from orchestrator.core.lanes import JobClass, Lane
from orchestrator.core.ranking import Ranking
from orchestrator.core.turns import Turns


class Resting:
    """All resting classes. A class is entered as it is: its pool, and what one of its jobs takes there, stay until it leaves."""

    __slots__ = ("_elders", "_jobs", "_turns", "_work_us")

    def __init__(self) -> None:
        self._turns: dict[tuple[int, int], Turns] = {}  # by pool and priority's rank
        self._elders: dict[int, Ranking[JobClass]] = {}  # the same classes by pool and age
        # How many jobs rest, by pool, priority's rank and model, and of any model (None); for how long their work would hold a slot.
        self._jobs: Counter[tuple[int, int, ModelId | None]] = Counter()
        self._work_us: Counter[tuple[int, int, ModelId | None]] = Counter()

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
        for model_id in (known.key.model_id, None):
            where = (known.pool, known.key.rank, model_id)
            self._jobs[where] += jobs
            self._work_us[where] += jobs * known.each_us
            if not self._jobs[where]:
                del self._jobs[where], self._work_us[where]

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
        where = [(pool, urgent, model_id) for urgent in range(rank + 1)]
        return sum(self._jobs[one] for one in where), sum(self._work_us[one] for one in where)
