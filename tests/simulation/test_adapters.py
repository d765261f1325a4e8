"""Twins with adapters, orchestrated by a real core in virtual time: who lacks least gets the job, and is given what it lacks, no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import AgentEvent
from agents.core.outputs import AdaptReplica, AgentCommand, FetchAdapter
from agents.twin.holdings import Holding
from atoll.model.adapter import AdapterSpec
from atoll.model.attempt import Attempt
from atoll.model.ids import ModelId, NodeId, SiteId, TenantId
from atoll.model.job import Job
from atoll.model.learned import Component
from atoll.model.modelspec import AdapterUse
from atoll.physics import coldstart
from orchestrator.core.learning.observation import COMPONENTS
from orchestrator.core.placement.registry import TERM_NAMES
from sims.play.player import Player
from sims.play.scenario import Beginning, Scenario
from sims.play.site import Watch
from sims.traces.job import TraceJob
from tests.simulation.played import CATALOGUE, AsPredicted, Rows, three_sites
from tests.unit.fleet_of_machines import SECOND, adapter, pool

SD = CATALOGUE[ModelId("sd")]
EIGHT = tuple(replace(adapter(f"s{number}", "sd"), weights_bytes=number * 50_000_000) for number in range(1, 9))
_ADAPT = TERM_NAMES.index("adapt")


class Watched(Player):
    """A run that keeps what was published of its jobs, and what sites were told to fetch and to put on."""

    def __init__(self, scenario: Scenario, jobs: list[TraceJob]) -> None:
        self.jobs: dict[str, Job] = {}
        self.orders: list[AdaptReplica | FetchAdapter] = []
        super().__init__(scenario, jobs, Rows(), truth=AsPredicted(), checked=True)
        for site in self.sites:
            site._watch = self._noting(site._watch)

    def _noting(self, watch: Watch) -> Watch:
        def heard(what: AgentEvent | AgentCommand) -> None:
            if isinstance(what, AdaptReplica | FetchAdapter):
                self.orders.append(what)
            watch(what)

        return heard

    def _published(self, job: Job) -> None:
        self.jobs[job.job_id] = job
        super()._published(job)


def _job(number: int, at_s: int, adapters: tuple[AdapterSpec, ...], origin: str) -> TraceJob:
    uses = tuple(AdapterUse(adapter_id=one.adapter_id) for one in adapters)
    return TraceJob(arrival_us=at_s * SECOND, model_id=SD.model_id, tenant=TenantId("t"), steps=number + 10, adapters=uses, origin=origin)


def _played(*jobs: TraceJob) -> tuple[list[Attempt], Watched]:
    """The only attempts of jobs; the model is warm in one slot of each of two sites, which are far apart."""
    scenario = three_sites()
    far = tuple(replace(link, rtt_us=200_000) for link in scenario.links)
    holdings = {SiteId(name): {NodeId("p-0"): Holding(disk=(SD,), slots=((SD,),))} for name in ("ams", "fra")}
    run = Watched(replace(scenario, links=far, beginning=Beginning(models=(SD,), adapters=EIGHT, holdings=holdings)), list(jobs))
    assert run.play().states == {"succeeded": len(jobs)}
    return [attempt for _, job in sorted(run.jobs.items()) for attempt in job.attempts], run


def _term_us(attempt: Attempt) -> int:
    assert attempt.explanation is not None
    return attempt.explanation.chosen.terms_us[_ADAPT]


def test_the_job_goes_where_seven_of_its_eight_adapters_are_and_is_given_the_eighth() -> None:
    """Asked from beside the other site, which has the model as warm, and none of them."""
    (alone,), _ = _played(_job(0, 0, EIGHT, "fra"))
    assert alone.site_id == "fra", "where nobody has any of them, the nearer"
    (first, second), run = _played(_job(0, 0, EIGHT[:7], "ams"), _job(1, 120, EIGHT, "fra"))
    assert (first.site_id, second.site_id, first.slot, second.slot) == ("ams", "ams", first.slot, first.slot)
    told = second.explanation
    assert told is not None and told.chosen.lacks == (EIGHT[7].adapter_id,)
    other = next(one for one in told.others if one.site_id == "fra" and not one.cold)
    assert other.lacks == tuple(one.adapter_id for one in EIGHT) and other.total_us > told.chosen.total_us
    fetched = [order.adapter.adapter_id for order in run.orders if isinstance(order, FetchAdapter)]
    put_on = [[one.adapter_id for one in order.adapters] for order in run.orders if isinstance(order, AdaptReplica)]
    assert sorted(fetched) == [one.adapter_id for one in EIGHT], "each once"
    assert put_on == [[one.adapter_id for one in EIGHT[:7]], [EIGHT[7].adapter_id]]


def test_what_adapting_took_is_what_was_predicted_of_it() -> None:
    """A free replica: by hand, 0.05 GB per number of the adapter at 1 GB/s, and 0.07 s + 0.05 GB / 0.4 GB/s to put it on."""
    (first, second), _ = _played(_job(0, 0, EIGHT[:7], "ams"), _job(1, 120, EIGHT, "fra"))
    by_hand_us = [sum(50_000 * number + 70_000 + 125_000 * number for number in numbers) for numbers in (range(1, 8), (8,))]
    assert [_term_us(attempt) for attempt in (first, second)] == by_hand_us
    for attempt in (first, second):
        assert attempt.times.adapt_us == pytest.approx(_term_us(attempt), abs=20), "to the microsecond, but for rounding of shared links"
        assert attempt.times.fetch_us == -1, "of weights nothing was fetched"


def test_what_came_while_an_attempt_waited_is_not_counted_again() -> None:
    """Behind another job in the only slot: its files come meanwhile, so that only putting them on keeps it from running."""
    one_gpu = replace(three_sites().sites[0], pools=(pool("p", gpus=1),))
    holdings = {one_gpu.site_id: {NodeId("p-0"): Holding(disk=(SD,), slots=((SD,),))}}
    scenario = replace(three_sites(), sites=(one_gpu,), links=(), beginning=Beginning(models=(SD,), adapters=EIGHT, holdings=holdings))
    run = Watched(scenario, [_job(number, 0, EIGHT[4 * number : 4 * number + 4], "ams") for number in range(2)])
    run.play()
    _, behind = (attempt for _, job in sorted(run.jobs.items()) for attempt in job.attempts)
    times, predicted_us = behind.times, _term_us(behind)
    put_on_us = sum(coldstart.patch_us(one) for one in EIGHT[4:])
    assert times.waiting_us > SECOND and times.adapt_us == put_on_us < predicted_us
    phases = (times.waiting_us, times.fetch_us, times.load_us, times.adapt_us, times.run_us, times.upload_us)
    assert sum(us for us in phases if us > 0) <= behind.ended_us - behind.leased_us
    assert behind.factors_milli[COMPONENTS.index(Component.ADAPT)] == 0, "nothing is learned of it"
