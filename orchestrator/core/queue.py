"""The fleet's queue, indexed by class: who waits, in which order, and when a class is looked at again.

Decides order within and between classes, and waking. Must not know places or costs. Classes are `ready` (to be scored in this round) or
`resting` until an instant, perhaps for a certain pool. An impossible class rests and costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from atoll.model.ids import JobId, ModelId
from atoll.model.job import PRIORITY_RANK
from orchestrator.core.placement.classes import ClassKey

# When a slot frees, this many of the classes that wait for its pool are scored again: the first may have found a better place
# meanwhile, more only compete for the same slot.
_WOKEN_PER_SLOT = 2
# What a class waits for that has no possible place.
NO_POOL: Final = -1


@dataclass(slots=True, kw_only=True)
class JobClass:
    """Jobs alike, in order of acceptance. `rest_seq` orders resting classes by when they began to rest."""

    key: ClassKey
    order: deque[tuple[int, JobId]] = field(default_factory=deque)
    members: dict[JobId, int] = field(default_factory=dict)
    resting: bool = False
    wake_us: int = 0
    pool: int = NO_POOL
    rest_seq: int = 0

    def trim(self) -> None:
        """Drop jobs that left the queue from the head."""
        while self.order and self.members.get(self.order[0][1]) != self.order[0][0]:
            self.order.popleft()

    @property
    def head(self) -> tuple[int, JobId]:
        """The first job, as (accept_seq, job). The class must not be empty."""
        self.trim()
        return self.order[0]

    def nth(self, position: int) -> JobId:
        """The job at this position, from 0; the last one if there are fewer."""
        self.trim()
        if position <= 0:
            return self.order[0][1]
        found = self.order[0][1]
        for seq, job_id in self.order:
            if self.members.get(job_id) == seq:
                found = job_id
                if position == 0:
                    break
                position -= 1
        return found


class Queue:
    """Classes of waiting jobs."""

    __slots__ = ("_by_model", "_by_pool", "_class_of", "_rest_seq", "_resting", "_wakes", "classes", "ready")

    def __init__(self) -> None:
        self.classes: dict[ClassKey, JobClass] = {}
        self.ready: dict[ClassKey, None] = {}
        self._class_of: dict[JobId, ClassKey] = {}
        self._by_pool: dict[tuple[int, int], dict[ClassKey, None]] = {}  # by pool and priority's rank
        self._by_model: dict[ModelId, dict[ClassKey, None]] = {}
        # How many jobs rest, by pool, priority's rank and model, and of any model (None).
        self._resting: Counter[tuple[int, int, ModelId | None]] = Counter()
        self._wakes: list[tuple[int, int, ClassKey]] = []
        self._rest_seq = 0

    def __len__(self) -> int:
        return len(self._class_of)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._class_of

    def class_key(self, job_id: JobId) -> ClassKey | None:
        """The class in which a job waits, if it does."""
        return self._class_of.get(job_id)

    def add(self, key: ClassKey, accept_seq: int, job_id: JobId) -> None:
        """A job begins to wait; its class is scored in this round."""
        known = self.classes.get(key)
        if known is None:
            known = self.classes[key] = JobClass(key=key)
            self._by_model.setdefault(key.model_id, {})[key] = None
        known.trim()
        entry = (accept_seq, job_id)
        if not known.order or known.order[-1] < entry:
            known.order.append(entry)
        elif entry < known.order[0]:
            known.order.appendleft(entry)
        else:
            known.order.insert(bisect_left(known.order, entry), entry)
        known.members[job_id] = accept_seq
        self._class_of[job_id] = key
        self.wake(key)

    def discard(self, job_id: JobId) -> bool:
        """A job waits no longer. Whether it did."""
        key = self._class_of.pop(job_id, None)
        if key is None:
            return False
        known = self.classes[key]
        del known.members[job_id]
        if known.resting:
            self._count(known, -1)
        if not known.members:
            self._unrest(known)
            self.ready.pop(key, None)
            del self.classes[key]
            models = self._by_model[key.model_id]
            del models[key]
            if not models:
                del self._by_model[key.model_id]
        return True

    def rest(self, key: ClassKey, wake_us: int, pool: int) -> None:
        """Nothing to bind for this class now: look again at `wake_us`, or when the pool of this index frees a slot."""
        known = self.classes[key]
        self._unrest(known)
        self.ready.pop(key, None)
        self._rest_seq += 1
        known.resting, known.wake_us, known.pool, known.rest_seq = True, wake_us, pool, self._rest_seq
        self._by_pool.setdefault((pool, key.rank), {})[key] = None
        self._count(known, len(known.members))
        heappush(self._wakes, (wake_us, known.rest_seq, key))

    def _unrest(self, known: JobClass) -> None:
        if known.resting:
            known.resting = False
            self._count(known, -len(known.members))
            where = (known.pool, known.key.rank)
            waiting = self._by_pool[where]
            waiting.pop(known.key, None)
            if not waiting:
                del self._by_pool[where]

    def _count(self, known: JobClass, jobs: int) -> None:
        for model_id in (known.key.model_id, None):
            where = (known.pool, known.key.rank, model_id)
            self._resting[where] += jobs
            if not self._resting[where]:
                del self._resting[where]

    def resting_at(self, pool: int, rank: int, model_id: ModelId | None) -> int:
        """How many jobs of this rank or a more urgent one rest until this pool frees a slot; of a model, or of any."""
        return sum(self._resting[(pool, urgent, model_id)] for urgent in range(rank + 1))

    def wake(self, key: ClassKey) -> None:
        """Score this class in this round."""
        known = self.classes.get(key)
        if known is not None:
            self._unrest(known)
            self.ready[key] = None

    def wake_for_slot(self, pool: int) -> None:
        """A slot of this pool came free: wake the first few that wait for it, by priority, then by how long they have rested."""
        left = _WOKEN_PER_SLOT
        for rank in sorted(PRIORITY_RANK.values()):
            for key in _first(self._by_pool.get((pool, rank), ()), left):
                self.wake(key)
                left -= 1

    def wake_model(self, model_id: ModelId) -> None:
        """A copy of this model appeared somewhere: wake its classes."""
        for key in list(self._by_model.get(model_id, ())):
            self.wake(key)

    def forget_pools(self) -> None:
        """Pools were renumbered: no class waits for a certain one any more, all are looked at again."""
        self.wake_all()

    def wake_all(self) -> None:
        """The fleet changed: look at everything again."""
        for key in list(self.classes):
            self.wake(key)

    def wake_due(self, now_us: int) -> None:
        """Wake classes whose rest is over."""
        while self._wakes and self._wakes[0][0] <= now_us:
            _, rest_seq, key = heappop(self._wakes)
            known = self.classes.get(key)
            if known is not None and known.resting and known.rest_seq == rest_seq:
                self.wake(key)

    def next_wake_us(self) -> int | None:
        """When the next class wants to be looked at; None if none rests."""
        while self._wakes:
            wake_us, rest_seq, key = self._wakes[0]
            known = self.classes.get(key)
            if known is not None and known.resting and known.rest_seq == rest_seq:
                return wake_us
            heappop(self._wakes)
        return None

    def in_order(self) -> list[ClassKey]:
        """Ready classes: by priority, then by their first job's acceptance."""
        return sorted(self.ready, key=lambda key: (key.rank, self.classes[key].head))

    def members_of_model(self, model_id: ModelId) -> list[JobId]:
        """All jobs that wait for a model."""
        return [job_id for key in self._by_model.get(model_id, ()) for job_id in self.classes[key].members]

    def ahead_of(self, job_id: JobId) -> int:
        """How many waiting jobs come before this one, by priority and acceptance."""
        key = self._class_of[job_id]
        mine = (key.rank, self.classes[key].members[job_id])
        return sum(1 for other in self.classes.values() for seq in other.members.values() if (other.key.rank, seq) < mine)

    def depth_by_priority(self) -> Iterator[tuple[str, int]]:
        """How many wait, by priority."""
        counts: dict[str, int] = {}
        for known in self.classes.values():
            counts[known.key.priority] = counts.get(known.key.priority, 0) + len(known.members)
        yield from sorted(counts.items())

    def resting_in_order(self) -> Iterable[JobClass]:
        """Resting classes by when they began to, for snapshots."""
        return sorted((known for known in self.classes.values() if known.resting), key=lambda known: known.rest_seq)


def _first(keys: Iterable[ClassKey], count: int) -> list[ClassKey]:
    chosen: list[ClassKey] = []
    for key in keys:
        if len(chosen) >= count:
            break
        chosen.append(key)
    return chosen
