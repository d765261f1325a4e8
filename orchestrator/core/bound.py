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
    """Attempts by pool and priority's rank in the order in which they were bound, and how many give way to each job."""

    by_pool: dict[tuple[SiteId, PoolId, int], dict[AttemptKey, LiveAttempt]] = field(default_factory=dict)
    giving_way_to: Counter[JobId] = field(default_factory=Counter)

    def add(self, site: Site, live: LiveAttempt) -> None:
        """An attempt holds a slot."""
        self.by_pool.setdefault(_where(site, live), {})[live.key] = live
        if live.gives_way_to is not None:
            self.giving_way_to[live.gives_way_to] += 1

    def remove(self, site: Site, live: LiveAttempt) -> None:
        """It holds nothing any more."""
        where = _where(site, live)
        there = self.by_pool[where]
        del there[live.key]
        if not there:
            del self.by_pool[where]
        if live.gives_way_to is not None:
            self.giving_way_to[live.gives_way_to] -= 1
            if not self.giving_way_to[live.gives_way_to]:
                del self.giving_way_to[live.gives_way_to]

    def give_way(self, live: LiveAttempt, job_id: JobId) -> None:
        """The slot of an attempt goes to this job next."""
        live.gives_way_to = job_id
        self.giving_way_to[job_id] += 1

    def below(self, site_id: SiteId, pool_id: PoolId, rank: int) -> Iterator[LiveAttempt]:
        """Attempts in a pool of a lower priority than this rank, the lowest first."""
        for lower in reversed(_RANKS):
            if lower > rank:
                yield from self.by_pool.get((site_id, pool_id, lower), {}).values()


def _where(site: Site, live: LiveAttempt) -> tuple[SiteId, PoolId, int]:
    return (site.site_id, live.attempt.slot.pool_id, PRIORITY_RANK[live.spec.priority])
