"""Live attempts by pool and priority: what could make room for whom; and by model those that wait behind others and have not begun: what
could be moved. An index, built anew from the sites' attempts.

Decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, JobId, ModelId, Ordinal, PoolId, SiteId
from atoll.model.job import PRIORITY_RANK
from orchestrator.core.state import LiveAttempt, Site, Slot

_RANKS = sorted(PRIORITY_RANK.values())


# When it should begin by its decision, negative so that who waits longest comes first; and its key.
_Place = tuple[int, JobId, Ordinal]


@dataclass(slots=True)
class _Behind:
    """Attempts of one model that wait behind others, in order of places."""

    places: list[_Place] = field(default_factory=list)
    lives: dict[_Place, tuple[Slot, LiveAttempt]] = field(default_factory=dict)

    def longest(self, most: int) -> list[tuple[Slot, LiveAttempt]]:
        """Those that should begin last, with their slots."""
        lives = self.lives
        return [lives[place] for place in self.places[:most]]


@dataclass(slots=True)
class Bound:
    """Attempts by pool and priority's rank in the order in which they were bound, and those that give way to each job."""

    by_pool: dict[tuple[SiteId, PoolId, int], dict[AttemptKey, LiveAttempt]] = field(default_factory=dict)
    giving_way: dict[JobId, dict[AttemptKey, LiveAttempt]] = field(default_factory=dict)
    behind: dict[ModelId, _Behind] = field(default_factory=dict)
    _behind_at: dict[AttemptKey, _Place] = field(default_factory=dict)

    def add(self, site: Site, live: LiveAttempt) -> None:
        """An attempt holds a slot."""
        self.by_pool.setdefault(_where(site, live), {})[live.key] = live
        if live.gives_way_to is not None:
            self.give_way(live, live.gives_way_to)

    def remove(self, site: Site, live: LiveAttempt) -> None:
        """It holds nothing any more."""
        where = _where(site, live)
        there = self.by_pool[where]
        del there[live.key]
        self.not_behind(live)
        if not there:
            del self.by_pool[where]
        self._give_no_way(live)

    def _give_no_way(self, live: LiveAttempt) -> None:
        if live.gives_way_to is not None:
            giving = self.giving_way[live.gives_way_to]
            del giving[live.key]
            if not giving:
                del self.giving_way[live.gives_way_to]

    def stay(self, live: LiveAttempt) -> None:
        """The slot of an attempt goes to nobody in particular."""
        self._give_no_way(live)
        live.gives_way_to = None

    def give_way(self, live: LiveAttempt, job_id: JobId) -> None:
        """The slot of an attempt goes to this job next."""
        live.gives_way_to = job_id
        self.giving_way.setdefault(job_id, {})[live.key] = live

    def below(self, site_id: SiteId, pool_id: PoolId, rank: int) -> Iterator[LiveAttempt]:
        """Attempts in a pool of a lower priority than this rank, the lowest first."""
        for lower in reversed(_RANKS):
            if lower > rank:
                yield from self.by_pool.get((site_id, pool_id, lower), {}).values()

    def stands_behind(self, slot: Slot, live: LiveAttempt) -> None:
        """An attempt waits behind others in its slot. What holds several slots is not moved, nor what the site has begun."""
        if live.spec.gang_size > 1 or live.attempt.state is not AttemptState.LEASED or live.given_up or live.key in self._behind_at:
            return
        place = self._behind_at[live.key] = (live.exec_us - live.ends_us, live.key.job_id, live.key.ordinal)
        there = self.behind.setdefault(live.model_id, _Behind())
        insort(there.places, place)
        there.lives[place] = (slot, live)

    def not_behind(self, live: LiveAttempt) -> None:
        """It is the first of its slot now, has begun, is stopped, or holds nothing any more."""
        place = self._behind_at.pop(live.key, None)
        if place is None:
            return
        there = self.behind[live.model_id]
        del there.lives[place], there.places[bisect_left(there.places, place)]
        if not there.places:
            del self.behind[live.model_id]

    def count_behind(self, site: Site) -> None:
        """The slots of a site were filled anew: who waits behind whom."""
        for live in site.attempts.values():
            self.not_behind(live)
        for pool in site.pools.values():
            for slot in (slot for node in pool.nodes for slot in node.slots):
                for key in slot.attempts[1:]:
                    self.stands_behind(slot, site.attempts[key])


def _where(site: Site, live: LiveAttempt) -> tuple[SiteId, PoolId, int]:
    return (site.site_id, live.attempt.slot.pool_id, PRIORITY_RANK[live.spec.priority])
