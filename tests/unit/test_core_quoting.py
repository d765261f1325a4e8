"""Quotes in the core: what a job is told before it is submitted is what then happens, and asking changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import JobId, SiteId, TenantId
from atoll.model.job import Constraints, Job, JobSpec, JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import PRICE_TERMS, Awaits, Reason
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Precision, Shape
from atoll.model.site import SiteRuntime
from orchestrator.core import events
from orchestrator.core.outputs import Refusal, RefusalCode
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import OVERLAP, TERMS
from tests.unit.fleet_of_machines import BATCH, GB, URGENT, Fleet, in_regions, model, pool, site, spec


def _quote(fleet: Fleet, one: JobSpec) -> Quote:
    found = fleet.machine.quote_job(one, fleet.now_us)
    assert isinstance(found, Quote)
    return found


def _outlook(fleet: Fleet, job: Job) -> Quote:
    found = fleet.machine.outlook(job.job_id, job.spec, fleet.now_us)
    assert isinstance(found, Quote)
    return found


def _last(fleet: Fleet) -> Job:
    return list(fleet.jobs.values())[-1]


def _quiet() -> Fleet:
    sites = (site("a", pool("p", "small"), pool("q", "big")), site("b"), site("c", pool("p", gpus=4)))
    fleet = Fleet(*sites, models=(model("m"), model("n", weights_gb=60)))
    fleet.warm("b", "big-0", 0, "m")
    fleet.report("b")
    return fleet


SPECS = [
    spec(),
    spec("n"),
    spec(priority=URGENT),
    spec(priority=BATCH),
    spec(deadline_ms=3_600_000),
    spec(constraints=in_regions("region-a")),
    spec(shape=Shape(width=512, height=768, steps=4, batch=2), precision=Precision.FP16),
    spec("n", origin_site=SiteId("c")),
]


@pytest.mark.parametrize("one", SPECS, ids=range(len(SPECS)))
def test_in_a_quiet_fleet_the_quote_is_what_a_submit_does(one: JobSpec) -> None:
    fleet = _quiet()
    # The submit is handled a millisecond later; nothing of a quiet fleet depends on that.
    offered = _quote(fleet, one)
    assert offered.verdict is Verdict.NOW and offered.chosen is not None and offered.eta is not None
    fleet.submit(one)
    (attempt,) = _last(fleet).attempts
    told = attempt.explanation
    assert told is not None
    assert (told.chosen, told.rejections, told.term_names) == (offered.chosen, offered.rejections, offered.term_names)
    if not one.deadline_ms:
        assert told.others == offered.others
    assert (attempt.predicted_us, told.weights_bytes) == (offered.predicted_us, offered.weights_bytes)
    assert (offered.eta.end_p50_us - offered.at_us, offered.eta.end_p90_us - offered.at_us) == (told.p50_us, told.p90_us)
    assert offered.at_us <= offered.eta.begin_p50_us < offered.eta.end_p50_us < offered.eta.end_p90_us


def test_a_replica_that_is_loading_for_another_job_is_told_from_a_warm_one() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1, nodes=3)), models=(model("m", weights_gb=20),), runtime=SiteRuntime.TWIN)
    for number in range(3):
        fleet.submit(spec(prompt=str(number), simulated=True))
    first, second, third = fleet.jobs.values()
    told = [job.attempts[0].explanation for job in (first, second)]
    assert [(one.chosen.cold, one.chosen.awaits) for one in told if one is not None] == [(True, Awaits.NOTHING), (False, Awaits.LOAD)]
    # The other two nodes have free slots: what they wait for is the fetch.
    assert told[1] is not None
    (beside,) = told[1].others
    assert (beside.cold, beside.awaits) == (True, Awaits.FETCH) and beside.wait_us > 0
    assert third.deferral is not None and third.deferral.waits_for is not None
    assert third.deferral.waits_for.awaits is Awaits.LOAD
    fleet.warm("a", "p-0", 0, "m", size_gb=20)
    fleet.report("a")
    offered = _quote(fleet, spec(prompt="later", simulated=True)).chosen
    assert offered is not None and (offered.cold, offered.awaits) == (False, Awaits.NOTHING), "it is there now, and busy"


def test_asking_changes_nothing() -> None:
    asked, silent = _quiet(), _quiet()
    for number in range(12):
        for one in (spec("n", prompt=str(number)), spec(prompt=str(number))):
            _quote(asked, spec("n", priority=URGENT))
            _quote(asked, spec(shape=Shape(width=640, height=640, steps=9)))
            asked.submit(one)
            silent.submit(one)
        for fleet in (asked, silent):
            key = next(iter(fleet.agents[SiteId("b")].attempts), None)
            if key is not None and number % 3 == 2:
                fleet.end_attempt("b", key)
        for job in list(asked.jobs.values()):
            if job.state is not JobState.SUCCEEDED:
                _outlook(asked, job)
                asked.machine.places(job.job_id, job.spec, SiteId("c"), asked.now_us)
                asked.machine.eta_of(job.job_id, asked.now_us)
    assert [step.decisions for step in asked.steps] == [step.decisions for step in silent.steps]
    assert asked.machine.snapshot() == silent.machine.snapshot()


def test_prices_are_told_apart_from_time_that_passes() -> None:
    assert frozenset(term.name for term in TERMS if term.price) == PRICE_TERMS
    fleet = _quiet()
    offered = _quote(fleet, spec("n"))
    assert offered.chosen is not None
    time_us = sum(us for name, us in zip(offered.term_names, offered.chosen.terms_us, strict=True) if name not in PRICE_TERMS)
    assert time_us == offered.predicted_us
    assert OVERLAP not in PRICE_TERMS


def test_a_quote_names_its_price() -> None:
    pricey = replace(site("a"), egress_usd_micros_per_gb=1_000_000_000)
    fleet = Fleet(pricey, models=(model("m"),))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    offered = _quote(fleet, spec())
    # A big GPU costs $4 an hour: micro-dollars are hours x 4,000,000.
    assert offered.chosen is not None
    execution_us = offered.chosen.terms_us[offered.term_names.index("execution")]
    assert offered.gpu_usd_micros == pytest.approx(execution_us * 4_000_000 / 3_600_000_000, abs=2)
    assert offered.egress_usd_micros > 1_000
    assert _quote(fleet, spec(origin_site=SiteId("a"))).egress_usd_micros == 0


def _full() -> Fleet:
    """One warm slot, taken twice; everything else has to load 60 GB first."""
    fleet = Fleet(site("far"), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=60),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=60)
    fleet.report("warm")
    fleet.submit(spec(prompt="1"))
    fleet.submit(spec(prompt="2"))
    return fleet


def test_where_waiting_is_cheaper_the_quote_says_so_and_the_job_waits() -> None:
    fleet = _full()
    offered = _quote(fleet, spec())
    assert offered.verdict is Verdict.WAITS and offered.chosen is not None
    assert (offered.chosen.site_id, offered.chosen.cold, offered.turn_us) == ("warm", False, 0)
    assert offered.chosen.wait_us > 0
    assert "far" in {other.site_id for other in offered.others}, "what it would be without waiting is told beside it"
    fleet.submit(spec(prompt="3"))
    job = _last(fleet)
    assert job.state is JobState.QUEUED
    assert job.deferral is not None and job.deferral.waits_for is not None and job.deferral.waits_for.site_id == "warm"


def test_those_ahead_for_the_same_place_put_a_job_off() -> None:
    fleet = _full()
    ends = []
    for number in range(3):
        offered = _quote(fleet, spec())
        assert offered.eta is not None
        ends.append((offered.ahead, offered.turn_us, offered.eta.end_p50_us - offered.at_us))
        fleet.submit(spec(prompt=f"more {number}"))
    assert [ahead for ahead, _, _ in ends] == [0, 1, 2]
    assert ends[0][1] == 0 and ends[2][1] == 2 * ends[1][1] > 0
    assert ends[0][2] < ends[1][2] < ends[2][2]
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    told = [_outlook(fleet, job) for job in waiting]
    assert [one.ahead for one in told] == [0, 1, 2]
    assert [one.turn_us for one in told] == [turn for _, turn, _ in ends], "once it waits it is told what it was quoted"
    assert all(one.verdict is Verdict.WAITS for one in told)


def test_when_too_many_wait_the_next_one_goes_elsewhere_and_is_quoted_that() -> None:
    """The quote follows the rule of the placing round to the very job at which the burst spills over."""
    fleet = Fleet(site("cold", pool("p", gpus=8)), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=20),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=20)
    fleet.report("warm")
    verdicts = []
    for number in range(30):
        before = sum(1 for job in fleet.jobs.values() if job.attempts)
        offered = _quote(fleet, spec())
        fleet.submit(spec(prompt=str(number)))
        bound = sum(1 for job in fleet.jobs.values() if job.attempts) > before
        verdicts.append((offered.verdict is Verdict.NOW, bound))
    assert all(told == bound for told, bound in verdicts), verdicts
    assert {told for told, _ in verdicts} == {True, False}


def test_another_tenant_is_quoted_its_own_turn() -> None:
    fleet = _full()
    for number in range(6):
        fleet.submit(spec(prompt=str(number)))
    mine, theirs = _quote(fleet, spec()), _quote(fleet, spec(tenant=TenantId("other")))
    assert mine.ahead == 6
    assert theirs.ahead == 0 and theirs.turn_us == 0, "whoever had nothing yet goes first"
    assert mine.eta is not None and theirs.eta is not None and theirs.eta.end_p50_us < mine.eta.end_p50_us
    urgent = _quote(fleet, spec(priority=URGENT))
    assert urgent.ahead == 0
    batch = _quote(fleet, spec(tenant=TenantId("other"), priority=BATCH))
    assert batch.ahead == 6


def test_what_lies_on_the_disk_is_not_to_be_fetched_while_its_slot_is_busy() -> None:
    """A fetch behind the wait for a slot would take no time, so nothing but its name told the two apart."""
    fleet = Fleet(site("a", pool("p", gpus=1), origin_gbs=100), models=(model("m"), model("n")))
    fleet.agents[SiteId("a")].disk.add("n")
    fleet.report("a")
    fleet.submit(spec(shape=Shape(width=1024, height=1024, steps=400)))
    fleet.report("a")
    offered = _quote(fleet, spec("n"))
    assert offered.verdict is Verdict.WAITS and offered.chosen is not None and offered.chosen.cold
    times = dict(zip(offered.term_names, offered.chosen.terms_us, strict=True))
    assert times["fetch"] == 0 < times["queue"]


def test_what_cannot_run_anywhere_is_quoted_with_its_reasons() -> None:
    fleet = Fleet(site("a"), site("b", pool("p", "small")), models=(model("huge", weights_gb=100),))
    offered = _quote(fleet, spec("huge"))
    assert (offered.verdict, offered.chosen, offered.eta, offered.others) == (Verdict.NEVER, None, None, ())
    assert {one.reason: one.pools for one in offered.rejections} == {Reason.MEMORY_TOO_SMALL: 2}
    short = offered.too_small
    assert short is not None and short.weights_bytes == 100 * GB < short.needed_bytes and short.largest_bytes == 80 * GB
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=SiteId("a"))
    offered = _quote(fleet, spec("huge", shape=Shape(width=64, height=64, steps=1)))
    assert {one.reason for one in offered.rejections} == {Reason.MEMORY_TOO_SMALL}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("gang_size", [1, 2])
def test_a_price_that_is_too_low_is_quoted_with_one_that_would_do(warm: bool, gang_size: int) -> None:
    fleet = Fleet(site("a"), site("b", pool("p", "small")))
    if warm and gang_size == 1:
        fleet.warm("a", "big-0", 0, "m")
        fleet.report("a")
    priced = spec(gang_size=gang_size, constraints=Constraints(max_price_usd_micros=1))
    offered = _quote(fleet, priced)
    assert offered.chosen is None and {one.reason for one in offered.rejections} == {Reason.PRICE_TOO_HIGH}
    enough = offered.price_usd_micros
    assert enough > 1
    told = _quote(fleet, replace(priced, constraints=Constraints(max_price_usd_micros=enough)))
    assert told.verdict is Verdict.NOW and told.gpu_usd_micros + told.egress_usd_micros <= enough
    assert _quote(fleet, replace(priced, constraints=Constraints())).price_usd_micros == 0


def test_what_an_uncordon_would_make_possible_is_told_from_what_never_is() -> None:
    """A 24 GB GPU does not grow, however long a job waits for it; a cordoned site comes back."""
    models = (model("m"), model("large", weights_gb=60), model("huge", weights_gb=100))
    fleet = Fleet(site("a"), site("b", pool("p", "small")), models=models)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=SiteId("a"))
    large = _quote(fleet, spec("large"))
    assert large.verdict is Verdict.IMPOSSIBLE
    assert {one.reason: one.pools for one in large.rejections} == {Reason.CORDONED: 1, Reason.MEMORY_TOO_SMALL: 1}
    for job in (
        spec("huge"),
        spec("large", constraints=Constraints(sites=(SiteId("b"),))),
        spec(gang_size=8),
        spec(constraints=Constraints(regions=("Atlantis",))),
    ):
        assert _quote(fleet, job).verdict is Verdict.NEVER
    fleet.submit(spec("large"))
    (job_id,) = fleet.jobs
    explained = fleet.machine.outlook(job_id, spec("large"), fleet.now_us)
    assert isinstance(explained, Quote) and explained.verdict is Verdict.IMPOSSIBLE
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id=SiteId("a"))
    assert fleet.job(job_id).state is not JobState.QUEUED
    assert _quote(Fleet(models=(model("m"),)), spec()).verdict is Verdict.IMPOSSIBLE, "its first site is still to come"


def test_a_quota_that_would_refuse_the_submit_is_said_beside_the_offer() -> None:
    fleet = Fleet(site("a"), policy=Policy(queued_jobs_per_tenant_max=1))
    assert _quote(fleet, spec()).refusal == ""
    fleet.submit(spec())
    offered = _quote(fleet, spec())
    assert "tenant t has 1 job under way or waiting" in offered.refusal and offered.retry_after_ms > 0
    assert offered.chosen is not None, "what it would be offered is still told"
    assert _quote(fleet, spec(tenant=TenantId("other"))).refusal == ""
    reply = fleet.submit(spec(prompt="2"))
    (refused,) = reply.outcomes  # type: ignore[union-attr]  # a submission is answered by outcomes
    assert isinstance(refused, Refusal) and refused.message == offered.refusal


def test_what_no_submit_would_accept_is_refused_with_the_same_words() -> None:
    fleet = Fleet(site("a"))
    for one in (spec("unknown"), spec(adapters=(AdapterUse(adapter_id="x"),))):  # type: ignore[arg-type]
        refused = fleet.machine.quote_job(one, fleet.now_us)
        assert isinstance(refused, Refusal) and refused.code is RefusalCode.INVALID
        (outcome,) = fleet.submit(one).outcomes  # type: ignore[union-attr]  # as above
        assert outcome == refused


def test_a_quote_and_the_decision_name_what_makes_room_and_its_price() -> None:
    models = (model("m", weights_gb=60), model("old", weights_gb=50))
    fleet = Fleet(site("a", pool("p", gpus=1)), models=models)
    fleet.warm("a", "p-0", 0, "old", size_gb=50)
    fleet.report("a")
    offered = _quote(fleet, spec())
    (evicted,) = offered.evicted
    assert (evicted.model_id, evicted.memory_bytes) == ("old", 50 * GB) and evicted.price_us > 0
    fleet.submit(spec())
    told = _last(fleet).attempts[0].explanation
    assert told is not None and told.evicted == offered.evicted
    assert told.chosen.terms_us[told.term_names.index("evict")] > 0


def test_why_not_there() -> None:
    fleet = _full()
    fleet.submit(spec(prompt="3"))
    job = _last(fleet)

    def ask(name: str) -> list[tuple[str, tuple[tuple[bool, bool], ...], Reason | None]]:
        found = fleet.machine.places(job.job_id, job.spec, SiteId(name), fleet.now_us)
        assert isinstance(found, tuple)
        return [(one.pool_id, tuple((each.cold, each.wait_us > 0) for each in one.candidates), one.reason) for one in found]

    assert ask("far") == [("big", ((True, False),), None)]
    # By its replica once a slot is free, and by loading once more on the same slot.
    assert ask("warm") == [("p", ((False, True), (True, True)), Reason.NO_SLOT)]
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=SiteId("far"))
    assert ask("far") == [("big", (), Reason.CORDONED)]
    refused = fleet.machine.places(job.job_id, job.spec, SiteId("nowhere"), fleet.now_us)
    assert isinstance(refused, Refusal) and refused.code is RefusalCode.NOT_FOUND


def test_why_not_there_is_answered_for_what_has_ended_too() -> None:
    fleet = Fleet(site("a"), site("b", pool("p", "small")))
    fleet.submit(spec(constraints=in_regions("region-a")))
    job = _last(fleet)
    fleet.end_attempt("a", job.attempts[0].key)
    assert fleet.job(job.job_id).state is JobState.SUCCEEDED
    (place,) = fleet.machine.places(job.job_id, job.spec, SiteId("b"), fleet.now_us)  # type: ignore[misc]  # known, so no refusal
    assert (place.pool_id, place.gpu_type, place.candidates, place.reason) == ("p", "small", (), Reason.REGION_NOT_ALLOWED)
    fleet.ask(events.ModelRemoved, actor="t", reason="", model_id=job.spec.model_id)
    refused = fleet.machine.places(job.job_id, job.spec, SiteId("b"), fleet.now_us)
    assert isinstance(refused, Refusal) and "no model 'm'" in refused.message


def test_a_job_in_back_off_says_until_when_and_is_not_offered_where_it_failed() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.submit(spec())
    job = _last(fleet)
    failed_at = job.attempts[0].site_id
    fleet.end_attempt(failed_at, job.attempts[0].key, AttemptState.FAILED, FailureKind.LOAD_FAILED)
    held_us = fleet.machine.held_until_us(job.job_id)
    assert held_us == fleet.now_us + 1_000_000
    assert fleet.machine.queue_position(job.job_id)[0] == 0
    offered = _outlook(fleet, fleet.job(job.job_id))
    assert offered.chosen is not None and offered.chosen.site_id != failed_at
    assert Reason.RECENT_FAILURE in {one.reason for one in offered.rejections}
    fleet.wait(2, reporting=("a", "b"))
    assert fleet.machine.held_until_us(job.job_id) == 0
    assert fleet.machine.held_until_us(JobId("unknown")) == 0


def test_the_time_that_is_left_shrinks_with_the_steps() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    job = _last(fleet)
    told = job.attempts[0].explanation
    leased = fleet.machine.eta_of(job.job_id, fleet.now_us)
    assert told is not None and leased is not None
    assert (leased.end_p50_us, leased.end_p90_us) == (told.decided_us + told.p50_us, told.decided_us + told.p90_us)
    assert leased.begin_p50_us > told.decided_us
    left = []
    for steps in (1, 10, 20):
        fleet.running("a", job.attempts[0].key, steps)
        running = fleet.machine.eta_of(job.job_id, fleet.now_us)
        assert running is not None and running.begin_p50_us == 0
        left.append(running.end_p50_us - fleet.now_us)
    assert left[0] > left[1] > left[2] > 0
    fleet.end_attempt("a", job.attempts[0].key)
    assert fleet.machine.eta_of(job.job_id, fleet.now_us) is None
