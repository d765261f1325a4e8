"""Lets the weather happen: what befalls one site in one way comes from a stream of chance of its own, so that none changes another.

Decides when something begins and ends. What the machines make of it is theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from agents.twin.plant import Plant
from atoll.model.ids import NodeId, SiteId
from orchestrator.core.events import SiteDrainRequested, SiteUncordoned
from orchestrator.core.outputs import Reply
from sims.play.brain import Brain
from sims.play.site import PlayedSite
from sims.play.timeline import Timeline
from sims.play.truths import NotedTruth
from sims.play.weather import Weather

_SECOND_US: Final = 1_000_000
_HOUR_US: Final = 3_600 * _SECOND_US
_DAY_US: Final = 24 * _HOUR_US
_ACTOR: Final = "weather"
# Drift goes back to the middle by so much of what it is away: a site is never slower and slower.
_BACK_PARTS: Final = 8


class Sky:
    """The weather of one run."""

    def __init__(
        self, weather: Weather, seed: int, timeline: Timeline, brain: Brain, sites: tuple[PlayedSite, ...], truth: NotedTruth
    ) -> None:
        self._weather = weather
        self._seed = seed
        self._timeline = timeline
        self._brain = brain
        self._sites = sites
        self._truth = truth
        self._drift: dict[SiteId, int] = {}
        self._slow: dict[SiteId, int] = {}

    def begin(self) -> None:
        """From now on."""
        weather = self._weather
        for site in self._sites:
            self._again(site, "outage", weather.outages_per_day_milli / 1_000, weather.outage_s, self._cut, self._mend)
            self._again(site, "slow", weather.slow_per_day_milli / 1_000, weather.slow_s, self._slows, self._recovers)
            per_day = weather.maintenances_per_day_milli / 1_000
            self._again(site, "maintenance", per_day, weather.maintenance_s, self._drains, self._opens)
            if weather.reclaims:
                for pool in site.spec.pools:
                    per_day = pool.gpus_per_node * 24 * site.spec.preemptions_per_million_gpu_hours / 1e6
                    for index in range(pool.nodes):
                        node_id = pool.node_id(index)
                        begins, ends = partial(self._taken, node_id), partial(self._given_back, node_id)
                        self._again(site, f"reclaim/{node_id}", per_day, weather.reclaim_s, begins, ends)
            if weather.drift_milli:
                self._drifts(site, random.Random(f"{self._seed}/drift/{site.spec.site_id}"))

    def _again(
        self,
        site: PlayedSite,
        what: str,
        per_day: float,
        lasting_s: int,
        begins: Callable[[PlayedSite], None],
        ends: Callable[[PlayedSite], None],
    ) -> None:
        """A quiet time, then something that lasts, and so on: both of random length."""
        if per_day <= 0:
            return
        chance = random.Random(f"{self._seed}/{what}/{site.spec.site_id}")

        def quiet() -> None:
            self._timeline.after(round(chance.expovariate(per_day / _DAY_US)), happens)

        def happens() -> None:
            begins(site)
            self._timeline.after(max(round(chance.expovariate(1 / (lasting_s * _SECOND_US))), _SECOND_US), over)

        def over() -> None:
            ends(site)
            quiet()

        quiet()

    def _cut(self, site: PlayedSite) -> None:
        if site.has_stream:
            site.hang_up()

    def _mend(self, site: PlayedSite) -> None:
        if not site.has_stream:
            site.dial()

    def _taken(self, node_id: NodeId, site: PlayedSite) -> None:
        site.befall(partial(Plant.take, site.plant, node_id))

    def _given_back(self, node_id: NodeId, site: PlayedSite) -> None:
        site.befall(partial(Plant.give_back, site.plant, node_id))

    def _slows(self, site: PlayedSite) -> None:
        self._slow[site.spec.site_id] = self._weather.slow_milli
        self._tell(site.spec.site_id)

    def _recovers(self, site: PlayedSite) -> None:
        del self._slow[site.spec.site_id]
        self._tell(site.spec.site_id)

    def _drifts(self, site: PlayedSite, chance: random.Random) -> None:
        most, site_id = self._weather.drift_milli, site.spec.site_id
        drift = self._drift.get(site_id, 0)
        self._drift[site_id] = drift - drift // _BACK_PARTS + chance.randint(-most, most)
        self._tell(site_id)
        self._timeline.after(_HOUR_US, partial(self._drifts, site, chance))

    def _tell(self, site_id: SiteId) -> None:
        """Executions that begin from now on last as long as this."""
        drifted_milli = max(1_000 + self._drift.get(site_id, 0), 100)
        self._truth.slowness_milli[site_id] = drifted_milli * self._slow.get(site_id, 1_000) // 1_000

    def _drains(self, site: PlayedSite) -> None:
        site_id, deadline_ms = site.spec.site_id, self._weather.maintenance_s * 1_000 // 2
        self._brain.ask(
            lambda reference: SiteDrainRequested(
                request=reference, actor=_ACTOR, reason="maintenance", site_id=site_id, deadline_ms=deadline_ms
            ),
            _whatever,
        )

    def _opens(self, site: PlayedSite) -> None:
        site_id = site.spec.site_id
        self._brain.ask(lambda reference: SiteUncordoned(request=reference, actor=_ACTOR, reason="done", site_id=site_id), _whatever)


def late_us(weather: Weather, seed: int, site_id: SiteId) -> Callable[[], int | None]:
    """By how much each report of a site is late; None: it is lost."""
    chance = random.Random(f"{seed}/reports/{site_id}")
    mean_us, lost_milli = weather.reports_late_ms * 1_000, weather.reports_lost_milli

    def drawn() -> int | None:
        if lost_milli and chance.randrange(1_000) < lost_milli:
            return None
        return round(chance.expovariate(1 / mean_us)) if mean_us else 0

    return drawn


def _whatever(reply: Reply) -> None:
    """A drain of a site that is drained already is refused, and no harm."""
    del reply
