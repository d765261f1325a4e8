"""Stops: what one was for outlives a restart, costs no retry, is seen at once, and leaves the others of the slot as they are."""

from __future__ import annotations

from atoll.model.attempt import RETRIES, AttemptState, FailureKind
from atoll.model.ids import AttemptKey, FleetId, SiteId, TenantId, Term
from atoll.model.job import JobState
from atoll.model.shape import Shape
from orchestrator.core import events
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import PutJob, SendAssignment
from orchestrator.core.state import Slot
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site, spec
from tests.unit.test_core_silence import stored_by

LONG = Shape(width=4096, height=4096, steps=1_000)
# One more than a job may be preempted.
_ROUNDS = 3


def _fleet(gpus: int = 1, *names: str, warm: bool = True) -> Fleet:
    """Sites of one pool; the first has model m in every GPU, unless it is not `warm`."""
    names = names or ("a",)
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in names), models=(model("m", 10),))
    for name in names:
        fleet.agents[SiteId(name)].disk.add("m")
        for gpu in range(gpus if warm else 0):
            fleet.warm(name, "p-0", gpu, "m")
        fleet.report(name)
    return fleet


def _restart(fleet: Fleet, *, report: bool = True) -> None:
    """Another process leads from what is in the store."""
    fleet.machine = new_machine(stored_by(fleet), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))
    for agent in list(fleet.agents.values()):
        fleet.connect(agent.site, report=report)


def _slot(fleet: Fleet) -> Slot:
    return fleet.machine.context.columns.columns[0].pool.nodes[0].slots[0]


def _failures(fleet: Fleet, key: AttemptKey) -> list[FailureKind]:
    return [attempt.failure.kind for attempt in fleet.jobs[key.job_id].attempts if attempt.failure is not None]


def test_a_preempted_job_outlives_restarts_however_often_that_meets() -> None:
    fleet = _fleet()
    fleet.submit(spec(prompt="batch", priority=BATCH, shape=LONG))
    (batch,) = fleet.jobs
    for number in range(_ROUNDS):
        key = fleet.jobs[batch].attempts[-1].key
        fleet.running("a", key)
        fleet.submit(spec(prompt=f"urgent {number}", priority=URGENT))
        if not fleet.agents[SiteId("a")].attempts[key].stop:
            break  # as often as it may be
        _restart(fleet)
        assert fleet.agents[SiteId("a")].attempts[key].stop, "the new leader still wants it stopped"
        fleet.end_attempt("a", key, AttemptState.STOPPED)
        for other in list(fleet.machine.context.state.sites[SiteId("a")].attempts):
            if other.job_id != batch:
                fleet.end_attempt("a", other)
        fleet.wait(2, reporting=("a",))
    job = fleet.jobs[batch]
    assert job.state in (JobState.PLACED, JobState.RUNNING)
    kinds = [attempt.failure.kind for attempt in job.attempts[:-1] if attempt.failure is not None]
    assert kinds == [FailureKind.PREEMPTED] * fleet.policy.preemptions_max
    fleet.end_attempt("a", job.attempts[-1].key)
    assert fleet.jobs[batch].state is JobState.SUCCEEDED


def test_what_a_drain_stopped_is_moved_and_may_come_back_at_once_after_a_restart() -> None:
    fleet = _fleet(1, "a", "b")
    fleet.submit(spec(shape=LONG), spec(prompt="2", shape=LONG))
    site_of = {attempt.site_id: attempt.key for job in fleet.jobs.values() for attempt in job.attempts}
    fleet.running("a", site_of[SiteId("a")])
    fleet.ask(events.SiteDrainRequested, actor="t", reason="power", site_id="a", deadline_ms=1_000)
    fleet.wait(2, reporting=("a", "b"))
    key = site_of[SiteId("a")]
    assert fleet.agents[SiteId("a")].attempts[key].stop
    _restart(fleet)
    fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert _failures(fleet, key) == [FailureKind.MOVED]
    failure = fleet.jobs[key.job_id].attempts[0].failure
    assert failure is not None and "deadline of its drain" in failure.message
    assert fleet.jobs[key.job_id].attempts[-1].site_id == "b", "no back-off"


def test_a_stop_is_durable_before_the_site_is_told_and_seen_by_those_who_watch() -> None:
    fleet = _fleet()
    fleet.submit(spec(prompt="batch", priority=BATCH, shape=LONG))
    (batch,) = fleet.jobs
    fleet.running("a", fleet.jobs[batch].attempts[0].key)
    fleet.submit(spec(prompt="urgent", priority=URGENT))
    step = fleet.steps[-1]
    assert any(isinstance(command, SendAssignment) and any(one.stop for one in command.assignment.attempts) for command in step.commands)
    (saved,) = [record.job for record in step.records if isinstance(record, PutJob) and record.job.job_id == batch]
    (attempt,) = fleet.jobs[batch].attempts
    assert attempt.state is AttemptState.STOPPING and saved.attempts == (attempt,)
    assert attempt.failure is not None and attempt.failure.kind is FailureKind.PREEMPTED


def test_a_result_that_came_before_the_stop_counts_and_leaves_no_failure_behind() -> None:
    fleet = _fleet()
    fleet.submit(spec(prompt="batch", priority=BATCH, shape=LONG))
    (batch,) = fleet.jobs
    key = fleet.jobs[batch].attempts[0].key
    fleet.running("a", key)
    fleet.submit(spec(prompt="urgent", priority=URGENT))
    _restart(fleet)
    fleet.end_attempt("a", key)
    job = fleet.jobs[batch]
    assert job.state is JobState.SUCCEEDED and job.attempts[0].failure is None


def test_a_hanging_attempt_that_was_stopped_is_still_avoided_after_a_restart() -> None:
    fleet = _fleet(1, "a", "b")
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    key, where = job.attempts[0].key, job.attempts[0].site_id
    fleet.running(where, key)
    patience_s = max(fleet.policy.hang_factor * job.attempts[0].predicted_us // SECOND, fleet.policy.hang_min_ms // 1_000)
    fleet.wait(patience_s + 60, reporting=("a", "b"))
    assert fleet.agents[where].attempts[key].stop
    _restart(fleet)
    fleet.end_attempt(where, key, AttemptState.STOPPED)
    assert _failures(fleet, key) == [FailureKind.TIMED_OUT]


def test_work_that_stopped_because_nobody_was_heard_is_lost_not_at_fault_and_not_for_ever() -> None:
    fleet = _fleet()
    fleet.submit(spec())
    (job_id,) = fleet.jobs
    for _ in range(RETRIES[FailureKind.LOST].budget + 1):
        assert fleet.jobs[job_id].state is JobState.PLACED
        _restart(fleet)
        fleet.end_attempt("a", fleet.jobs[job_id].attempts[-1].key, AttemptState.STOPPED)
        fleet.wait(20, reporting=("a",))
    job = fleet.jobs[job_id]
    assert job.state is JobState.FAILED and job.failure is not None and job.failure.kind is FailureKind.LOST


def test_a_cancelled_job_ends_at_once_and_its_stop_is_no_failure_of_its_attempt() -> None:
    fleet = _fleet()
    fleet.submit(spec(shape=LONG))
    (job_id,) = fleet.jobs
    fleet.ask(events.JobCancelRequested, job_id=job_id, tenant=TenantId("t"), reason="enough")
    job = fleet.jobs[job_id]
    assert job.state is JobState.CANCELLED
    assert [(attempt.state, attempt.failure) for attempt in job.attempts] == [(AttemptState.STOPPING, None)]


# --- who stays in the slot ----------------------------------------------------------------------------------------------------


def test_who_leaves_from_behind_takes_only_its_own_time_along() -> None:
    fleet = _fleet()
    fleet.submit(spec(prompt="1", shape=LONG), spec(prompt="2", shape=LONG))
    head, behind = _slot(fleet).attempts
    exec_us = fleet.machine.context.state.sites[SiteId("a")].attempts[head].exec_us
    fleet.running("a", head)
    fleet.happen(events.TimerFired(), exec_us * 95 // 100)
    fleet.running("a", head, steps=950)
    fleet.ask(events.JobCancelRequested, job_id=behind.job_id, tenant=TenantId("t"), reason="")
    fleet.end_attempt("a", behind, AttemptState.STOPPED)
    assert _slot(fleet).attempts == [head]
    assert 0 < _slot(fleet).busy_until_us - fleet.now_us <= exec_us * 6 // 100


def test_what_is_nearly_done_is_not_preempted_because_somebody_left_from_behind() -> None:
    fleet = _fleet()
    fleet.submit(spec(prompt="1", shape=LONG, priority=BATCH), spec(prompt="2", shape=LONG, priority=BATCH))
    head, behind = _slot(fleet).attempts
    exec_us = fleet.machine.context.state.sites[SiteId("a")].attempts[head].exec_us
    fleet.running("a", head)
    fleet.happen(events.TimerFired(), exec_us * 93 // 100)
    fleet.running("a", head, steps=930)
    fleet.ask(events.JobCancelRequested, job_id=behind.job_id, tenant=TenantId("t"), reason="")
    fleet.end_attempt("a", behind, AttemptState.STOPPED)
    fleet.submit(spec(prompt="urgent", priority=URGENT))
    assert not fleet.agents[SiteId("a")].attempts[head].stop


def test_a_load_under_way_is_still_counted_when_somebody_leaves_before_or_behind_it() -> None:
    fleet = _fleet(warm=False)
    fleet.submit(*(spec(prompt=str(number)) for number in range(3)))
    slot, lives = _slot(fleet), fleet.machine.context.state.sites[SiteId("a")].attempts
    first, second = slot.attempts
    load_us = slot.busy_until_us - fleet.now_us - lives[first].exec_us - lives[second].exec_us
    assert load_us > SECOND
    second_us = lives[second].exec_us
    fleet.ask(events.JobCancelRequested, job_id=second.job_id, tenant=TenantId("t"), reason="")
    until_us = slot.busy_until_us
    fleet.end_attempt("a", second, AttemptState.STOPPED)
    third = slot.attempts[1]
    assert slot.busy_until_us == until_us - second_us + lives[third].exec_us
    fleet.ask(events.JobCancelRequested, job_id=first.job_id, tenant=TenantId("t"), reason="")
    fleet.end_attempt("a", first, AttemptState.STOPPED)
    assert slot.attempts == [third]
    assert abs(slot.busy_until_us - fleet.now_us - load_us - lives[third].exec_us) < SECOND
