"""One run: a scenario and a trace in, rows out.

Decides when jobs arrive and when the run is over. The trace is read one job ahead, jobs that have ended leave memory, and rows go to the
sink at once: memory is that of the fleet, of the models asked for and of the jobs under way. Same scenario and trace, same rows: chance
comes from the scenario's seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from agents.core.events import AgentEvent
from agents.core.outputs import AgentCommand, RunAttempt
from agents.twin.plant import Plant
from agents.twin.truth import Truth
from atoll.model.attempt import Artifact, ResultManifest
from atoll.model.ids import JobId, SiteId
from atoll.model.job import TERMINAL, Job
from atoll.model.quote import Quote
from atoll.physics.hidden import HiddenWorld
from orchestrator.core.events import (
    AdaptersAdded,
    Event,
    JobsSubmitted,
    ModelsAdded,
    RequestRef,
    SiteCordoned,
    SiteDrainRequested,
    SitesApplied,
)
from orchestrator.core.outputs import Accepted, Refusal, Reply, SubmitReply
from sims.play.asking import Asked, Asking
from sims.play.brain import Brain
from sims.play.collecting import Collector, CountedPeers, Open, Sink, result_bytes
from sims.play.ledger import Ledger
from sims.play.scenario import SECOND_US, Scenario
from sims.play.site import PlayedSite, Watch
from sims.play.sky import Sky, late_us
from sims.play.timeline import Timeline
from sims.play.truths import NotedTruth
from sims.play.weather import CALM
from sims.results.digest import RowsDigest
from sims.results.rows import JobRow, SiteRow
from sims.traces.job import TraceJob

# When the trace begins: the fleet is declared and every site has spoken by then, whatever link there is between two points of the earth.
_TRACE_FROM_US: Final = 5 * SECOND_US
# Progress is told once in so many jobs.
_TOLD_EVERY: Final = 256
_ACTOR: Final = "operator"
_CLOSED: Final = "closed in this scenario"
_FOREVER_US: Final = 1 << 62
# A digest of nothing in particular: results of a run are counted, never read.
_NO_DIGEST: Final = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of a run. `states` counts jobs by their last state; one that had not ended when the run was over is among them."""

    digest: str
    jobs: int
    states: dict[str, int]
    simulated_us: int
    wall_us: int
    calls: int  # of the timeline
    handled: int  # events by all machines


class Player:
    """One run. `told` hears now and then how many jobs have arrived, `quoted` what each of them is offered."""

    def __init__(
        self,
        scenario: Scenario,
        jobs: Iterable[TraceJob],
        sink: Sink,
        *,
        truth: Truth | None = None,
        told: Callable[[int], None] | None = None,
        quoted: Callable[[JobId, Quote], None] | None = None,
        checked: bool = False,
    ) -> None:
        self._scenario = scenario.check()
        self._jobs: Iterator[TraceJob] = iter(jobs)
        self._told = told
        self._quoted = quoted
        self._sink = _Hashed(sink)
        self._arrived = 0
        self._exhausted = False
        self.timeline = Timeline()
        self._truth = noted = NotedTruth(truth or HiddenWorld(scenario.seed, scenario.sigma, noise_seed=scenario.noise_seed))
        peers = CountedPeers(
            scenario.sites, {(link.src, link.dst): link for link in scenario.links}, here=(one.site_id for one in scenario.sites)
        )
        self._collector = Collector(scenario.sites, scenario.gpus, noted, self._sink, from_us=_TRACE_FROM_US, peers=peers)
        self.brain = Brain(scenario, self.timeline, published=self._published, checked=checked)
        self._asking = Asking(scenario.catalogue, scenario.sites, scenario.beginning)
        one_way_us = scenario.one_way_us()
        self.ledger = Ledger(self.timeline.now_us, scenario.commit_us)

        def build(site: PlayedSite) -> Plant:
            held = scenario.beginning.holdings.get(site.spec.site_id)
            return Plant(
                site.spec, gpus=scenario.gpus, truth=noted, timers=site, tell=site.tell, peers=peers, result=_result, holdings=held
            )

        self.sites = tuple(
            PlayedSite(
                spec,
                self.timeline,
                self.brain,
                one_way_us=one_way_us[spec.site_id],
                build=build,
                watch=self._watch,
                late_us=late_us(scenario.weather, scenario.seed, spec.site_id),
                checked=checked,
            )
            for spec in scenario.sites
        )

    def _watch(self, site: PlayedSite) -> Watch:
        """Who hears what a site's machine handles and commands: the rows are made of it, and the books are kept."""
        counted, booked = self._collector.watch(site.spec.site_id), self.ledger.watch(site.spec.site_id, site.plant)

        def heard(what: AgentEvent | AgentCommand) -> None:
            counted(what)
            booked(what)

        return heard

    def play(self) -> Played:
        """All of it."""
        began = time.perf_counter_ns()
        scenario, timeline = self._scenario, self.timeline
        self.brain.ask(self._applied, _expect_done)
        self._begin()
        for site in self.sites:
            site.start()
        self._plan_next()
        if scenario.weather != CALM:
            Sky(scenario.weather, scenario.seed, timeline, self.brain, self.sites, self._truth).begin()
        timeline.after(_TRACE_FROM_US + scenario.sample_us, self._sample)
        if not self._over:
            timeline.run(_FOREVER_US)
        state = self.brain.machine.context.state
        # What has ended in a step that is being committed is told to nobody yet.
        self.ledger.close(self._arrived, self._collector.open if self.brain.commits else state.jobs)
        self._collector.left_over({job_id: entry.job for job_id, entry in state.jobs.items()})
        return Played(
            digest=self._sink.digest.hexdigest(),
            jobs=self._arrived,
            states=dict(sorted(self._collector.ended.items())),
            simulated_us=max(timeline.now - _TRACE_FROM_US, 0),
            wall_us=(time.perf_counter_ns() - began) // 1_000,
            calls=timeline.calls,
            handled=self.brain.handled + sum(site.handled for site in self.sites),
        )

    def _begin(self) -> None:
        """What is declared before the first job. Sites close when all have spoken, an instant before it."""
        models, adapters = self._scenario.beginning.models, self._scenario.beginning.adapters
        if models:
            self.brain.ask(lambda reference: ModelsAdded(request=reference, actor=_ACTOR, models=models), _expect_done)
        if adapters:
            self.brain.ask(lambda reference: AdaptersAdded(request=reference, actor=_ACTOR, adapters=adapters), _expect_done)
        self.timeline.after(_TRACE_FROM_US - 1, self._close)

    def _close(self) -> None:
        for name in self._scenario.beginning.cordoned:
            self.brain.ask(partial(_cordoned, name), _expect_done)
        for name in self._scenario.beginning.drained:
            self.brain.ask(partial(_drained, name), _expect_done)

    def _applied(self, reference: RequestRef) -> Event:
        scenario = self._scenario
        return SitesApplied(request=reference, actor=_ACTOR, reason="the scenario", sites=scenario.sites, links=scenario.links)

    @property
    def open_jobs(self) -> int:
        """Jobs that have arrived and not ended."""
        return len(self._collector.open)

    # --- arrivals --------------------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._exhausted and not self.open_jobs

    def _plan_next(self) -> None:
        job = next(self._jobs, None)
        if job is not None:
            at_us = _TRACE_FROM_US + job.arrival_us
            self.timeline.after(at_us - self.timeline.now, partial(self._arrive, job))
            return
        self._exhausted = True
        self.timeline.after(self._scenario.drain_us, self.timeline.stop)
        self._stop_if_over()

    def _arrive(self, job: TraceJob) -> None:
        asked = self._asking.asked(self._arrived, job)
        submission = asked.submission
        self._collector.open[submission.job_id] = Open(
            number=self._arrived, arrival_us=self.timeline.now, job=job, model=asked.model, spec=submission.spec
        )
        self._arrived += 1
        if self._told is not None and self._arrived % _TOLD_EVERY == 0:
            self._told(self._arrived)
        self._declare(asked)
        if self._asking.makes(asked):
            self._quote(asked)
            self.brain.ask(lambda reference: JobsSubmitted(request=reference, submissions=(submission,)), partial(self._answered, asked))
        else:
            self.ledger.took(submission.job_id, accepted=False)
            self._collector.refused(submission.job_id)
        self._plan_next()

    def _quote(self, asked: Asked) -> None:
        """Whoever wants to know is told what is offered in the moment before it is submitted; asking changes nothing."""
        if self._quoted is None:
            return
        quote = self.brain.machine.quote_job(asked.submission.spec, self.timeline.now)
        if isinstance(quote, Quote):
            self._quoted(asked.submission.job_id, quote)

    def _declare(self, asked: Asked) -> None:
        """What is asked for the first time is a launch: it is declared in the moment before."""
        model, adapters = asked.new_model, asked.new_adapters
        if model is not None:
            self.brain.ask(lambda reference: ModelsAdded(request=reference, actor=_ACTOR, models=(model,)), _expect_done)
        if adapters:
            self.brain.ask(lambda reference: AdaptersAdded(request=reference, actor=_ACTOR, adapters=adapters), _expect_done)

    def _answered(self, asked: Asked, reply: Reply) -> None:
        job_id = asked.submission.job_id
        accepted = isinstance(reply, SubmitReply) and isinstance(reply.outcomes[0], Accepted)
        self.ledger.took(job_id, accepted=accepted)
        if not accepted:
            self._collector.refused(job_id)
            self._stop_if_over()

    def _published(self, job: Job) -> None:
        if job.state in TERMINAL:
            self.ledger.published(job)
        self._collector.published(job)
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self._over:
            self.timeline.stop()

    # --- sites -----------------------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        known, interval_us = self.brain.machine.context.state.sites, self._scenario.sample_us
        for site in self.sites:
            self._collector.sample(site.spec, site.machine.state, known.get(site.spec.site_id), self.timeline.now, interval_us)
        self.timeline.after(interval_us, self._sample)


class _Hashed:
    """A sink that hashes what it passes on."""

    def __init__(self, sink: Sink) -> None:
        self.digest = RowsDigest()
        self._sink = sink

    def job(self, row: JobRow) -> None:
        self.digest.job(row)
        self._sink.job(row)

    def site(self, row: SiteRow) -> None:
        self.digest.site(row)
        self._sink.site(row)


def _cordoned(site_id: SiteId, reference: RequestRef) -> Event:
    return SiteCordoned(request=reference, actor=_ACTOR, reason=_CLOSED, site_id=site_id)


def _drained(site_id: SiteId, reference: RequestRef) -> Event:
    return SiteDrainRequested(request=reference, actor=_ACTOR, reason=_CLOSED, site_id=site_id, deadline_ms=0)


def _expect_done(reply: Reply) -> None:
    if isinstance(reply, Refusal):
        raise AssertionError(f"the fleet could not be declared: {reply.message}")


def _result(command: RunAttempt, run_us: int) -> ResultManifest:
    """A manifest as a twin's, but without the text that says so: nobody asks for results of a run."""
    del run_us
    artifact = Artifact(name="simulated", media_type="application/json", bytes=result_bytes(command), digest=_NO_DIGEST)
    return ResultManifest(key=command.key, artifacts=(artifact,), seed=command.spec.seed, simulated=True)
