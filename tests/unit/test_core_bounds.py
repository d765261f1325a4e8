"""The queue's bounds: one tenant's flood is refused with a pause that fits, and others submit and are served meanwhile."""

from __future__ import annotations

import pytest

from atoll.model import limits
from atoll.model.attempt import AttemptState
from atoll.model.ids import JobId, SiteId, TenantId
from atoll.model.job import JobState
from orchestrator.core import events
from orchestrator.core.events import Submission
from orchestrator.core.outputs import Accepted, Bound, Refusal, RefusalCode, SubmissionRefused, SubmitReply
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import Fleet, pool, site, spec


def _submit(fleet: Fleet, tenant: str, count: int) -> tuple[Accepted | Refusal, ...]:
    begun = len(fleet.recording)
    submissions = tuple(
        Submission(
            job_id=JobId(f"{tenant}-{begun}-{number}"), spec=spec(tenant=TenantId(tenant)), idempotency_key=f"{begun}-{number}",
            payload_digest="", request_id="",
        )
        for number in range(count)
    )  # fmt: skip
    reply = fleet.ask(events.JobsSubmitted, submissions=submissions)
    assert isinstance(reply, SubmitReply)
    return reply.outcomes


def _serve(fleet: Fleet, count: int) -> list[TenantId]:
    """End so many jobs, one after the other; whose they were."""
    owners = []
    for _ in range(count):
        key = next(iter(fleet.agents[SiteId("a")].attempts))
        owners.append(fleet.jobs[key.job_id].spec.tenant)
        fleet.warm("a", "p-0", 0, "m")
        fleet.end_attempt("a", key, AttemptState.SUCCEEDED)
        fleet.report("a", after_us=500_000)
    return owners


def test_one_tenant_floods_and_another_still_submits_and_is_served() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), policy=Policy(queued_jobs_per_tenant_max=50))
    outcomes = _submit(fleet, "flood", 80)
    assert [type(outcome) for outcome in outcomes] == [Accepted] * 50 + [Refusal] * 30
    refusal = outcomes[-1]
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.QUOTA and refusal.retry_after_ms > 0
    assert "flood" in refusal.message and "50" in refusal.message
    refused = [decision for step in fleet.steps for decision in step.decisions if isinstance(decision, SubmissionRefused)]
    assert [decision.bound for decision in refused] == [Bound.TENANT] * 30

    small = _submit(fleet, "small", 5)
    assert all(isinstance(outcome, Accepted) for outcome in small)
    served = _serve(fleet, 12)
    assert served.count(TenantId("small")) == 5, "two of the flood were bound before it came; from then on turns"

    # Ends make room again, and the pause is that of the pace at which they came.
    assert isinstance(_submit(fleet, "flood", 1)[0], Accepted)
    (*_, full) = _submit(fleet, "flood", 50)
    assert isinstance(full, Refusal) and 500 <= full.retry_after_ms <= 60_000
    assert full.retry_after_ms != refusal.retry_after_ms
    left = [job for job in fleet.jobs.values() if job.spec.tenant == "small" and job.state is not JobState.SUCCEEDED]
    assert left == []


def test_a_full_queue_refuses_everybody_with_a_pause_until_some_of_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    monkeypatch.setattr(limits, "QUEUED_JOBS_MAX", 4)
    outcomes = (*_submit(fleet, "one", 2), *_submit(fleet, "two", 5))
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert len(refused) == 1, "two are bound, four wait"
    assert refused[0].code is RefusalCode.QUOTA and refused[0].message == "the queue is full (4 jobs)"
    assert refused[0].retry_after_ms == 5_000, "nothing has ended yet"
    bounds = [decision.bound for step in fleet.steps for decision in step.decisions if isinstance(decision, SubmissionRefused)]
    assert bounds == [Bound.QUEUE]


def test_a_retried_submission_is_no_new_job_and_meets_no_bound() -> None:
    fleet = Fleet(site("a"), policy=Policy(queued_jobs_per_tenant_max=1))
    one = Submission(job_id=JobId("j"), spec=spec(), idempotency_key="k", payload_digest="d", request_id="")
    for expected in (False, True):
        reply = fleet.ask(events.JobsSubmitted, submissions=(one,))
        assert isinstance(reply, SubmitReply)
        assert reply.outcomes == (Accepted(job_id=JobId("j"), existing=expected),)


def test_expired_jobs_leave_no_timers_and_make_room() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), policy=Policy(queued_jobs_per_tenant_max=500))
    fleet.submit(spec(), spec(prompt="2"))
    for batch in range(30):
        fleet.submit(*(spec(prompt=f"{batch}-{number}", start_timeout_ms=5_000, deadline_ms=7 * 24 * 3_600_000) for number in range(200)))
        fleet.wait(6, reporting=("a",))
    expired = [job for job in fleet.jobs.values() if job.state is JobState.EXPIRED]
    assert len(expired) == 6_000
    assert all(job.cancel_reason == "start timeout of 5.00s passed" for job in expired)
    assert len(fleet.machine.context.queue) == 0
    assert len(fleet.machine.context.timers) < 5_000, "a deadline of a week is not kept for jobs that have ended"
