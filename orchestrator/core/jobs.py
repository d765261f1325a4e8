"""Jobs: acceptance, cancelling, expiry, retries and ends.

Decides which submissions are promised and what follows when an attempt ends. Must not know where jobs run.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.model import limits
from atoll.model.attempt import RETRIES, Attempt, Failure, FailureKind, ResultManifest
from atoll.model.errors import FieldError
from atoll.model.ids import JobId, SiteId, TenantId
from atoll.model.job import IMAGE_INPUT, Job, JobSpec, JobState, check_job_state
from atoll.model.placement import Deferral
from atoll.model.splits import check_gang
from atoll.model.words import count, duration, size
from orchestrator.core import attempts, explain, poison, promises, residency
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.events import JobCancelRequested, JobsSubmitted, Submission
from orchestrator.core.outputs import (
    Accepted,
    Bound,
    Done,
    JobSettled,
    Refusal,
    RefusalCode,
    RetryScheduled,
    SubmissionRefused,
    SubmitReply,
)
from orchestrator.core.placement.classes import NO_AVOIDANCE, Avoidance
from orchestrator.core.placement.rows import NO_DEADLINE
from orchestrator.core.state import JobEntry, KeyEntry, State

# Keys of ended jobs that stay known, so that a late retry of a client meets its job: at 60 jobs a second that is an
# hour and a half, ten times longer than any client retries, for about 100 MB.
ENDED_KEYS_MAX = 300_000
# Models that a refusal names: a line, not a catalogue.
_NAMED_MAX = 5


def submitted(ctx: Context, event: JobsSubmitted) -> None:
    """Accept or refuse each submission on its own; one answer for all."""
    outcomes = tuple(_submit(ctx, submission) for submission in event.submissions)
    ctx.answer(event.request, SubmitReply(outcomes=outcomes))


def _submit(ctx: Context, submission: Submission) -> Accepted | Refusal:
    state, spec = ctx.state, submission.spec
    key = (spec.tenant, submission.idempotency_key)
    known = state.keys.get(key) or state.ended_keys.get(key)
    if known is not None:
        if known.payload_digest == submission.payload_digest:
            return Accepted(job_id=known.job_id, existing=True)
        return Refusal(
            code=RefusalCode.CONFLICT,
            field="idempotency_key",
            message=f"idempotency key {submission.idempotency_key!r} belongs to job {known.job_id} with another payload",
        )
    if submission.job_id in state.jobs:
        return Refusal(code=RefusalCode.CONFLICT, field="job_id", message=f"job id {submission.job_id} is taken")
    refusal = unmeant(state, spec)
    if refusal is not None:
        return refusal
    met = met_bound(ctx, spec.tenant, ctx.now_us)
    if met is not None:
        ctx.decisions.append(SubmissionRefused(bound=met[0]))
        return met[1]
    state.accept_seq += 1
    job = Job(
        job_id=submission.job_id,
        spec=spec,
        state=JobState.QUEUED,
        idempotency_key=submission.idempotency_key,
        payload_digest=submission.payload_digest,
        request_id=submission.request_id,
        accepted_us=ctx.now_us,
    )
    entry = JobEntry(job=job, accept_seq=state.accept_seq)
    state.jobs[job.job_id] = entry
    state.keys[key] = KeyEntry(job_id=job.job_id, payload_digest=submission.payload_digest)
    state.tenant_jobs[spec.tenant] = state.tenant_jobs.get(spec.tenant, 0) + 1
    ctx.save_job(entry)
    watch_expiry(ctx, job)
    residency.arrived(ctx, spec.model_id)
    ctx.queue.add(ctx.class_of(spec), entry.accept_seq, job.job_id, spec.tenant, job.accepted_us)
    return Accepted(job_id=job.job_id)


def unmeant(state: State, spec: JobSpec) -> Refusal | None:
    """Why this fleet can make nothing of such a job, however empty it is."""
    if spec.model_id not in state.models:
        return Refusal(code=RefusalCode.INVALID, field="model_id", message=f"no model {spec.model_id!r} in this fleet")
    unusable = _unusable_adapter(state, spec) or _unusable_input(state, spec) or _unshared(state, spec)
    return Refusal(code=RefusalCode.INVALID, field=unusable[0], message=unusable[1]) if unusable is not None else None


def met_bound(ctx: Context, tenant: TenantId, now_us: int) -> tuple[Bound, Refusal] | None:
    """The bound that leaves no room for one more job of this tenant just now, if one does."""
    if len(ctx.queue) >= limits.QUEUED_JOBS_MAX:
        message = f"the queue is full ({limits.QUEUED_JOBS_MAX} jobs)"
        return Bound.QUEUE, Refusal(code=RefusalCode.QUOTA, message=message, retry_after_ms=ctx.outflow.fleet_pause_ms(now_us))
    most = ctx.policy.queued_jobs_per_tenant_max
    if ctx.state.tenant_jobs.get(tenant, 0) >= most:
        message = f"tenant {tenant} has {count(most, 'job')} under way or waiting, as many as one may have"
        pause_ms = ctx.outflow.tenant_pause_ms(tenant, now_us)
        return Bound.TENANT, Refusal(code=RefusalCode.QUOTA, message=message, retry_after_ms=pause_ms)
    return None


def _unusable_adapter(state: State, spec: JobSpec) -> tuple[str, str] | None:
    """(field, message) for the first adapter that the job cannot use, if there is one. The job's model exists."""
    model = state.models[spec.model_id]
    for index, use in enumerate(spec.adapters):
        field, adapter = f"adapters[{index}].adapter_id", state.adapters.get(use.adapter_id)
        if adapter is None:
            return field, f"no adapter {use.adapter_id!r} in this fleet"
        if not adapter.fits(model):
            return field, f"adapter {use.adapter_id} fits {adapter.fits_text}, not model {model.model_id} of family {model.family or '-'}"
        if not spec.simulated and not adapter.servable:
            return field, f"adapter {use.adapter_id} is known by its figures only: only a rehearsal (--simulated) can use it"
    return None


def _unusable_input(state: State, spec: JobSpec) -> tuple[str, str] | None:
    """(field, message) for the first input that no site can begin with, if there is one. The job's model exists."""
    for index, one in enumerate(spec.inputs):
        if one.name != IMAGE_INPUT:
            return f"inputs[{index}].name", f"input {one.name!r} has no meaning: expected one input, named {IMAGE_INPUT!r}"
        if index:
            return "inputs", f"{len(spec.inputs)} images: expected one to begin with"
        if not 0 < one.bytes <= limits.IMAGE_BYTES_MAX:
            return f"inputs[{index}].bytes", f"an image of {size(one.bytes)}: expected one byte to {size(limits.IMAGE_BYTES_MAX)}"
    model = state.models[spec.model_id]
    if spec.inputs and not model.begins_with_image:
        able = sorted(one.model_id for one in state.models.values() if one.pipeline_class and one.begins_with_image)
        some = ", ".join(able[:_NAMED_MAX]) + (", ..." if len(able) > _NAMED_MAX else "") if able else "none here can"
        return "inputs", f"model {model.model_id} ({model.pipeline_class}) cannot begin with an image: models that can: {some}"
    return None


def _unshared(state: State, spec: JobSpec) -> tuple[str, str] | None:
    """(field, message) where no gang of that size can share the work. The job's model exists."""
    try:
        check_gang(state.models[spec.model_id], spec.shape, spec.gang_size, spec.guidance_milli)
    except FieldError as error:
        return error.field, str(error)
    return None


def watch_expiry(ctx: Context, job: Job) -> None:
    """Arm the job's deadline and start timeout."""
    for limit_ms in (job.spec.deadline_ms, job.spec.start_timeout_ms):
        if limit_ms:
            ctx.arm(job.accepted_us + limit_ms * 1_000, TimerKind.JOB_EXPIRY, job.job_id)


def expire(ctx: Context, job_id: JobId) -> None:
    """End a job whose deadline passed, or that did not begin to execute in time."""
    entry = ctx.state.jobs.get(job_id)
    if entry is None:
        return
    job = entry.job
    age_us = ctx.now_us - job.accepted_us
    late = bool(job.spec.deadline_ms) and age_us >= job.spec.deadline_ms * 1_000
    unstarted = bool(job.spec.start_timeout_ms) and age_us >= job.spec.start_timeout_ms * 1_000 and not job.started_us
    if late or unstarted:
        what, limit_ms = ("deadline", job.spec.deadline_ms) if late else ("start timeout", job.spec.start_timeout_ms)
        end(ctx, entry, JobState.EXPIRED, reason=f"{what} of {duration(limit_ms * 1_000)} passed")


def cancel_requested(ctx: Context, event: JobCancelRequested) -> None:
    """A client's cancel: at once for the job, as soon as the site says so for its slot. A second cancel changes nothing."""
    entry = ctx.state.jobs.get(event.job_id)
    if entry is None or entry.job.spec.tenant != event.tenant:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"no live job {event.job_id!r}")
        return
    end(ctx, entry, JobState.CANCELLED, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.job_id,)))


def end(
    ctx: Context,
    entry: JobEntry,
    state: JobState,
    *,
    reason: str = "",
    failure: Failure | None = None,
    result: ResultManifest | None = None,
) -> None:
    """A job becomes terminal: durable, out of memory, its live attempt told to stop."""
    check_job_state(entry.job.job_id, entry.job.state, state)
    held = _held_back(ctx, entry.job.job_id) if state is JobState.EXPIRED else None
    _leave_queue(ctx, entry.job)
    if result is None:
        attempts.stop_live(ctx, entry, FailureKind.MOVED, reason or state.value)
    entry.job = replace(entry.job, state=state, ended_us=ctx.now_us, cancel_reason=reason, failure=failure, result=result, deferral=held)
    job = entry.job
    del ctx.state.jobs[job.job_id]
    ctx.state.jobs_ended += 1
    _count_down(ctx, job.spec.tenant)
    _retire_key(ctx, job)
    promises.settled(ctx, job)
    ctx.save_ended(job)
    ctx.decisions.append(JobSettled(job_id=job.job_id, state=state, queued_to_end_us=ctx.now_us - job.accepted_us))


def _leave_queue(ctx: Context, job: Job) -> None:
    """A job waits no longer. What the first of a class was told passes to the next: for the whole class it was found, which rests on."""
    key = ctx.queue.class_key(job.job_id)
    ctx.queue.discard(job.job_id)
    if key is None or job.deferral is None or key not in ctx.queue.classes:
        return
    heir = ctx.state.jobs[ctx.queue.classes[key].head[1]]
    if heir.job.deferral is None:
        heir.deferrals += 1
        heir.job = heir.job.decided(heir.job.state, heir.job.attempts, job.deferral)


def _held_back(ctx: Context, job_id: JobId) -> Deferral | None:
    """What a job waits for that ends now without having been placed: nobody can ask the queue any more."""
    told = explain.deferral_of(ctx, job_id)
    if told is None:
        return None
    position, length = explain.queue_position(ctx, job_id)
    return replace(told, position=position, queue_length=length)


def _count_down(ctx: Context, tenant: TenantId) -> None:
    left = ctx.state.tenant_jobs[tenant] - 1
    ctx.outflow.ended(tenant, ctx.now_us, left)
    if left:
        ctx.state.tenant_jobs[tenant] = left
    else:
        del ctx.state.tenant_jobs[tenant]


def _retire_key(ctx: Context, job: Job) -> None:
    """Keep the key of an ended job, as the youngest of a bounded number."""
    state = ctx.state
    key = (job.spec.tenant, job.idempotency_key)
    state.ended_keys[key] = state.keys.pop(key)
    if len(state.ended_keys) > ENDED_KEYS_MAX:
        del state.ended_keys[next(iter(state.ended_keys))]


def attempt_failed(ctx: Context, entry: JobEntry, attempt: Attempt, failure: Failure) -> None:
    """An attempt ended without a result: back to the queue within the cause's budget, else the job fails."""
    rule = RETRIES[failure.kind]
    spent = sum(1 for other in entry.job.attempts if other.failure is not None and other.failure.kind is failure.kind)
    poisoned = poison.verdict(ctx, entry.job, failure)
    if poisoned is not None or spent > rule.budget or len(entry.job.attempts) >= limits.ATTEMPTS_PER_JOB_MAX:
        end(ctx, entry, JobState.FAILED, failure=poisoned or failure)
        return
    check_job_state(entry.job.job_id, entry.job.state, JobState.QUEUED)
    # Each further failure of a kind waits twice as long, up to 32 times the first wait.
    backoff_us = rule.backoff_ms * 1_000 * 2 ** min(max(spent - 1, 0), 5)
    entry.not_before_us = ctx.now_us + backoff_us
    entry.job = replace(entry.job, state=JobState.QUEUED)
    ctx.save_job(entry)
    ctx.decisions.append(RetryScheduled(key=attempt.key, kind=failure.kind, not_before_us=entry.not_before_us))
    enqueue(ctx, entry)


def enqueue(ctx: Context, entry: JobEntry, *, avoiding: bool = True) -> None:
    """Put a queued job among its class, or hold it until its back-off is over. A job whose model or adapter was removed fails.

    `avoiding` is false where every place that could take it is one where it failed a moment ago.
    """
    if entry.job.spec.model_id not in ctx.state.models:
        message = f"model {entry.job.spec.model_id} was removed while the job was under way"
        end(ctx, entry, JobState.FAILED, failure=Failure(kind=FailureKind.BAD_INPUT, message=message))
        return
    gone = [use.adapter_id for use in entry.job.spec.adapters if use.adapter_id not in ctx.state.adapters]
    if gone:
        message = f"adapter {gone[0]} was removed while the job was under way"
        end(ctx, entry, JobState.FAILED, failure=Failure(kind=FailureKind.BAD_INPUT, message=message))
        return
    if entry.not_before_us > ctx.now_us:
        ctx.arm(entry.not_before_us, TimerKind.RETRY, entry.job.job_id)
        return
    avoidance = avoidance_of(entry.job, ctx.now_us) if avoiding else NO_AVOIDANCE
    if avoidance.sites:
        ctx.arm(avoidance.until_us, TimerKind.RETRY, entry.job.job_id)
    job = entry.job
    ctx.queue.add(ctx.class_of(job.spec, avoidance), entry.accept_seq, job.job_id, job.spec.tenant, job.accepted_us)


def retry_due(ctx: Context, job_id: JobId) -> None:
    """A back-off, or the avoidance of a site, is over."""
    entry = ctx.state.jobs.get(job_id)
    if entry is not None and entry.job.state is JobState.QUEUED:
        ctx.queue.discard(job_id)
        enqueue(ctx, entry)


def begin_us(job: Job, now_us: int) -> int:
    """How long until a job is ended if it does not execute; NO_DEADLINE where it has no start timeout, or has executed."""
    timeout_us = job.spec.start_timeout_ms * 1_000
    return job.accepted_us + timeout_us - now_us if timeout_us and not job.started_us else NO_DEADLINE


def slack_us(job: Job, now_us: int) -> int:
    """How long until the deadline of a job; NO_DEADLINE where it has none."""
    return job.accepted_us + job.spec.deadline_ms * 1_000 - now_us if job.spec.deadline_ms else NO_DEADLINE


def avoidance_of(job: Job, now_us: int) -> Avoidance:
    """Sites where this job's attempts failed so recently that it should not go there."""
    sites: set[SiteId] = set()
    until_us = 0
    for attempt in job.attempts:
        if attempt.failure is None or not attempt.ended_us:
            continue
        over_us = attempt.ended_us + RETRIES[attempt.failure.kind].avoid_ms * 1_000
        if over_us > now_us:
            sites.add(attempt.site_id)
            until_us = min(until_us, over_us) if until_us else over_us
    return Avoidance(sites=frozenset(sites), until_us=until_us) if sites else NO_AVOIDANCE


def attempt_succeeded(ctx: Context, entry: JobEntry, manifest: ResultManifest) -> None:
    """The one visible result of a job."""
    end(ctx, entry, JobState.SUCCEEDED, result=manifest)


def began_running(ctx: Context, entry: JobEntry) -> None:
    """The live attempt executes: soft, so visible at once and not durable."""
    if entry.job.state is JobState.PLACED:
        entry.job = replace(entry.job, state=JobState.RUNNING, started_us=entry.job.started_us or ctx.now_us)
