"""Places in the queue: how many jobs are likely to go before a given one.

Decides a figure for people, nothing else. Exact within a tenant and priority; between tenants it assumes that all jobs cost what the last
bound ones did on average and that weights stay, so it needs counters only and no walk through a million jobs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from atoll.model.ids import TenantId
from atoll.model.job import PRIORITY_RANK
from orchestrator.core.fairness import WEIGHT_MILLI, Tenant

# Acceptance numbers kept in one sorted list: inserting moves 32 KB at most, and a million jobs are 250 lists to count.
_BUCKET_BITS: Final = 12
# The mean charge follows the last eight or so; what it was before anything was bound is a guess of the right size.
_MEAN_SHIFT: Final = 3
_MEAN_FIRST_US: Final = 5_000_000


@dataclass(slots=True)
class _Line:
    """Acceptance numbers of one tenant's waiting jobs of one priority."""

    tenant: Tenant
    jobs: int = 0
    buckets: dict[int, list[int]] = field(default_factory=dict)

    def add(self, seq: int) -> None:
        insort(self.buckets.setdefault(seq >> _BUCKET_BITS, []), seq)
        self.jobs += 1

    def remove(self, seq: int) -> None:
        where = seq >> _BUCKET_BITS
        bucket = self.buckets[where]
        del bucket[bisect_left(bucket, seq)]
        if not bucket:
            del self.buckets[where]
        self.jobs -= 1

    def before(self, seq: int) -> int:
        where = seq >> _BUCKET_BITS
        whole = sum(len(bucket) for number, bucket in self.buckets.items() if number < where)
        return whole + bisect_left(self.buckets.get(where, ()), seq)


@dataclass(slots=True)
class _Band:
    """All waiting jobs of one priority, by tenant; `weight_milli` is the sum over its tenants."""

    jobs: int = 0
    weight_milli: int = 0
    lines: dict[TenantId, _Line] = field(default_factory=dict)


class Positions:
    """Counters of waiting jobs by priority and tenant."""

    __slots__ = ("_bands", "mean_us")

    def __init__(self) -> None:
        self._bands = [_Band() for _ in PRIORITY_RANK]
        self.mean_us = _MEAN_FIRST_US

    def add(self, rank: int, tenant: Tenant, seq: int) -> None:
        """A job of this acceptance number waits."""
        band = self._bands[rank]
        line = band.lines.get(tenant.tenant_id)
        if line is None:
            line = band.lines[tenant.tenant_id] = _Line(tenant)
            band.weight_milli += tenant.weight_milli
        line.add(seq)
        band.jobs += 1

    def remove(self, rank: int, tenant: Tenant, seq: int) -> None:
        """It waits no longer."""
        band = self._bands[rank]
        line = band.lines[tenant.tenant_id]
        line.remove(seq)
        band.jobs -= 1
        if not line.jobs:
            del band.lines[tenant.tenant_id]
            band.weight_milli -= tenant.weight_milli

    def charged(self, charge_us: int) -> None:
        """A job was bound at this charge."""
        self.mean_us = max(self.mean_us + ((charge_us - self.mean_us) >> _MEAN_SHIFT), 1)

    def ahead(self, rank: int, tenant: Tenant, seq: int, virtual_us: int) -> int:
        """How many jobs are likely to go before this one, the least virtual time of those being served being `virtual_us`."""
        band = self._bands[rank]
        line = band.lines[tenant.tenant_id]
        others_milli = band.weight_milli - tenant.weight_milli
        lead_us = max(tenant.virtual_us - virtual_us, 0)
        return self._ahead(rank, line.before(seq), band.jobs - line.jobs, others_milli, tenant.weight_milli, lead_us)

    def ahead_of_next(self, rank: int, tenant_id: TenantId, weight_milli: int, lead_us: int) -> int:
        """The same of a job that is not there yet, the last of its tenant: by so much is the tenant ahead of those being served."""
        band = self._bands[rank]
        line = band.lines.get(tenant_id)
        own = line.jobs if line is not None else 0
        others_milli = band.weight_milli - (weight_milli if line is not None else 0)
        return self._ahead(rank, own, band.jobs - own, others_milli, weight_milli, lead_us)

    def _ahead(self, rank: int, own: int, others: int, others_milli: int, weight_milli: int, lead_us: int) -> int:
        """Of `own` jobs before it and `others` of other tenants, whose weights add up to `others_milli`."""
        more_urgent = sum(band.jobs for band in self._bands[:rank])
        # While mine go before me, the others go in proportion; and first they go until they have had as much as this tenant.
        beside = own * others_milli // weight_milli
        catching_up = lead_us * others_milli // (WEIGHT_MILLI * self.mean_us)
        return more_urgent + own + min(others, beside + catching_up)

    def depths(self) -> Iterator[tuple[str, int]]:
        """How many wait, by priority; only priorities for which somebody does."""
        for priority, rank in sorted(PRIORITY_RANK.items()):
            if self._bands[rank].jobs:
                yield priority.value, self._bands[rank].jobs
