"""The fleet's queue, indexed by class: who waits, in which order, and when a class is looked at again.

Decides order between classes, and waking. Must not know places or costs. Classes are `ready` (to be scored in this round) or
`resting` until an instant, perhaps for a certain pool. An impossible class rests and costs nothing.

Order: priority, then the tenant that has had least (`fairness`), then acceptance. Ageing: while a job rests for a pool that has
waited longer than `ageing_ms`, at least one of every `aged_every` slots that come free there is offered to the oldest such job before
anybody else. So a job that is k-th oldest of those is offered a slot after at most (k + 1) x aged_every slots came free, whatever
urgent work arrives, and that work keeps the other slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import JobId, ModelId, TenantId
from atoll.model.job import PRIORITY_RANK
from orchestrator.core.fairness import Shares, ShareSnapshot, Tenant, normalised_us
from orchestrator.core.lanes import NO_POOL, Favour, JobClass, Lane
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.policy import Policy
from orchestrator.core.positions import Positions
from orchestrator.core.ranking import Ranking
from orchestrator.core.resting import Resting
from orchestrator.core.standing import NO_STAND, Stand
from orchestrator.core.turns import Turns

__all__ = ["NO_POOL", "Favour", "JobClass", "Queue", "QueueSnapshot"]

# When a slot frees, this many of the classes that wait for its pool are scored again: the first may have found a better place
# meanwhile, more only compete for the same slot.
_WOKEN_PER_SLOT: Final = 2
# Of those who wait for another pool, of each priority: where they wait they are better off, mostly.
_WOKEN_ELSEWHERE: Final = 1
# A tenth of a millisecond: what scoring a class takes on the orchestrator's core.
_LOOK_US: Final = 100
# While a class is held, all who join it are, however many.
_ENDLESS: Final = 2**40
_RANKS: Final = sorted(PRIORITY_RANK.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """What of the queue does not follow from the jobs that wait. `favoured` names ready classes by one of their jobs."""

    favoured: tuple[tuple[JobId, Favour], ...]
    turns: tuple[tuple[int, int], ...]
    mean_charge_us: int
    virtual_us: int
    largest_us: int
    shares: tuple[ShareSnapshot, ...]


class Queue:
    """Classes of waiting jobs."""

    __slots__ = (
        "_by_model",
        "_every",
        "_favoured",
        "_jobs",
        "_lanes",
        "_positions",
        "_ready",
        "_rest_seq",
        "_turns",
        "_wakes",
        "ageing_us",
        "classes",
        "resting",
        "shares",
    )

    def __init__(self, policy: Policy) -> None:
        self.classes: dict[ClassKey, JobClass] = {}
        self._ready = {rank: Turns() for rank in _RANKS}
        self._favoured: Ranking[JobClass] = Ranking(JobClass.rank_key)  # ready classes that go before their turn
        self.shares = Shares(policy.tenant_weight_milli)
        self.ageing_us = policy.ageing_ms * 1_000
        self._every = policy.aged_every
        self._jobs: dict[JobId, tuple[JobClass, Lane]] = {}
        self._lanes: Counter[TenantId] = Counter()  # in how many classes a tenant waits
        self._turns: dict[int, int] = {}  # by pool: slots that came free since one was offered to an aged job
        self._by_model: dict[ModelId, dict[ClassKey, None]] = {}
        self.resting = Resting()
        self._wakes: list[tuple[int, int, ClassKey]] = []
        self._rest_seq = 0
        self._positions = Positions()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._jobs

    def told_time(self, now_us: int) -> None:
        """The time of the event at hand."""
        self.shares.now_us = now_us

    def class_key(self, job_id: JobId) -> ClassKey | None:
        """The class in which a job waits, if it does."""
        known = self._jobs.get(job_id)
        return None if known is None else known[0].key

    def add(self, key: ClassKey, accept_seq: int, job_id: JobId, tenant: TenantId, accepted_us: int) -> None:
        """A job begins to wait; its class is scored in this round."""
        known = self.classes.get(key)
        if known is None:
            known = self.classes[key] = JobClass(key)
            self._by_model.setdefault(key.model_id, {})[key] = None
        if known.resting and self._joins_line(known, accept_seq, job_id, tenant, accepted_us):
            return
        self._unrest(known)
        account = self.shares.began_waiting(tenant)
        lane, first = known.add(account, accept_seq, accepted_us, job_id)
        self._jobs[job_id] = (known, lane)
        self._lanes[tenant] += lane.jobs == 1
        self._positions.add(key.rank, account, accept_seq)
        if known in self._favoured:
            self._favoured.offer(known)
        elif first or known not in self._ready[key.rank]:
            self._ready[key.rank].enter(known)

    def _joins_line(self, known: JobClass, accept_seq: int, job_id: JobId, tenant: TenantId, accepted_us: int) -> bool:
        """Whether a job stands behind others of its tenant in a class that rests, and waits as well as they do: nothing is scored then."""
        lane = known.lanes.get(tenant)
        if lane is None or not known.takes_on(tenant) or accept_seq < lane.first[0]:
            return False
        account = self.shares.began_waiting(tenant)
        known.add(account, accept_seq, accepted_us, job_id)
        self._jobs[job_id] = (known, lane)
        self._positions.add(known.key.rank, account, accept_seq)
        self.resting.count(known, 1)
        return True

    def discard(self, job_id: JobId) -> bool:
        """A job waits no longer. Whether it did."""
        where = self._jobs.pop(job_id, None)
        if where is None:
            return False
        known, lane = where
        key = known.key
        if known.resting:
            self.resting.count(known, -1)
        self._positions.remove(key.rank, lane.tenant, known.remove(lane, job_id))
        if not lane.jobs:
            self._lanes[lane.tenant.tenant_id] -= 1
            if not self._lanes[lane.tenant.tenant_id]:
                del self._lanes[lane.tenant.tenant_id]
            (self.resting if known.resting else self._ready[key.rank]).lane_ended(lane)
        if not known.members:
            self._unrest(known)
            self._unready(known)
            del self.classes[key]
            models = self._by_model[key.model_id]
            del models[key]
            if not models:
                del self._by_model[key.model_id]
        self.shares.left(lane.tenant)
        return True

    def charge(self, tenant: TenantId, exec_us: int, gpu: GpuType, gpus: int) -> int:
        """A job of this tenant is bound: what its share is charged, to be settled when the attempt ends (`shares.settle`)."""
        charge_us = normalised_us(exec_us, gpu, gpus)
        self.shares.charge(tenant, charge_us)
        self._positions.charged(charge_us)
        return charge_us

    def rest(self, key: ClassKey, wake_us: int, pool: int, patience: int = 0, stand: Stand = NO_STAND) -> None:
        """Nothing to bind for this class now: look again at `wake_us`, when the pool of this index frees a slot, or when more than
        `patience` jobs wait: so many are better off waiting than anywhere they could begin now. `stand`: what it adds to which line."""
        known = self.classes[key]
        self._unrest(known)
        self._unready(known)
        self._rest_seq += 1
        known.favour = Favour.NONE
        known.resting, known.wake_us, known.pool, known.rest_seq = True, wake_us, pool, self._rest_seq
        known.patience, known.stand = patience, stand
        self.resting.enter(known)
        heappush(self._wakes, (wake_us, known.rest_seq, key))

    def hold(self, job_id: JobId, since_us: int, until_us: int) -> None:
        """Score the class of this job at `until_us` and not in this round, if all who wait in it were accepted after `since_us`."""
        known, _ = self._jobs.get(job_id, (None, None))
        if known is not None and not known.resting and known not in self._favoured and known.oldest[1] > since_us:
            self.rest(known.key, until_us, NO_POOL, _ENDLESS)

    def looked_at(self, known: JobClass) -> None:
        """A class was scored and nothing was bound: a tenant that waits in several classes pays for that what it took. Else one with jobs
        of ten thousand shapes would keep all others from being looked at."""
        tenant = self._whose(known)
        if self._lanes[tenant.tenant_id] > 1:
            self.shares.spend(tenant, _LOOK_US)

    def looks_ahead(self, known: JobClass) -> int:
        """How many looks it takes until the tenant whose turn it is in a class has looked at all of its classes, and each tenant that
        waits at as many."""
        return self._lanes[self._whose(known).tenant_id] * len(self._lanes)

    def _whose(self, known: JobClass) -> Tenant:
        return self._jobs[known.head[1]][1].tenant

    def _unready(self, known: JobClass) -> None:
        self._ready[known.key.rank].leave(known)
        self._favoured.withdraw(known)

    def _unrest(self, known: JobClass) -> None:
        if not known.resting:
            return
        known.resting = False
        self.resting.leave(known)

    def wake(self, key: ClassKey, favour: Favour = Favour.NONE) -> None:
        """Score this class in this round, before its turn if it is favoured. A favour lasts until it rests again or one job is bound."""
        known = self.classes.get(key)
        if known is None:
            return
        self._unrest(known)
        if favour < known.favour:
            self._unready(known)
            known.favour = favour
            self._favoured.offer(known)
        elif known.favour is Favour.NONE and known not in self._ready[key.rank]:
            self._ready[key.rank].enter(known)

    def favour(self, job_id: JobId, pool: int, *, stopped: bool) -> None:
        """A slot of this pool is empty that was kept for this job, `stopped`: by stopping others, so it counts as taken. Its class goes
        before its turn, if it still waits."""
        known, _ = self._jobs.get(job_id, (None, None))
        if known is not None:
            if stopped:
                self.count_turn(known, pool)
            self.wake(known.key, Favour.HELD if stopped or not self.is_aged(known) else Favour.AGED)

    def bound(self, known: JobClass) -> None:
        """A job of this class took a place (and left the queue): a favour is used up."""
        if known.favour is Favour.NONE:
            return
        known.favour = Favour.NONE
        if known in self._favoured:
            self._favoured.withdraw(known)
            self._ready[known.key.rank].enter(known)

    def wake_for_slot(self, pool: int, *, offered: bool = True) -> None:
        """A slot of this pool came free: wake the first few that wait for it, in order; before them, if its turn has come, an aged one.
        Whoever waits for another pool may take it too: where fewer wait for this one, and before those of a lower priority, the first who
        rest elsewhere are woken. A slot that is not `offered` is claimed for a gang, or was emptied for a job: it may be lent, or left to
        others, but is nobody's turn."""
        elder, left = self.resting.elder(pool), _WOKEN_PER_SLOT
        if elder is not None and offered:
            turn = min(self._turns.get(pool, 0) + 1, self._every)
            if turn == self._every and self.is_aged(elder):
                self.wake(elder.key, Favour.AGED)
                left, turn = left - 1, 0
            self._turns[pool] = turn
        for rank in _RANKS:
            while left and (first := self.resting.first(pool, rank)) is not None:
                self.wake(first.key)
                left -= 1
            if not left:
                return
            if pool == NO_POOL:
                continue
            # Nobody of this priority waits for this pool any more: those who wait for another one may take it before lower ones do.
            for _ in range(_WOKEN_ELSEWHERE):
                if (first := self.resting.elsewhere(pool, rank)) is not None:
                    self.wake(first.key)

    def is_aged(self, known: JobClass) -> bool:
        """Whether its oldest job waits longer than any priority is meant to cost."""
        return self.shares.now_us - known.oldest[1] >= self.ageing_us

    def count_turn(self, known: JobClass, pool: int) -> None:
        """Slots of this pool went to who had claimed them, or for whom they were emptied: to the aged as their due; else they count among
        those of which aged jobs are due a share."""
        if self.resting.elder(pool) is not None:
            self._turns[pool] = 0 if self.is_aged(known) else min(self._turns.get(pool, 0) + known.key.gang_size, self._every)

    def has_turn(self, known: JobClass, pool: int, pending_us: int = 0) -> bool:
        """Whether nobody who rests for this pool goes before a class, once its tenant has moved on by what it is about to have: none in the
        order of turns, unless a slot is due to it as the oldest of those that are aged, and none that is older if a slot is due to that."""
        aged, elder = self.is_aged(known), self.resting.elder(pool)
        older = elder is not None and elder is not known and self.is_aged(elder) and (not aged or elder.age_key() < known.age_key())
        due = elder is None or self._turns.get(pool, 0) + 1 >= self._every
        if due and (older or (aged and pending_us <= 0)):
            return not older
        if any(self.resting.first(pool, rank) is not None for rank in _RANKS if rank < known.key.rank):
            return False
        first = self.resting.first(pool, known.key.rank)
        return first is None or first is known or known.fair_key(pending_us) < first.fair_key()

    def wake_model(self, model_id: ModelId) -> None:
        """A copy of this model appeared somewhere: wake its classes."""
        for key in list(self._by_model.get(model_id, ())):
            self.wake(key)

    def forget_pools(self) -> None:
        """Pools were renumbered: no class waits for a certain one any more, all are looked at again."""
        self._turns.clear()
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

    def first_ready(self) -> JobClass | None:
        """The ready class whose turn it is; None: all rest. After each bound job another one's turn may have come."""
        favoured = self._favoured.first() if len(self._favoured) else None
        for rank, ready in self._ready.items():
            if favoured is not None and (favoured.favour is Favour.AGED or favoured.key.rank == rank):
                return favoured
            if len(ready):
                return ready.first()
        return None

    def rivals(self, first: JobClass, most: int) -> list[JobClass]:
        """The ready classes of the priority of this one, whose turn it is, if they are at most so many; itself alone if they are more,
        or if it goes before its turn."""
        if first in self._favoured:
            return [first]
        return self._ready[first.key.rank].few(most) or [first]

    def is_ready(self, known: JobClass) -> bool:
        """Whether a class is to be scored in this round."""
        return known in self._favoured or known in self._ready[known.key.rank]

    def in_order(self) -> list[ClassKey]:
        """All ready classes in the order of their turns as of now: for snapshots and tests, since it sorts."""
        ready = [*self._favoured, *(known for turns in self._ready.values() for known in turns)]
        return [known.key for known in sorted(ready, key=JobClass.rank_key)]

    def waiting_for(self, model_id: ModelId) -> int:
        """How many jobs wait for a model."""
        return sum(len(self.classes[key].members) for key in self._by_model.get(model_id, ()))

    def ahead_of(self, job_id: JobId) -> int:
        """How many waiting jobs are likely to go before this one (see `positions`)."""
        known, lane = self._jobs[job_id]
        return self._positions.ahead(known.key.rank, lane.tenant, known.members[job_id], self.shares.virtual_us)

    def ahead_of_next(self, tenant_id: TenantId, rank: int) -> int:
        """How many waiting jobs are likely to go before the next one of this tenant and priority."""
        weight_milli, lead_us = self.shares.standing(tenant_id)
        return self._positions.ahead_of_next(rank, tenant_id, weight_milli, lead_us)

    def depth_by_priority(self) -> Iterator[tuple[str, int]]:
        """How many wait, by priority."""
        yield from self._positions.depths()

    def resting_in_order(self) -> Iterable[JobClass]:
        """Resting classes by when they began to, for snapshots."""
        return sorted((known for known in self.classes.values() if known.resting), key=lambda known: known.rest_seq)

    def take(self) -> QueueSnapshot:
        """What a snapshot needs beside the jobs, and which classes are ready and resting."""
        return QueueSnapshot(
            favoured=tuple((known.head[1], known.favour) for known in sorted(self._favoured, key=JobClass.rank_key)),
            turns=tuple(sorted(self._turns.items())),
            mean_charge_us=self._positions.mean_us,
            virtual_us=self.shares.virtual_us,
            largest_us=self.shares.largest_us,
            shares=self.shares.take(),
        )

    def restore(self, told: QueueSnapshot, resting: Iterable[tuple[JobId, int, int, int, Stand]], ready: Iterable[JobId]) -> None:
        """Go on as told, once every job that waits was added and every charge adopted. `resting`: the arguments of `rest`, by job."""
        self.shares.restore(told.virtual_us, told.largest_us, told.shares)
        self._positions.mean_us = told.mean_charge_us
        self._turns = dict(told.turns)
        for job_id, wake_us, pool, patience, stand in resting:
            if job_id in self._jobs:
                self.rest(self._jobs[job_id][0].key, wake_us, pool, patience, stand)
        favours = dict(told.favoured)
        for job_id in ready:
            if job_id in self._jobs:
                self.wake(self._jobs[job_id][0].key, favours.get(job_id, Favour.NONE))
