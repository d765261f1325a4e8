"""Live attempts by pool and priority: what could make room for whom. An index, built anew from the sites' attempts.

Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll.model.ids import AttemptKey, JobId, PoolId, SiteId
from atoll.model.job import PRIORITY_RANK
from orchestrator.core.state import LiveAttempt, Site

_RANKS = sorted(PRIORITY_RANK.values())


@dataclass(slots=True)
class Bound:
    """Attempts by pool and priority's rank in the order in which they were bound, and how many are being stopped for each job."""

    by_pool: dict[tuple[SiteId, PoolId, int], dict[AttemptKey, LiveAttempt]] = field(default_factory=dict)
    stopping_for: Counter[JobId] = field(default_factory=Counter)

    def add(self, site: Site, live: LiveAttempt) -> None:
        """An attempt holds a slot."""
        self.by_pool.setdefault(_where(site, live), {})[live.key] = live
        if live.stopped_for is not None:
            self.stopping_for[live.stopped_for] += 1

    def remove(self, site: Site, live: LiveAttempt) -> None:
        """It holds nothing any more."""
        where = _where(site, live)
        there = self.by_pool[where]
        del there[live.key]
        if not there:
            del self.by_pool[where]
        if live.stopped_for is not None:
            self.stopping_for[live.stopped_for] -= 1
            if not self.stopping_for[live.stopped_for]:
                del self.stopping_for[live.stopped_for]

    def stop_for(self, live: LiveAttempt, job_id: JobId) -> None:
        """An attempt is stopped so that this job gets its slot."""
        live.stopped_for = job_id
        self.stopping_for[job_id] += 1

    def below(self, site_id: SiteId, pool_id: PoolId, rank: int) -> Iterator[LiveAttempt]:
        """Attempts in a pool of a lower priority than this rank, the lowest first."""
        for lower in reversed(_RANKS):
            if lower > rank:
                yield from self.by_pool.get((site_id, pool_id, lower), {}).values()


def _where(site: Site, live: LiveAttempt) -> tuple[SiteId, PoolId, int]:
    return (site.site_id, live.attempt.slot.pool_id, PRIORITY_RANK[live.spec.priority])
