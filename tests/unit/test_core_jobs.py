"""Jobs in the core: what is accepted, what comes back, what ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model import limits
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.errors import FieldError
from atoll.model.ids import AttemptKey, JobId, Ordinal, SiteId, TenantId
from atoll.model.job import InputRef, JobState
from atoll.wire.stored import decode_job_progress, encode_job_progress
from orchestrator.core import events
from orchestrator.core.outputs import Accepted, Done, LateResultRefused, PutJob, Refusal, RefusalCode, SubmitReply
from tests.unit.fleet_of_machines import Fleet, in_regions, model, pool, site, spec


def _accepted(reply: object) -> list[str]:
    assert isinstance(reply, SubmitReply)
    assert all(isinstance(outcome, Accepted) for outcome in reply.outcomes), reply
    return [outcome.job_id for outcome in reply.outcomes if isinstance(outcome, Accepted)]


def _refused(reply: object) -> Refusal:
    assert isinstance(reply, SubmitReply)
    (outcome,) = reply.outcomes
    assert isinstance(outcome, Refusal), outcome
    return outcome


def test_a_job_is_placed_told_to_the_site_and_succeeds_once() -> None:
    fleet = Fleet(site("a"))
    (job_id,) = _accepted(fleet.submit(spec()))
    assert fleet.job(job_id).state is JobState.PLACED
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key)
    assert fleet.job(job_id).state is JobState.RUNNING
    fleet.end_attempt("a", key)
    done = fleet.job(job_id)
    assert done.state is JobState.SUCCEEDED
    assert done.result is not None and done.result.key == key
    assert fleet.agents[SiteId("a")].attempts == {}
    assert fleet.agents[SiteId("a")].told[-1].acked_event_seq == 1


def test_records_of_a_job_are_submitted_with_lease_then_terminal() -> None:
    fleet = Fleet(site("a"))
    before = len(fleet.steps)
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key)
    fleet.running("a", key, steps=5)
    fleet.end_attempt("a", key)
    written = [record.job.state for step in fleet.steps[before:] for record in step.records if isinstance(record, PutJob)]
    assert written == [JobState.PLACED, JobState.SUCCEEDED]


def test_same_key_and_payload_is_the_same_job_and_another_payload_is_refused_even_after_the_end() -> None:
    fleet = Fleet(site("a"))
    (job_id,) = _accepted(fleet.submit(spec(), keys=("k",)))
    assert _accepted(fleet.submit(spec(), keys=("k",))) == [job_id]
    refusal = _refused(fleet.submit(spec(prompt="other"), keys=("k",)))
    assert refusal.code is RefusalCode.CONFLICT and job_id in refusal.message
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", key)
    assert _accepted(fleet.submit(spec(), keys=("k",))) == [job_id]
    assert _refused(fleet.submit(spec(prompt="other"), keys=("k",))).code is RefusalCode.CONFLICT
    other = _accepted(fleet.submit(spec(tenant=TenantId("u")), keys=("k",)))
    assert other != [job_id]


IMAGE = InputRef(name="image", digest="sha256:" + "0" * 64, bytes=1_000)


def test_an_input_that_nothing_can_be_begun_with_is_refused_by_field() -> None:
    fleet = Fleet(site("a"), models=(model("m"), replace(model("film"), pipeline_class="WanPipeline")))
    for inputs, field in (
        ((replace(IMAGE, name="mask"),), "inputs[0].name"),
        ((IMAGE, IMAGE), "inputs"),
        ((replace(IMAGE, bytes=0),), "inputs[0].bytes"),
        ((replace(IMAGE, bytes=limits.IMAGE_BYTES_MAX + 1),), "inputs[0].bytes"),
    ):
        assert _refused(fleet.submit(spec(inputs=inputs, strength_milli=500))).field == field
    refusal = _refused(fleet.submit(spec("film", inputs=(IMAGE,), strength_milli=500)))
    assert (refusal.field, "models that can: m" in refusal.message) == ("inputs", True)
    (job_id,) = _accepted(fleet.submit(spec(inputs=(IMAGE,), strength_milli=500)))
    assert fleet.job(job_id).state is JobState.PLACED


def test_a_weaker_change_of_an_image_takes_fewer_steps_and_is_predicted_to() -> None:
    predicted = []
    for strength_milli in (1_000, 500, 250):
        fleet = Fleet(site("a"))
        (job_id,) = _accepted(fleet.submit(spec(inputs=(IMAGE,), strength_milli=strength_milli)))
        predicted.append(fleet.job(job_id).attempts[-1].predicted_us)
    assert predicted == sorted(predicted, reverse=True)
    assert len(set(predicted)) == 3


def test_a_strength_without_an_image_or_too_small_for_a_step_is_no_job() -> None:
    spec(inputs=(IMAGE,), strength_milli=50).check()
    for wrong in (spec(strength_milli=1), spec(inputs=(IMAGE,)), spec(inputs=(IMAGE,), strength_milli=49)):
        with pytest.raises(FieldError, match="strength_milli"):
            wrong.check()


def test_a_model_that_does_not_exist_is_refused_by_field() -> None:
    fleet = Fleet(site("a"))
    assert _refused(fleet.submit(spec(model_id="nope"))).field == "model_id"


def test_a_failure_is_retried_within_its_budget_and_then_told() -> None:
    fleet = Fleet(site("a"), site("b"))
    (job_id,) = _accepted(fleet.submit(spec()))
    for expected in range(1, 4):
        fleet.wait(130, reporting=("a", "b"))
        job = fleet.job(job_id)
        assert len(job.attempts) == expected
        last = job.attempts[-1]
        fleet.end_attempt(last.site_id, last.key, AttemptState.FAILED, FailureKind.EXECUTION_FAILED)
    failed = fleet.job(job_id)
    assert failed.state is JobState.FAILED
    assert failed.failure is not None and failed.failure.kind is FailureKind.EXECUTION_FAILED


def test_a_retry_avoids_the_site_that_failed() -> None:
    fleet = Fleet(site("a"), site("b"))
    (job_id,) = _accepted(fleet.submit(spec()))
    first = fleet.job(job_id).attempts[0]
    fleet.end_attempt(first.site_id, first.key, AttemptState.FAILED, FailureKind.LOAD_FAILED)
    fleet.wait(2, reporting=("a", "b"))
    second = fleet.job(job_id).attempts[1]
    assert second.site_id != first.site_id


def test_cancel_is_final_at_once_and_frees_the_slot_only_when_the_site_says_so() -> None:
    fleet = Fleet(site("a", pool("big", gpus=1)))
    (job_id,) = _accepted(fleet.submit(spec()))
    (key,) = fleet.agents[SiteId("a")].attempts
    reply = fleet.ask(events.JobCancelRequested, tenant=TenantId("t"), job_id=JobId(job_id), reason="no more")
    assert isinstance(reply, Done)
    assert fleet.job(job_id).state is JobState.CANCELLED
    assert fleet.agents[SiteId("a")].attempts[key].stop
    (waiting,) = _accepted(fleet.submit(spec(model_id="m", prompt="next")))
    fleet.submit(spec(prompt="third"))
    step = fleet.end_attempt("a", key)
    assert any(isinstance(decision, LateResultRefused) for decision in step.decisions)
    assert fleet.job(job_id).state is JobState.CANCELLED and fleet.job(job_id).result is None
    assert fleet.job(waiting).state is JobState.PLACED


def test_another_tenant_cannot_cancel() -> None:
    fleet = Fleet(site("a"))
    (job_id,) = _accepted(fleet.submit(spec()))
    reply = fleet.ask(events.JobCancelRequested, tenant=TenantId("u"), job_id=JobId(job_id), reason="mine")
    assert isinstance(reply, Refusal) and reply.code is RefusalCode.NOT_FOUND
    assert fleet.job(job_id).state is JobState.PLACED


def test_a_job_past_its_deadline_expires_and_its_attempt_is_stopped() -> None:
    fleet = Fleet(site("a"))
    (job_id,) = _accepted(fleet.submit(spec(deadline_ms=5_000)))
    fleet.wait(6, reporting=("a",))
    assert fleet.job(job_id).state is JobState.EXPIRED
    assert all(one.stop for one in fleet.agents[SiteId("a")].attempts.values())


def test_a_start_timeout_spares_a_job_that_runs() -> None:
    fleet = Fleet(site("a", pool("big", gpus=1)))
    (first, second) = _accepted(fleet.submit(spec(start_timeout_ms=3_000), spec(start_timeout_ms=3_000, prompt="q")))
    (key, _) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key)
    fleet.wait(5, reporting=("a",))
    assert {fleet.job(first).state, fleet.job(second).state} == {JobState.RUNNING, JobState.EXPIRED}


def test_a_job_that_expires_in_the_queue_keeps_why_it_waited_and_where_it_stood() -> None:
    fleet = Fleet(site("a", pool("big", gpus=1)), models=(model("m"), model("huge", weights_gb=500)))
    (busy, _) = _accepted(fleet.submit(spec(), spec(prompt="behind")))
    fleet.running("a", AttemptKey(job_id=JobId(busy), ordinal=Ordinal(1)))
    stuck, waiting, behind = _accepted(
        fleet.submit(
            spec("huge", start_timeout_ms=5_000), spec(prompt="3", start_timeout_ms=3_000), spec(prompt="4", start_timeout_ms=4_000)
        )
    )
    fleet.wait(2, reporting=("a",))
    stood = [fleet.machine.queue_position(JobId(one)) for one in (stuck, waiting)]
    fleet.wait(4, reporting=("a",))
    ended = [decode_job_progress(encode_job_progress(fleet.job(one)), fleet.job(one).spec) for one in (stuck, waiting, behind)]
    assert {job.state for job in ended} == {JobState.EXPIRED}
    why, place, same = [job.deferral for job in ended]
    assert why is not None and why.waits_for is None and [one.reason for one in why.rejections] == ["memory_too_small"]
    assert place is not None and place.waits_for is not None and place.waits_for.pool_id == "big"
    assert (place.position, place.queue_length) == stood[1]
    assert same is not None and same.waits_for is not None, "it waited behind the first of its class, for the same place"
    assert (why.position, why.queue_length) == (1, 1), "the others had expired before"
    assert stood[0] == (1, 3)


def test_an_impossible_job_waits_with_reasons_and_blocks_nobody() -> None:
    fleet = Fleet(site("a"), models=(model("m"), model("huge", weights_gb=500)))
    (stuck,) = _accepted(fleet.submit(spec(model_id="huge")))
    (other,) = _accepted(fleet.submit(spec()))
    (elsewhere,) = _accepted(fleet.submit(spec(constraints=in_regions("nowhere"))))
    assert fleet.job(stuck).state is JobState.QUEUED
    assert fleet.job(other).state is JobState.PLACED
    deferral = fleet.job(stuck).deferral
    assert deferral is not None and [r.reason for r in deferral.rejections] == ["memory_too_small"]
    deferral = fleet.job(elsewhere).deferral
    assert deferral is not None and [r.reason for r in deferral.rejections] == ["region_not_allowed"]


def test_a_removed_model_fails_the_jobs_that_wait_for_it() -> None:
    fleet = Fleet(site("a"), models=(model("m"), model("huge", weights_gb=500)))
    (stuck,) = _accepted(fleet.submit(spec(model_id="huge")))
    reply = fleet.ask(events.ModelRemoved, actor="t", reason="too large", model_id="huge")
    assert isinstance(reply, Done)
    assert fleet.job(stuck).state is JobState.FAILED
