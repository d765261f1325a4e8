"""Attempts whose jobs ended first: how they ended at their sites is told in what is kept of the job, and changes nothing else of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind, PhaseTimes
from atoll.model.ids import ChangeSeq, FleetId, JobId, SiteId, Term
from atoll.model.job import Job, JobState
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.ends import EndAttempt, applied
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import Step
from orchestrator.readers import ReadModel
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, pool, site, spec
from tests.unit.test_core_silence import stored_by

A = SiteId("a")


def cancelled() -> tuple[Fleet, Job]:
    """A fleet whose one job was cancelled while it ran, before its site has said anything."""
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.submit(spec())
    (key,) = fleet.agents[A].attempts
    fleet.running("a", key)
    fleet.ask(events.JobCancelRequested, tenant=spec().tenant, job_id=key.job_id, reason="no more")
    job = fleet.job(key.job_id)
    assert (job.state, job.attempts[0].state) == (JobState.CANCELLED, AttemptState.STOPPING)
    return fleet, job


def ends(step: Step) -> list[EndAttempt]:
    """What a step makes durable of such ends; the same is told to readers."""
    written = [record for record in step.records if isinstance(record, EndAttempt)]
    assert written == [command for command in step.commands if isinstance(command, EndAttempt)]
    return written


def shown(job: Job, end: EndAttempt) -> Job:
    """The job as somebody reads it who asks after the end."""
    readers = ReadModel()
    readers.put_job(job)
    readers.end_attempt(end)
    found = readers.job(job.job_id)
    assert found is not None
    return found


def test_the_attempt_of_a_cancelled_job_is_stopped_when_its_site_says_so() -> None:
    fleet, job = cancelled()
    times = PhaseTimes(run_us=2 * SECOND)
    (end,) = ends(fleet.end_attempt("a", job.attempts[0].key, AttemptState.STOPPED, times=times))
    after = shown(job, end)
    (attempt,) = after.attempts
    assert (attempt.state, attempt.ended_us, attempt.times) == (AttemptState.STOPPED, fleet.now_us, times)
    assert after == replace(job, attempts=after.attempts), "nothing else of the job changes"
    assert job.job_id not in fleet.machine.context.state.jobs


def test_the_attempt_of_an_expired_job_too() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.submit(spec(deadline_ms=2_000))
    (key,) = fleet.agents[A].attempts
    fleet.wait(3, reporting=("a",))
    job = fleet.job(key.job_id)
    assert job.state is JobState.EXPIRED
    (end,) = ends(fleet.end_attempt("a", key, AttemptState.STOPPED))
    assert shown(job, end).attempts[0].state is AttemptState.STOPPED


def test_a_result_that_nobody_wants_any_more_leaves_a_stopped_attempt_and_no_result() -> None:
    fleet, job = cancelled()
    (end,) = ends(fleet.end_attempt("a", job.attempts[0].key))
    after = shown(job, end)
    assert (after.state, after.result, after.attempts[0].state) == (JobState.CANCELLED, None, AttemptState.STOPPED)


def test_what_a_site_says_after_a_restart_counts_though_nobody_remembers_the_job() -> None:
    fleet, job = cancelled()
    # Terminal jobs stay in the store and are not loaded.
    known = Stored(
        fleet_id=FleetId("f"), term=Term(2), fleet_time_us=fleet.now_us, last_audit_seq=ChangeSeq(0),
        sites=(fleet.machine.context.state.sites[A].record,), models=tuple(fleet.machine.context.state.models.values()),
    )  # fmt: skip
    fleet.machine = new_machine(known, fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))
    fleet.connect(site("a", pool("p", gpus=1)))
    (end,) = ends(fleet.end_attempt("a", job.attempts[0].key, AttemptState.STOPPED))
    assert shown(job, end).attempts[0].state is AttemptState.STOPPED


def restarted(fleet: Fleet, job: Job) -> None:
    """By what the store holds: the job has ended, its attempt has not."""
    fleet.machine = new_machine(replace(stored_by(fleet), stopping=(job,)), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))


def test_over_a_restart_the_slot_stays_taken_until_the_site_says_so() -> None:
    fleet, job = cancelled()
    restarted(fleet, job)
    assert job.job_id not in fleet.machine.context.state.jobs
    fleet.connect(site("a", pool("p", gpus=1)))
    fleet.report("a")
    assert [one.stop for one in fleet.agents[A].attempts.values()] == [True]
    fleet.submit(spec(prompt="the next"))
    (end,) = ends(fleet.end_attempt("a", job.attempts[0].key, AttemptState.STOPPED))
    assert shown(job, end).attempts[0].state is AttemptState.STOPPED
    (key,) = fleet.agents[A].attempts
    assert key.job_id != job.job_id


@pytest.mark.parametrize("restart", [False, True])
def test_where_a_site_is_lost_while_it_drains_the_attempt_is_too(restart: bool) -> None:
    fleet, job = cancelled()
    fleet.ask(events.SiteDrainRequested, actor="t", reason="old", site_id=A, deadline_ms=0)
    if restart:
        restarted(fleet, job)
    steps = len(fleet.steps)
    fleet.wait(fleet.policy.lost_after_min_ms / 1_000 + 60)
    (end,) = [end for step in fleet.steps[steps:] for end in ends(step)]
    (attempt,) = shown(job, end).attempts
    assert (attempt.state, attempt.failure and attempt.failure.message) == (AttemptState.LOST, "site a was lost while it drained")


@pytest.mark.parametrize("restart", [False, True])
def test_where_the_site_is_removed_before_it_answers_the_attempt_is_lost_and_says_why(restart: bool) -> None:
    fleet, job = cancelled()
    if restart:
        restarted(fleet, job)
    fleet.ask(events.SiteRemoveRequested, actor="t", reason="gone", site_id=A, force=True)
    (end,) = ends(fleet.steps[-1])
    (attempt,) = shown(job, end).attempts
    assert attempt.state is AttemptState.LOST and attempt.ended_us
    assert attempt.failure is not None and attempt.failure.kind is FailureKind.LOST
    assert attempt.failure.message == "site a was removed"


def test_ends_of_live_jobs_are_no_such_ends() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.submit(spec())
    (key,) = fleet.agents[A].attempts
    assert ends(fleet.end_attempt("a", key, AttemptState.FAILED, FailureKind.LOAD_FAILED)) == []


@pytest.mark.parametrize("what", ["another site", "a live job", "an attempt that ended", "an unknown attempt"])
def test_an_end_that_is_not_the_attempts_own_changes_nothing(what: str) -> None:
    _, job = cancelled()
    (attempt,) = job.attempts
    end = EndAttempt(key=attempt.key, site_id=A, state=AttemptState.STOPPED, ended_us=9)
    assert applied(job, end) is not None
    if what == "another site":
        end = replace(end, site_id=SiteId("b"))
    elif what == "a live job":
        job = replace(job, state=JobState.RUNNING)
    elif what == "an attempt that ended":
        job = replace(job, attempts=(replace(attempt, state=AttemptState.LOST),))
    else:
        end = replace(end, key=attempt.key._replace(job_id=JobId("other")))
    assert applied(job, end) is None
