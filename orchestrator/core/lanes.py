"""Classes of waiting jobs, and in each a lane per tenant: whose job of a class goes next.

Decides order within a class: the tenant that has had least, then acceptance. Must not know places, costs, or other classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from typing import Final

from atoll.model.ids import JobId, TenantId
from orchestrator.core.fairness import WEIGHT_MILLI, Tenant
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.ranking import Key, Ranking
from orchestrator.core.standing import NO_STAND, Stand

# What a class waits for that has no possible place.
NO_POOL: Final = -1
# Who takes a place although others wait for a better one is looked for among so many: whoever stands further back is as well served
# by it, and a decision stays short however long the class.
_NTH_MAX: Final = 64
# What one job more of a tenant is taken to cost when its next turn is guessed: only who goes to which place hangs on it.
_NOMINAL_US: Final = 5_000_000
# A lane is cleared of jobs that left from its midst when it holds this many times more of them than jobs that wait.
_STALE_FACTOR: Final = 2
_STALE_SPARE: Final = 64


class Favour(IntEnum):
    """Why a class goes before its turn. The order is that of going first."""

    AGED = 0  # its oldest job has waited so long that a slot that came free is due to it
    HELD = 1  # a slot was emptied for it: before others of its priority
    NONE = 2


@dataclass(eq=False, slots=True)
class Lane:
    """The jobs of one tenant in one class, as (accept_seq, accepted_us, job); `jobs` counts those that still wait, `first` leads them."""

    job_class: JobClass
    tenant: Tenant
    first: tuple[int, int, JobId]
    heap: list[tuple[int, int, JobId]] = field(default_factory=list)
    jobs: int = 0

    def fair_key(self) -> Key:
        """Where it stands: what its tenant has had, then acceptance."""
        return (self.tenant.virtual_us, self.first[0])

    def age_key(self) -> Key:
        """Where it stands by acceptance."""
        return (self.first[0],)


@dataclass(eq=False, slots=True)
class JobClass:
    """Jobs alike. `members` are all of them with their acceptance numbers. `rest_seq` orders resting classes by when they began to rest."""

    key: ClassKey
    members: dict[JobId, int] = field(default_factory=dict)
    lanes: dict[TenantId, Lane] = field(default_factory=dict)
    resting: bool = False
    wake_us: int = 0
    pool: int = NO_POOL
    stand: Stand = NO_STAND  # while it rests: what it adds to the line of a pool
    patience: int = 0  # while it rests: so many jobs are better off waiting, more need not be looked at one by one
    rest_seq: int = 0
    favour: Favour = Favour.NONE
    _fair: Ranking[Lane] = field(default_factory=lambda: Ranking(Lane.fair_key))
    _oldest: Ranking[Lane] = field(default_factory=lambda: Ranking(Lane.age_key))

    def add(self, tenant: Tenant, accept_seq: int, accepted_us: int, job_id: JobId) -> tuple[Lane, bool]:
        """A job joins its tenant's lane; whether it is the first there."""
        entry = (accept_seq, accepted_us, job_id)
        lane = self.lanes.get(tenant.tenant_id)
        if lane is None:
            lane = self.lanes[tenant.tenant_id] = Lane(self, tenant, entry)
        self.members[job_id] = accept_seq
        heappush(lane.heap, entry)
        lane.jobs += 1
        if len(lane.heap) > _STALE_FACTOR * lane.jobs + _STALE_SPARE:
            lane.heap = sorted({entry for entry in lane.heap if self.members.get(entry[2]) == entry[0]})
        first = entry <= lane.first
        if first:
            lane.first = entry
            self._fair.offer(lane)
            self._oldest.offer(lane)
        return lane, first

    def remove(self, lane: Lane, job_id: JobId) -> int:
        """A job leaves; its acceptance number."""
        accept_seq = self.members.pop(job_id)
        lane.jobs -= 1
        if not lane.jobs:
            del self.lanes[lane.tenant.tenant_id]
            self._fair.withdraw(lane)
            self._oldest.withdraw(lane)
        elif job_id == lane.first[2]:
            heap, members = lane.heap, self.members
            while members.get(heap[0][2]) != heap[0][0]:
                heappop(heap)
            lane.first = heap[0]
        return accept_seq

    def takes_on(self, tenant_id: TenantId) -> bool:
        """Whether the class rests, and one more job of a tenant that waits in it is as well served by waiting too."""
        return self.resting and len(self.members) < self.patience and tenant_id in self.lanes

    @property
    def head(self) -> tuple[int, JobId]:
        """Whose turn it is, as (accept_seq, job). The class must not be empty."""
        lanes = self.lanes
        seq, _, job_id = (next(iter(lanes.values())) if len(lanes) == 1 else self._turn()).first
        return seq, job_id

    @property
    def oldest(self) -> tuple[int, int, JobId]:
        """The job that was accepted first, as (accept_seq, accepted_us, job). The class must not be empty."""
        return self._leading(self._oldest).first

    def nth(self, position: int) -> JobId:
        """The job whose turn comes after `position` others of the class; the last one if there are fewer, the 65th at most."""
        if position <= 0 or self.favour is Favour.AGED:
            return self.head[1]
        *_, found = self._turns(min(position, len(self.members) - 1, _NTH_MAX))
        return found

    def in_turn(self) -> Iterator[JobId]:
        """The first jobs in the order of their turns: a few, however long the class."""
        return self._turns(min(len(self.members) - 1, _NTH_MAX))

    def rank_key(self) -> Key:
        """Where the class stands among others: favour, priority, what the tenant whose turn it is has had, acceptance."""
        return (0, 0, 0, self.oldest[0]) if self.favour is Favour.AGED else (1, self.key.rank, self.favour, *self.fair_key())

    def fair_key(self, pending_us: int = 0) -> Key:
        """Where the class stands among those of its priority; `pending_us`: once the tenant whose turn it is has moved on by so much."""
        lane = self._leading(self._fair)
        return (lane.tenant.virtual_us + pending_us, lane.first[0])

    def age_key(self) -> Key:
        """Where the class stands by its oldest job."""
        return (self.oldest[0],)

    def _turn(self) -> Lane:
        return self._leading(self._oldest if self.favour is Favour.AGED else self._fair)

    def _leading(self, ranking: Ranking[Lane]) -> Lane:
        if len(self.lanes) == 1:
            return next(iter(self.lanes.values()))
        lane = ranking.first()
        assert lane is not None, "a class has jobs"
        return lane

    def _turns(self, last: int) -> Iterator[JobId]:
        """The jobs whose turns come next, from 0 to `last`, as if each moved its tenant on by the same charge."""
        waiting = self._fair.walk()
        next_lane = next(waiting, None)
        turns: list[tuple[int, int, JobId, int, Iterator[tuple[int, JobId]]]] = []
        for _ in range(last + 1):
            while next_lane is not None and (not turns or next_lane[0] < turns[0][:2]):
                jobs = self._in_order(next_lane[1])
                virtual_us = next_lane[1].tenant.virtual_us
                heappush(turns, (virtual_us, *next(jobs), next_lane[1].tenant.weight_milli, jobs))
                next_lane = next(waiting, None)
            virtual_us, _, job_id, weight_milli, jobs = heappop(turns)
            yield job_id
            following = next(jobs, None)
            if following is not None:
                heappush(turns, (virtual_us + _NOMINAL_US * WEIGHT_MILLI // weight_milli, *following, weight_milli, jobs))

    def _in_order(self, lane: Lane) -> Iterator[tuple[int, JobId]]:
        """The waiting jobs of a lane by acceptance, found as they are asked for."""
        heap = lane.heap
        frontier = [(heap[0], 0)]
        told = -1
        while frontier:
            (seq, _, job_id), index = heappop(frontier)
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heappush(frontier, (heap[child], child))
            # A job that left and came back is in the heap twice.
            if self.members.get(job_id) == seq != told:
                told = seq
                yield seq, job_id
