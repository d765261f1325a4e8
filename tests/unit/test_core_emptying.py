"""Slots that are emptied for a job: it waits for them where that is no worse, and goes elsewhere where it is."""

from __future__ import annotations

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, PoolId, SiteId
from atoll.model.job import Job, JobState
from atoll.model.shape import Shape
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site, spec

LONG = Shape(width=1024, height=1024, steps=1_000)


def _stopping(fleet: Fleet) -> list[AttemptKey]:
    return [key for key, told in fleet.agents[SiteId("a")].attempts.items() if told.stop]


def _urgent(fleet: Fleet) -> list[Job]:
    return [job for job in fleet.jobs.values() if job.spec.priority is URGENT]


def _emptied_for_urgent(b_has: str = "", jobs: int = 1) -> tuple[Fleet, Job]:
    """All slots of a are being emptied for as many urgent jobs of model x, which a has on disk, when b opens, which has idle slots. The
    first of the urgent jobs."""
    fleet = Fleet(site("a", pool("p", gpus=jobs)), site("b", pool("p", gpus=jobs)), models=(model("m"), model("x", 5)))
    for gpu in range(jobs):
        fleet.warm("a", "p-0", gpu, "m")
    fleet.agents[SiteId("a")].disk = {"m", "x"}
    if b_has:
        fleet.warm("b", "p-0", 0, b_has, 5)
    fleet.report("a")
    fleet.report("b")
    fleet.ask(events.SiteCordoned, site_id=SiteId("b"), actor="ops", reason="later")
    fleet.submit(*(spec(prompt=f"batch {number}", priority=BATCH, shape=LONG) for number in range(2 * jobs)))
    for slot in fleet.machine.context.columns.by_pool[SiteId("a"), PoolId("p")].pool.nodes[0].slots:
        fleet.running("a", slot.attempts[0], steps=100)
    fleet.submit(*(spec("x", prompt=f"urgent {number}", priority=URGENT) for number in range(jobs)))
    assert len(_stopping(fleet)) == 2 * jobs and not any(job.attempts for job in _urgent(fleet))
    fleet.ask(events.SiteUncordoned, site_id=SiteId("b"), actor="ops", reason="")
    return fleet, _urgent(fleet)[0]


def test_nobody_is_stopped_for_a_job_that_then_goes_to_a_place_that_is_no_better() -> None:
    """At b the weights would have to be fetched for five seconds; what was stopped at a ends with its step."""
    fleet, urgent = _emptied_for_urgent()
    assert urgent.state is JobState.QUEUED, "its slot is empty in a moment"
    stopping = _stopping(fleet)
    for key in stopping:
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    (attempt,) = fleet.job(urgent.job_id).attempts
    assert attempt.site_id == "a" and attempt.explanation is not None
    told = attempt.explanation.stopped
    assert {AttemptKey(job_id=one.job_id, ordinal=one.ordinal) for one in told} == set(stopping)
    assert all((one.site_id, one.pool_id) == ("a", "p") for one in told) and max(one.lost_us for one in told) > 10 * SECOND
    context = fleet.machine.context
    assert not context.state.jobs[urgent.job_id].stopped, "it is told once"


def test_a_slot_that_is_emptied_for_a_job_is_not_given_to_who_is_aged_but_the_next_is() -> None:
    """Work was stopped for it, and would be lost for nothing. What comes free by itself is all due to the batch work here, which waits for
    longer than any priority is meant to cost."""
    policy = Policy(ageing_ms=1_000, aged_every=1)
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m"), model("x", 5), model("y", 5)), policy=policy)
    fleet.warm("a", "p-0", 0, "m")
    fleet.agents[SiteId("a")].disk = {"m", "x", "y"}
    fleet.report("a")
    fleet.submit(*(spec(prompt=f"batch {number}", priority=BATCH, shape=LONG) for number in range(4)))
    (slot,) = fleet.machine.context.columns.columns[0].pool.nodes[0].slots
    fleet.running("a", slot.attempts[0], steps=100)
    fleet.wait(2, reporting=("a",))
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    fleet.submit(spec("y", prompt="urgent too", priority=URGENT))
    assert [fleet.jobs[key.job_id].spec.prompt for key in slot.attempts] == ["urgent"]
    fleet.end_attempt("a", slot.attempts[0])
    assert {fleet.jobs[key.job_id].spec.priority for key in slot.attempts} == {BATCH}


def test_each_of_several_jobs_waits_for_the_slot_that_is_emptied_for_it() -> None:
    fleet, _ = _emptied_for_urgent(jobs=3)
    assert [job.state for job in _urgent(fleet)] == [JobState.QUEUED] * 3
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert [[one.site_id for one in job.attempts] for job in _urgent(fleet)] == [["a"]] * 3


def test_who_came_after_them_goes_to_the_other_place_at_once() -> None:
    fleet, _ = _emptied_for_urgent(jobs=3)
    fleet.submit(spec("x", prompt="late", priority=URGENT))
    assert [[one.site_id for one in job.attempts] for job in _urgent(fleet)] == [[], [], [], ["b"]]


def test_a_slot_of_a_site_that_takes_no_more_work_is_not_waited_for() -> None:
    fleet, urgent = _emptied_for_urgent()
    fleet.ask(events.SiteCordoned, site_id=SiteId("a"), actor="ops", reason="maintenance")
    told = fleet.job(urgent.job_id).deferral
    assert told is not None and told.until_us < fleet.now_us + fleet.policy.recheck_max_ms * 1_000
    fleet.happen(events.TimerFired(), told.until_us - fleet.now_us)
    (attempt,) = fleet.job(urgent.job_id).attempts
    assert attempt.site_id == "b"


def test_a_job_for_which_a_slot_is_emptied_goes_where_it_is_better_and_says_what_was_stopped_for_it() -> None:
    _, urgent = _emptied_for_urgent("x")
    (attempt,) = urgent.attempts
    assert attempt.site_id == "b" and attempt.explanation is not None and len(attempt.explanation.stopped) == 2


def test_a_stop_that_takes_too_long_is_not_waited_for() -> None:
    fleet, urgent = _emptied_for_urgent()
    fleet.wait(10, reporting=("a", "b"))
    (attempt,) = fleet.job(urgent.job_id).attempts
    assert attempt.site_id == "b"


def test_what_is_stopped_for_a_job_is_kept_in_a_snapshot() -> None:
    fleet, urgent = _emptied_for_urgent()
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    assert len(again.context.state.jobs[urgent.job_id].stopped) == 2
