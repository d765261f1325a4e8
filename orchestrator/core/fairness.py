"""Shares: who of the tenants goes first, by what each has had in normalised GPU-seconds of execution over its weight.

Start-time fair queueing. Each tenant has a virtual time; a job that is bound moves it on by the predicted execution, normalised by
the speed of the GPU, over the tenant's weight; the tenant with the least virtual time goes first. When the attempt ends, the
difference to the actual is added, or kept as a credit against the next charges: virtual times never fall, which is what lets every
order built on them be lazy.

Fetches and loads are charged to nobody, although a job holds its slot for them: where models are loaded, and when they leave, the fleet
decides, and whoever comes next finds them there. So what slots are held for may differ from the weights where one tenant's models have to
be loaded and another's have not. Charging for all of that would keep the former from slots twice: who has to load goes later anyway.

A tenant that was idle begins where those are that are being served: it gets no credit for the past. One that used capacity nobody
else could use is not held back for longer than `_MEMORY_US`, or a few of the largest jobs, one whose jobs were impossible for a while
does not make up for more than that. Decides order between tenants only. Must not know jobs, classes or places. A fleet without any
work forgets all of it, and so does a restart from the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import TenantId
from orchestrator.core.ranking import Key, Ranking

WEIGHT_MILLI: Final = 1_000
# Half-precision speed of the GPU in whose seconds shares are counted: an A100, because most published latencies are of one.
_REFERENCE_FLOPS: Final = 312 * 10**12
# How far a tenant's virtual time may be from that of the others and still count: ten minutes of one reference GPU. Where all compete
# for the same GPUs nobody is further away than one job; further is whoever had capacity for itself, and that harmed nobody.
_MEMORY_US: Final = 600 * 1_000_000
# Or as far as so many of the largest jobs, where they are larger than that: a tenant of gangs waits for blocks to drain while others have
# what comes free one by one, and would never be given what it is behind by if that was forgotten job by job.
_MEMORY_JOBS: Final = 4
# How fast the largest job is forgotten: by a 256th with each that is bound.
_FORGOTTEN_BITS: Final = 8
# A tenant that waits and was last served so long ago takes no part in the competition just now: its jobs are impossible, or of low
# priority.
_RECENT_US: Final = 600 * 1_000_000
# Tenants without work whose virtual time is ahead are remembered up to this many: 100 bytes each, ten times the tenants of the
# largest fleet.
_IDLE_MAX: Final = 100_000


def normalised_us(exec_us: int, gpu: GpuType, gpus: int) -> int:
    """Microseconds of the reference GPU that an execution of this length on so many GPUs of this type is worth; at least 1."""
    speed = gpu.fp16_flops or gpu.fp32_flops
    return max(exec_us * gpus * speed // _REFERENCE_FLOPS, 1)


@dataclass(eq=False, slots=True, kw_only=True)
class Tenant:
    """One tenant's account. `queued` jobs wait, `in_flight` charges are not settled; `credit_us` is what it was charged too much."""

    tenant_id: TenantId
    weight_milli: int
    virtual_us: int = 0
    credit_us: int = 0
    served_us: int = 0  # when a job of it was last bound
    queued: int = 0
    in_flight: int = 0


def _virtual(tenant: Tenant) -> Key:
    return (tenant.virtual_us, tenant.tenant_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSnapshot:
    """A tenant's account; `served`: it takes part in the competition."""

    tenant: TenantId
    virtual_us: int
    credit_us: int
    served_us: int
    served: bool


class Shares:
    """All accounts. `now_us` is told before each event. `virtual_us` is where a tenant begins that was idle."""

    __slots__ = ("_active", "_idle", "_served", "_weights", "largest_us", "now_us", "tenants", "virtual_us")

    def __init__(self, weights_milli: Mapping[TenantId, int]) -> None:
        self._weights = weights_milli
        self.tenants: dict[TenantId, Tenant] = {}
        self.virtual_us = 0
        self.largest_us = 0  # what the largest job of late was charged
        self.now_us = 0
        self._active = 0
        self._served: Ranking[Tenant] = Ranking(_virtual)
        self._idle: Ranking[Tenant] = Ranking(_virtual)

    def weight_milli(self, tenant_id: TenantId) -> int:
        """What this tenant's share is worth; all others have 1,000."""
        return self._weights.get(tenant_id, WEIGHT_MILLI)

    def standing(self, tenant_id: TenantId) -> tuple[int, int]:
        """(weight, by how much the tenant is ahead of where those begin that were idle)."""
        tenant = self.tenants.get(tenant_id)
        lead_us = max(tenant.virtual_us - self.virtual_us, 0) if tenant is not None else 0
        return self.weight_milli(tenant_id), lead_us

    def began_waiting(self, tenant_id: TenantId) -> Tenant:
        """A job of this tenant waits."""
        tenant = self._woken(tenant_id)
        tenant.queued += 1
        return tenant

    def left(self, tenant: Tenant) -> None:
        """A job of this tenant waits no longer: it was bound (and charged before) or ended."""
        tenant.queued -= 1
        self._retire(tenant)

    def charge(self, tenant_id: TenantId, charge_us: int) -> None:
        """A job is bound that is predicted to take so much. Every charge is settled once."""
        tenant = self._woken(tenant_id)
        floor_us = self._advance()
        self.largest_us = max(charge_us, self.largest_us - (self.largest_us >> _FORGOTTEN_BITS))
        memory_us = max(_MEMORY_US, _MEMORY_JOBS * self.largest_us)
        start_us = min(max(tenant.virtual_us, floor_us - memory_us), floor_us + memory_us)
        self._move(tenant, start_us, charge_us)
        tenant.in_flight += 1
        tenant.served_us = self.now_us
        if tenant not in self._served:
            self._served.offer(tenant)

    def spend(self, tenant: Tenant, cost_us: int) -> None:
        """What a tenant that waits costs beside GPUs moves it on too."""
        self._move(tenant, tenant.virtual_us, cost_us)

    def settle(self, tenant_id: TenantId, charged_us: int, actual_us: int) -> None:
        """A bound job ended: what it really took replaces what was charged."""
        tenant = self.tenants[tenant_id]
        if actual_us > charged_us:
            self._move(tenant, tenant.virtual_us, actual_us - charged_us)
        else:
            tenant.credit_us += (charged_us - actual_us) * WEIGHT_MILLI // tenant.weight_milli
        tenant.in_flight -= 1
        self._retire(tenant)

    def adopt(self, tenant_id: TenantId) -> None:
        """After a restore: a charge of this tenant is still to be settled."""
        self._woken(tenant_id).in_flight += 1

    def take(self) -> tuple[ShareSnapshot, ...]:
        """All accounts, by name."""
        return tuple(
            ShareSnapshot(
                tenant=tenant.tenant_id,
                virtual_us=tenant.virtual_us,
                credit_us=tenant.credit_us,
                served_us=tenant.served_us,
                served=tenant in self._served,
            )
            for _, tenant in sorted(self.tenants.items())
        )

    def restore(self, virtual_us: int, largest_us: int, accounts: tuple[ShareSnapshot, ...]) -> None:
        """Go on with these accounts, once every job waits and every charge is adopted again."""
        self.virtual_us, self.largest_us = virtual_us, largest_us
        for account in accounts:
            tenant = self._of(account.tenant)
            tenant.virtual_us, tenant.credit_us, tenant.served_us = account.virtual_us, account.credit_us, account.served_us
            if account.served:
                self._served.offer(tenant)
            if not tenant.queued and not tenant.in_flight:
                self._idle.offer(tenant)

    def _of(self, tenant_id: TenantId) -> Tenant:
        tenant = self.tenants.get(tenant_id)
        if tenant is None:
            tenant = self.tenants[tenant_id] = Tenant(tenant_id=tenant_id, weight_milli=self.weight_milli(tenant_id))
        return tenant

    def _woken(self, tenant_id: TenantId) -> Tenant:
        """The tenant, beginning no earlier than the others if it was idle. A credit counts only as far as it is ahead of them."""
        tenant = self._of(tenant_id)
        if not tenant.queued and not tenant.in_flight:
            self._active += 1
            self._idle.withdraw(tenant)
            floor_us = self._advance()
            tenant.credit_us = min(tenant.credit_us, max(tenant.virtual_us - floor_us, 0))
            tenant.virtual_us = max(tenant.virtual_us, floor_us)
        return tenant

    def _move(self, tenant: Tenant, start_us: int, charge_us: int) -> None:
        cost_us = charge_us * WEIGHT_MILLI // tenant.weight_milli
        paid_us = min(tenant.credit_us, cost_us)
        tenant.credit_us -= paid_us
        tenant.virtual_us = max(tenant.virtual_us, start_us + cost_us - paid_us)

    def _retire(self, tenant: Tenant) -> None:
        """Forget a tenant without work as soon as its past changes nothing any more."""
        if tenant.queued or tenant.in_flight:
            return
        self._active -= 1
        if not self._active:
            self.tenants.clear()
            self._served, self._idle = Ranking(_virtual), Ranking(_virtual)
            self.virtual_us = self.largest_us = 0
            return
        self._served.withdraw(tenant)
        self._idle.offer(tenant)
        if len(self._idle) > _IDLE_MAX:
            self._forget_first()
        self._forget_passed()

    def _advance(self) -> int:
        """Where the least of those is that are being served."""
        while (least := self._served.first()) is not None:
            if least.in_flight or (least.queued and self.now_us - least.served_us < _RECENT_US):
                self.virtual_us = max(self.virtual_us, least.virtual_us)
                break
            self._served.withdraw(least)
        self._forget_passed()
        return self.virtual_us

    def _forget_passed(self) -> None:
        while (idle := self._idle.first()) is not None and idle.virtual_us <= self.virtual_us:
            self._forget_first()

    def _forget_first(self) -> None:
        idle = self._idle.first()
        if idle is not None:
            self._idle.withdraw(idle)
            del self.tenants[idle.tenant_id]
