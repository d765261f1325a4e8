"""Learning in the core: what is predicted follows what attempts took, survives restarts, and starves no site."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from atoll.model.attempt import Attempt, AttemptState, FailureKind, PhaseTimes
from atoll.model.audit import Severity
from atoll.model.ids import AttemptKey, ChangeSeq, FleetId, ModelId, SiteId, Term
from atoll.model.learned import Component, Estimates, Level
from atoll.model.modelspec import Modality
from atoll.model.report import RateFacts, SiteReport
from atoll.model.site import SiteRuntime
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.learning.book import Book
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import AppendAudit, Done, EstimateShifted, PutEstimates, Refusal
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GB, GPUS, SECOND, Fleet, model, pool, site, spec
from tests.unit.learned_world import place, seen

EXECUTION = Component.EXECUTION
# Nobody reports in these tests while hours pass.
CALM = Policy(silent_after_ms=10**9, lost_after_min_ms=10**9, lost_after_max_ms=10**9, stop_after_ms=10**9, hang_min_ms=10**9)


def term(attempt: Attempt, name: str) -> int:
    """Microseconds predicted for a term of the chosen place."""
    assert attempt.explanation is not None
    return attempt.explanation.chosen.terms_us[attempt.explanation.term_names.index(name)]


def placed(fleet: Fleet, **changes: object) -> Attempt:
    """A job is submitted; where it went."""
    fleet.submit(spec(**changes))  # type: ignore[arg-type]  # fields of JobSpec
    (job,) = [job for job in fleet.jobs.values() if job.job_id.startswith(f"j{len(fleet.recording) - 1}-")]
    assert job.attempts, job
    return job.attempts[-1]


def execution_prior_us(fleet: Fleet, attempt: Attempt) -> int:
    """What physics say, without what was learned."""
    live = fleet.machine.context.state.sites[attempt.site_id].attempts[attempt.key]
    return term(attempt, "execution") * 1_000 // live.factors_milli[list(Component).index(EXECUTION)]


def work(fleet: Fleet, ratio: float, *, gap_s: float = 6.0, **changes: object) -> Attempt:
    """A job runs `ratio` times as long as physics say; the attempt as it was placed."""
    attempt = placed(fleet, **changes)
    run_us = int(execution_prior_us(fleet, attempt) * ratio)
    times = PhaseTimes(waiting_us=0, run_us=run_us, upload_us=10_000)
    fleet.end_attempt(attempt.site_id, attempt.key, times=times, after_us=run_us)
    fleet.now_us += int(gap_s * SECOND)
    return attempt


def one_site(**policy: object) -> Fleet:
    fleet = Fleet(site("a"), policy=replace(CALM, **policy))  # type: ignore[arg-type]  # fields of Policy
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    return fleet


def test_predictions_follow_what_attempts_took_and_the_end_tells_with_which_factor() -> None:
    fleet = one_site()
    first = work(fleet, 2.0)
    for _ in range(40):
        work(fleet, 2.0)
    last = work(fleet, 2.0)
    assert term(last, "execution") == pytest.approx(2 * term(first, "execution"), rel=0.05)
    ended = fleet.job(last.key.job_id).attempts[-1]
    factor = ended.factors_milli[list(Component).index(EXECUTION)]
    assert term(ended, "execution") * 1_000 // factor == pytest.approx(term(first, "execution"), abs=2)
    assert ended.times.run_us == pytest.approx(term(ended, "execution"), rel=0.05)
    assert last.predicted_us - first.predicted_us == pytest.approx(term(first, "execution"), rel=0.1)


def test_without_learning_predictions_stay_and_are_judged_all_the_same() -> None:
    fleet = one_site(learning=False)
    first = work(fleet, 2.0)
    for _ in range(250):
        work(fleet, 2.0)
    assert term(work(fleet, 2.0), "execution") == term(first, "execution")
    calibration = fleet.machine.calibration()
    (gate,) = [gate for gate in calibration.gates if gate.name == EXECUTION]
    assert gate.observations > 200 and not calibration.learning


def test_quotes_follow_the_totals_of_chosen_decisions() -> None:
    fleet = one_site()
    for _ in range(60):
        work(fleet, 1.5)
    told = fleet.machine.context.book.quote(0, 100 * SECOND, False, Modality.IMAGE)
    assert 0 < told.p50_us <= told.p90_us
    assert told != Book().quote(0, 100 * SECOND, False, Modality.IMAGE)


def test_a_site_that_was_slow_once_gets_work_again() -> None:
    """Twins in everything but one bad hour: hours later both are used, although nobody was sent to the slow one in between."""
    fleet = Fleet(site("good", pool("p", gpus=1)), site("slow", pool("p", gpus=1)), policy=CALM)
    for name in ("good", "slow"):
        fleet.warm(name, "p-0", 0, "m")
        fleet.report(name)
    for _ in range(40):
        for name, ratio in (("good", 1.0), ("slow", 4.0)):
            attempt = work(fleet, ratio, gap_s=1.0, constraints=replace(spec().constraints, sites=(SiteId(name),)))
            assert attempt.site_id == name
    assert _places_of_two(fleet) == {"good"}, "rather behind another job than where it takes four times as long"
    hours = 0
    while _places_of_two(fleet) == {"good"}:
        hours += 1
        fleet.now_us += 3_600 * SECOND
        assert hours < 8
    assert hours > 0
    # It was fast: from now on it is as good a place as the other.
    for _ in range(40):
        work(fleet, 1.0, gap_s=30.0, constraints=replace(spec().constraints, sites=(SiteId("slow"),)))
    estimates = {row.name: row.effect_milli for row in fleet.machine.residuals(component=EXECUTION) if row.level is Level.SITE}
    assert estimates["slow"] < 1_300


def _places_of_two(fleet: Fleet) -> set[str]:
    """Two jobs at once, one replica warm at either site: where they go. They take as long as physics say, wherever that is."""
    fleet.submit(spec(prompt="one"), spec(prompt="two"))
    attempts = [job.attempts[-1] for job in fleet.jobs.values() if job.attempts and not job.attempts[-1].ended_us]
    assert len(attempts) == 2
    for attempt in attempts:
        times = PhaseTimes(run_us=execution_prior_us(fleet, attempt))
        fleet.end_attempt(attempt.site_id, attempt.key, times=times, after_us=times.run_us)
    return {str(attempt.site_id) for attempt in attempts}


def _running(fleet: Fleet, after_s: float) -> Attempt:
    """An attempt that executes and has done so for a while."""
    attempt = placed(fleet)
    fleet.running("a", attempt.key)
    fleet.now_us += int(after_s * SECOND)
    return attempt


def test_a_cancelled_attempt_counts_as_at_least_as_long() -> None:
    fleet = one_site()
    for _ in range(30):
        attempt = _running(fleet, 0.0)
        run_us = 3 * execution_prior_us(fleet, attempt)
        fleet.now_us += run_us
        fleet.ask(events.JobCancelRequested, tenant=spec().tenant, job_id=attempt.key.job_id, reason="too slow")
        fleet.end_attempt("a", attempt.key, AttemptState.STOPPED, times=PhaseTimes(run_us=run_us))
        fleet.now_us += 6 * SECOND
    assert fleet.machine.context.book.factors_milli(ModelId("m"), GPUS_BIG, SiteId("a"))[list(Component).index(EXECUTION)] > 2_500
    # What was cut off before it was due says nothing.
    quick = one_site()
    for _ in range(30):
        attempt = _running(quick, 0.05)
        quick.ask(events.JobCancelRequested, tenant=spec().tenant, job_id=attempt.key.job_id, reason="changed my mind")
        quick.end_attempt("a", attempt.key, AttemptState.STOPPED, times=PhaseTimes(run_us=50_000))
    assert quick.machine.context.book.factors_milli(ModelId("m"), GPUS_BIG, SiteId("a")) == (1_000,) * len(Component)


GPUS_BIG = next(iter(GPUS))


def test_a_lost_attempt_was_at_work_until_its_site_was_last_heard() -> None:
    fleet = Fleet(site("a"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    attempt = placed(fleet)
    prior_us = execution_prior_us(fleet, attempt)
    fleet.running("a", attempt.key)
    fleet.now_us += 2 * prior_us
    fleet.report("a")
    before = fleet.machine.context.book.components[EXECUTION].observations
    # Silence: half an hour of it is no run of half an hour.
    fleet.wait(1_800)
    assert fleet.job(attempt.key.job_id).attempts[0].state is AttemptState.LOST
    book = fleet.machine.context.book
    assert book.components[EXECUTION].observations == before + 1
    (row,) = [row for row in fleet.machine.residuals(component=EXECUTION) if row.level is Level.ALL]
    assert 1_000 < row.effect_milli < 1_200
    # The late truth is refused, and not learned from twice.
    fleet.connect(fleet.agents[SiteId("a")].site)
    fleet.end_attempt("a", attempt.key, times=PhaseTimes(run_us=2 * prior_us))
    assert book.components[EXECUTION].observations == before + 1


@pytest.mark.parametrize("kind", [FailureKind.OUT_OF_MEMORY, FailureKind.EXECUTION_FAILED])
def test_what_failed_teaches_nothing_of_how_long_success_takes(kind: FailureKind) -> None:
    fleet = one_site()
    attempt = _running(fleet, 0.0)
    fleet.end_attempt("a", attempt.key, AttemptState.FAILED, kind, times=PhaseTimes(run_us=500 * SECOND))
    assert fleet.machine.context.book.components[EXECUTION].observations == 0


def test_who_joins_a_fetch_learns_nothing_of_fetching() -> None:
    fleet = Fleet(site("a", pool("p", gpus=8)), policy=CALM)
    fleet.submit(*(spec(prompt=str(number)) for number in range(12)))
    lives = [live for live in fleet.machine.context.state.sites[SiteId("a")].attempts.values() if live.attempt.cold]
    fetch = list(Component).index(Component.FETCH)
    assert [live.factors_milli[fetch] for live in lives] == [1_000, *[0] * (len(lives) - 1)]
    assert len(lives) > 1
    assert all(term(live.attempt, "fetch") > 0 for live in lives)
    for live in lives:
        fleet.end_attempt("a", live.key, times=PhaseTimes(fetch_us=5 * SECOND, load_us=SECOND, run_us=SECOND))
    observations = {name: one.observations for name, one in fleet.machine.context.book.components.items()}
    assert (observations[Component.FETCH], observations[Component.LOAD]) == (1, len(lives))


def test_a_copy_within_a_site_is_predicted_and_learned_apart_from_the_way_to_the_origin() -> None:
    fleet = Fleet(site("a", pool("p", nodes=2, gpus=1), origin_gbs=1), policy=CALM, runtime=SiteRuntime.TWIN)
    book = fleet.machine.context.book
    fetch = list(Component).index(Component.FETCH)
    for _ in range(30):
        seen(book, Component.FETCH, 3.0, place("m", "big", "a"), fleet.now_us)
        fleet.now_us += 10 * SECOND
    first = placed(fleet, simulated=True)
    assert term(first, "fetch") > 15 * SECOND  # 10 GB at 1 GB/s, and slower than that
    node = first.slot.node_id
    fleet.agents[SiteId("a")].disk_of[node] = {"m"}
    fleet.agents[SiteId("a")].warm[node, 0] = {"m": 10 * GB}
    fleet.report("a")
    second = placed(fleet, simulated=True, prompt="while the first one runs")
    assert second.slot.node_id != node
    lan = fleet.agents[SiteId("a")].site.lan_bytes_per_s
    assert term(second, "fetch") == 10 * GB * SECOND // lan
    before = book.components[Component.FETCH].observations
    for attempt in (first, second):
        fleet.end_attempt("a", attempt.key, times=PhaseTimes(fetch_us=30 * SECOND, load_us=SECOND, run_us=SECOND))
    assert book.components[Component.FETCH].observations == before + 1
    (told,) = [job.attempts[-1] for job in fleet.jobs.values() if job.job_id == second.key.job_id]
    assert told.factors_milli[fetch] == 0


def test_what_was_learned_is_checkpointed_each_minute_and_survives_a_restart() -> None:
    fleet = one_site()
    for _ in range(60):
        work(fleet, 2.0, gap_s=5.0)
    saved = [(at, record) for at, step in zip(_times(fleet), fleet.steps, strict=True) for record in step.records
             if isinstance(record, PutEstimates)]  # fmt: skip
    assert len(saved) >= 3
    assert all(later - earlier >= 60 * SECOND for (earlier, _), (later, _) in pairwise(saved))
    # Nothing new, nothing written.
    steps = len(fleet.steps)
    fleet.wait(300)
    assert not [record for step in fleet.steps[steps:] for record in step.records if isinstance(record, PutEstimates)]
    last = saved[-1][1]
    stored = Stored(fleet_id=FleetId("f"), term=Term(2), fleet_time_us=fleet.now_us, last_audit_seq=ChangeSeq(0), estimates=last.estimates)
    again = new_machine(stored, fleet.policy, GPUS)
    (before, after) = (
        machine.context.book.factors_milli(ModelId("m"), GPUS_BIG, SiteId("a"))[list(Component).index(EXECUTION)]
        for machine in (fleet.machine, again)
    )
    assert after == pytest.approx(before, rel=0.06)
    assert after > 1_500


def _times(fleet: Fleet) -> list[int]:
    return [now_us for now_us, _ in fleet.recording]


def test_a_lasting_change_is_in_the_audit_once() -> None:
    fleet = one_site()
    for number in range(120):
        work(fleet, 1.0 + 0.04 * (number % 3 - 1))
    for number in range(60):
        work(fleet, 2.0 + 0.08 * (number % 3 - 1))
    lines = [record.event for step in fleet.steps for record in step.records if isinstance(record, AppendAudit)]
    (line,) = [line for line in lines if line.verb == "estimate_shifted"]
    assert (line.severity, line.subject) == (Severity.WARNING, "site/a")
    assert line.detail.startswith("execution: factor ")
    shifts = [decision for step in fleet.steps for decision in step.decisions if isinstance(decision, EstimateShifted)]
    assert len(shifts) == 1
    assert fleet.machine.calibration().shifts == 1


def test_a_reset_forgets_is_durable_at_once_and_audited() -> None:
    fleet = one_site()
    for _ in range(40):
        work(fleet, 2.0)
    refused = fleet.ask(events.EstimatesResetRequested, actor="ops", reason="r", component=None, site_id=SiteId("nowhere"))
    assert isinstance(refused, Refusal)
    done = fleet.ask(events.EstimatesResetRequested, actor="ops", reason="new drivers", component=EXECUTION, site_id=None)
    assert done == Done(changed=("fleet",))
    (record,) = [record for record in fleet.steps[-1].records if isinstance(record, PutEstimates)]
    assert all(not one.cells for one in record.estimates.components if one.component is EXECUTION)
    (line,) = [record.event for record in fleet.steps[-1].records if isinstance(record, AppendAudit)]
    assert (line.verb, line.actor, line.reason, line.detail) == ("estimates_reset", "ops", "new drivers", "execution")
    assert term(work(fleet, 1.0), "execution") == term(work(Fleet(site("a")), 1.0), "execution")


def test_an_attempt_that_outlives_a_restart_teaches_nothing_wrong() -> None:
    """Its factors are not known any more: it is judged by nobody."""
    fleet = one_site()
    for _ in range(40):
        work(fleet, 2.0)
    attempt = placed(fleet)
    job = fleet.job(attempt.key.job_id)
    stored = Stored(
        fleet_id=FleetId("f"), term=Term(2), fleet_time_us=fleet.now_us, last_audit_seq=ChangeSeq(0), jobs=(job,), models=(model("m"),),
        sites=(fleet.machine.context.state.sites[SiteId("a")].record,), estimates=Estimates(),
    )  # fmt: skip
    fleet.machine = new_machine(stored, fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))
    fleet.connect(fleet.agents[SiteId("a")].site)
    fleet.end_attempt("a", AttemptKey(job_id=attempt.key.job_id, ordinal=attempt.key.ordinal), times=PhaseTimes(run_us=SECOND))
    assert fleet.machine.context.book.components[EXECUTION].observations == 0


def test_what_a_site_measured_counts_when_what_was_learned_does() -> None:
    fleet = one_site()
    (agent,) = fleet.agents.values()
    disk_rate = fleet.machine.context.columns.disk_rate

    def told(disk_bytes_per_s: int) -> None:
        agent.report_seq += 1
        generation, rates = agent.told[-1].generation, RateFacts(disk_bytes_per_s=disk_bytes_per_s)
        report = SiteReport(seq=agent.report_seq, full=False, generation=generation, rates=rates)
        fleet.happen(events.SiteReported(site_id=agent.site.site_id, session=agent.session, report=report))

    declared = disk_rate.tolist()
    told(GB // 3)
    assert disk_rate.tolist() == declared
    work(fleet, 1.0, gap_s=6.0)
    work(fleet, 1.0)
    assert set(disk_rate.tolist()) == {GB // 3}
    told(GB // 3 + GB // 50)
    work(fleet, 1.0)
    assert set(disk_rate.tolist()) == {GB // 3}, "a tenth more or less is none"
