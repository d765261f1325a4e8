"""Sites as they are where predictions are judged: jobs take what a hidden world says, and agents tell what agents tell.

A fetch begins when an attempt is assigned and shares the site's way to the origin with the others; between nodes of a site there is a way
of its own (`FairLink`, as twins have). Who needs what is on its way to the node waits for it. A slot serves one attempt after the other. A
site reports when weights have landed, and each second while some are on their way. Must not know what is predicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from math import ceil, inf
from typing import Final

from agents.core.events import AgentEvent, RatesMeasured
from agents.core.rates import Rates
from agents.twin.fair_link import FairLink
from atoll.model.attempt import AttemptState, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq, Generation, ModelId, NodeId, SiteId, SlotRef
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.report import AttemptEvent, FetchFact, NodeFacts, RateFacts, SiteReport
from atoll.physics.hidden import HiddenWorld
from orchestrator.core import events
from orchestrator.core.learning.observation import RULES, predicted
from orchestrator.core.outputs import SendAssignment, Step
from orchestrator.core.state import LiveAttempt, Pool, Site
from tests.bench.core import Load

# What an agent needs between two phases, and a result on its way.
_OVERHEAD_US: Final = 20_000
_REPORT_US: Final = 1_000_000
_UPLOAD: Final = next(index for index, rule in enumerate(RULES) if rule.component is Component.UPLOAD)

Way = tuple[SiteId, bool]  # to the origin, or (True) between nodes of the site
Where = tuple[SiteId, NodeId, ModelId]


@dataclass(slots=True)
class Work:
    """An attempt at its site. `fetch_us`: how long it waited for weights, -1: they were there."""

    live: LiveAttempt
    pool: Pool
    model: ModelSpec
    begun_us: int
    upload_us: int
    fetching: bool = False
    fetch_us: int = -1
    turn_us: int = 0
    load_us: int = -1
    run_us: int = 0


@dataclass(slots=True)
class Flight:
    """Weights on their way to a node. `work_us`: what the whole of it takes alone."""

    way: Way
    number: int
    pool: Pool
    model: ModelSpec
    work_us: int
    waiting: list[Work] = field(default_factory=list)


@dataclass(slots=True)
class TrueSites(Load):
    """A stream of jobs whose attempts take what a hidden world says."""

    truth: HiddenWorld = field(default_factory=lambda: HiddenWorld(1))
    links: dict[Way, FairLink] = field(default_factory=dict)
    flights: dict[Where, Flight] = field(default_factory=dict)
    disks: dict[tuple[SiteId, NodeId], dict[ModelId, None]] = field(default_factory=dict)
    queues: dict[tuple[SiteId, SlotRef], deque[Work]] = field(default_factory=dict)
    known: set[AttemptKey] = field(default_factory=set)
    happening: list[tuple[int, int, Callable[[int], None]]] = field(default_factory=list)
    happened: int = 0
    landing: list[Where] = field(default_factory=list)
    telling: bool = False
    rates: dict[SiteId, Rates] = field(default_factory=dict)
    measured: dict[SiteId, RateFacts] = field(default_factory=dict)

    # --- what the orchestrator says ------------------------------------------------------------------------------------------------

    def take(self, step: Step, now_us: int) -> None:
        """Begin what was bound."""
        for command in step.commands:
            if isinstance(command, SendAssignment):
                for told in command.assignment.attempts:
                    if told.key not in self.known:
                        self.known.add(told.key)
                        self._assigned(command.site_id, told.key, now_us)

    def _assigned(self, site_id: SiteId, key: AttemptKey, now_us: int) -> None:
        site = self._site(site_id)
        live = site.attempts[key]
        slot = live.attempt.slot
        model = self.fleet.machine.context.state.models[live.model_id]
        pool = site.pools[slot.pool_id]
        work = Work(live=live, pool=pool, model=model, begun_us=now_us, upload_us=self._upload_us(live))
        if live.attempt.cold and model.model_id not in self._disk(site_id, slot.node_id):
            self._fetch(site_id, slot.node_id, work, now_us)
        queue = self.queues.setdefault((site_id, slot), deque())
        queue.append(work)
        if len(queue) == 1:
            work.turn_us = now_us
            self._serve(work, now_us)

    def _upload_us(self, live: LiveAttempt) -> int:
        """The prior of the upload (what was predicted, without what was learned), off like the site's other ways."""
        assert live.attempt.explanation is not None
        prior_us = predicted(live.attempt.explanation, RULES[_UPLOAD]) * 1_000 // (live.factors_milli[_UPLOAD] or 1_000)
        return prior_us * self.truth.factor_milli("fetch", live.attempt.site_id) // 1_000

    def _site(self, site_id: SiteId) -> Site:
        return self.fleet.machine.context.state.sites[site_id]

    # --- weights ------------------------------------------------------------------------------------------------------------------

    def _fetch(self, site_id: SiteId, node_id: NodeId, work: Work, now_us: int) -> None:
        where = (site_id, node_id, work.model.model_id)
        work.fetching = True
        flight = self.flights.get(where)
        if flight is None:
            near = any(site == site_id and work.model.model_id in held for (site, _), held in self.disks.items())
            spec = self.fleet.agents[site_id].site
            rate = spec.lan_bytes_per_s if near else min(spec.origin_bytes_per_s, spec.wan_bytes_per_s)
            alone_us = self.truth.fetch_us(work.model.weights_bytes, rate, 0, site_id, str(work.live.key))
            way = (site_id, near)
            # The link says who is done, in whose order; when, says `pass_time`.
            number = self.links.setdefault(way, FairLink()).add(now_us, alone_us, partial(self.landing.append, where))
            flight = self.flights[where] = Flight(way=way, number=number, pool=work.pool, model=work.model, work_us=alone_us)
            if not self.telling:
                self.telling = True
                self._at(now_us + _REPORT_US, self._tell_all)
        flight.waiting.append(work)

    def _landed(self, where: Where, now_us: int) -> None:
        site_id, node_id, model_id = where
        flight = self.flights.pop(where)
        if not flight.way[1]:
            self._measured(site_id, flight)
        self._disk(site_id, node_id)[model_id] = None
        self._tell({(site_id, node_id): flight.pool}, now_us)
        for work in flight.waiting:
            work.fetching, work.fetch_us = False, now_us - work.begun_us
            if self.queues[site_id, work.live.attempt.slot][0] is work:
                self._serve(work, now_us)

    def _measured(self, site_id: SiteId, flight: Flight) -> None:
        """Sites measure their way to the origin by what they fetch, and tell."""
        if site_id not in self.rates:
            self.rates[site_id] = Rates(partial(self._rates_measured, site_id))
        self.rates[site_id].measured(origin=flight.model.weights_bytes * 1_000_000 // flight.work_us)

    def _rates_measured(self, site_id: SiteId, event: AgentEvent) -> None:
        assert isinstance(event, RatesMeasured)
        self.measured[site_id] = event.rates

    def _disk(self, site_id: SiteId, node_id: NodeId) -> dict[ModelId, None]:
        return self.disks.setdefault((site_id, node_id), {})

    # --- slots --------------------------------------------------------------------------------------------------------------------

    def _serve(self, work: Work, now_us: int) -> None:
        """Load and run the first of a slot's queue, if its weights are there."""
        if work.fetching:
            return
        live, pool, model = work.live, work.pool, work.model
        site_id, key = live.attempt.site_id, str(live.key)
        if live.attempt.cold:
            h2d = pool.spec.node.h2d_bytes_per_s or pool.gpu.h2d_bytes_per_s
            stage_us = self.truth.stage_us(model, pool.spec.node.disk_bytes_per_s, h2d, False, site_id, key)
            work.load_us = stage_us + self.truth.init_us(model, site_id, key)
        work.run_us = self.truth.execution_us(model, live.spec.shape, pool.gpu, live.spec.precision, site_id, key)
        self._at(now_us + max(work.load_us, 0) + work.run_us, partial(self._ran, work))

    def _ran(self, work: Work, now_us: int) -> None:
        slot = work.live.attempt.slot
        queue = self.queues[work.live.attempt.site_id, slot]
        queue.popleft()
        self._at(now_us + work.upload_us + _OVERHEAD_US, partial(self._ended, work))
        if queue:
            queue[0].turn_us = now_us
            self._serve(queue[0], now_us)

    def _ended(self, work: Work, now_us: int) -> None:
        site_id, key = work.live.attempt.site_id, work.live.key
        if key not in self._site(site_id).attempts:
            return
        self._report(site_id, key)
        self.seqs[site_id] = self.seqs.get(site_id, 0) + 1
        times = PhaseTimes(
            waiting_us=work.turn_us - work.begun_us,
            fetch_us=work.fetch_us,
            load_us=work.load_us,
            run_us=work.run_us,
            upload_us=work.upload_us,
        )
        end = AttemptEvent(
            seq=EventSeq(self.seqs[site_id]),
            key=key,
            state=AttemptState.SUCCEEDED,
            manifest=ResultManifest(key=key, artifacts=(), seed=0, simulated=True),
            times=times,
        )
        event = events.AttemptsEnded(site_id=site_id, session=self.fleet.agents[site_id].session, events=(end,))
        self.take(self.fleet.machine.handle(event, now_us), now_us)

    # --- reports ------------------------------------------------------------------------------------------------------------------

    def _tell_all(self, now_us: int) -> None:
        """The regular report of every site to which weights are on their way."""
        self._tell({where[:2]: flight.pool for where, flight in self.flights.items()}, now_us)
        self.telling = bool(self.flights)
        if self.telling:
            self._at(now_us + _REPORT_US, self._tell_all)

    def _tell(self, nodes: dict[tuple[SiteId, NodeId], Pool], now_us: int) -> None:
        by_site: dict[SiteId, list[NodeFacts]] = {}
        for (site_id, node_id), pool in nodes.items():
            by_site.setdefault(site_id, []).append(self._facts(site_id, pool, node_id, now_us))
        for site_id, facts in by_site.items():
            self.reports[site_id] = self.reports.get(site_id, 1) + 1
            generation = Generation(self._site(site_id).generation)
            rates = self.measured.get(site_id, RateFacts())
            report = SiteReport(seq=self.reports[site_id], full=False, generation=generation, nodes=tuple(facts), rates=rates)
            event = events.SiteReported(site_id=site_id, session=self.fleet.agents[site_id].session, report=report)
            self.take(self.fleet.machine.handle(event, now_us), now_us)

    def _facts(self, site_id: SiteId, pool: Pool, node_id: NodeId, now_us: int) -> NodeFacts:
        """What is on a node's disk and on its way there. Slots are as they were: what they hold is told when attempts end."""
        coming = []
        for (site, node, model_id), flight in self.flights.items():
            if (site, node) == (site_id, node_id):
                size = flight.model.weights_bytes
                left = int(size * self.links[flight.way].left(now_us, flight.number) / flight.work_us)
                coming.append(FetchFact(model_id=model_id, bytes_done=max(size - left, 0), bytes_total=size))
        return NodeFacts(
            pool_id=pool.pool_id,
            node_id=node_id,
            host_free_bytes=0,
            disk_free_bytes=pool.spec.node.disk_cache_bytes,
            disk_models=tuple(sorted(self._disk(site_id, node_id))),
            fetching=tuple(coming),
            slots=(),
        )

    # --- time ---------------------------------------------------------------------------------------------------------------------

    def _at(self, at_us: int, what: Callable[[int], None]) -> None:
        self.happened += 1
        heappush(self.happening, (at_us, self.happened, what))

    def pass_time(self, until_us: int) -> None:
        """Let everything happen that is due by then, in order."""
        while True:
            ends = [(end, way) for way, link in self.links.items() if (end := link.next_end()) is not None]
            fetched, way = min(ends, default=(inf, None))
            next_us = self.happening[0][0] if self.happening else inf
            if min(fetched, next_us) > until_us:
                return
            if way is not None and fetched <= next_us:
                for done in self.links[way].take_done(fetched):
                    done()
                landed = self.landing.copy()
                self.landing.clear()
                for where in landed:
                    self._landed(where, ceil(fetched))
            else:
                at_us, _, what = heappop(self.happening)
                what(at_us)
