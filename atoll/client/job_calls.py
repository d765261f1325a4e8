"""The methods of JobService as values.

Decides which of them may be repeated: reads, submits (their idempotency key makes two one) and cancel (cancelled twice is cancelled).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from atoll.client.answers import JobChange, JobExplained, JobLogs, Submitted
from atoll.client.calls import JOBS, Call, Position, Stream, argument, whole
from atoll.client.errors import CorruptError, of_refusal
from atoll.client.requests import JobRequest
from atoll.model import limits
from atoll.model.ids import JobId, SiteId, parse_name
from atoll.model.job import Job, JobState
from atoll.model.quote import Quote
from atoll.v1 import job_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import JOB_STATE_TO
from atoll.wire.jobs import job_from_proto
from atoll.wire.quotes import eta_from_proto, place_from_proto, quote_from_proto


def submit(request: JobRequest) -> Call[Submitted]:
    """Submit one job."""
    return Call(service=JOBS, method="Submit", request=request.to_proto(), read=_submitted, repeatable=True)


def submit_batch(message: pb.SubmitBatchRequest) -> Call[tuple[Submitted, ...]]:
    """Submit up to 1,000 jobs."""
    expected = len(message.jobs)

    def read(response: pb.SubmitBatchResponse) -> tuple[Submitted, ...]:
        if len(response.outcomes) != expected:
            raise CorruptError(f"the orchestrator answered {len(response.outcomes)} outcomes for {expected} jobs")
        return tuple(_outcome(outcome) for outcome in response.outcomes)

    return Call(service=JOBS, method="SubmitBatch", request=message, read=read, repeatable=True)


def get(job_id: str) -> Call[Job]:
    """One job."""
    return Call(service=JOBS, method="Get", request=pb.GetJobRequest(job_id=_job_id(job_id)), read=job_from_proto, repeatable=True)


def page(tenant: str, model: str, states: Collection[JobState], size: int, token: str) -> Call[tuple[tuple[Job, ...], str]]:
    """One page of jobs, newest first, and the token of the next ("": there is none)."""
    request = pb.ListJobsRequest(
        tenant=argument(parse_name, "tenant", tenant) if tenant else "",
        states=[JOB_STATE_TO[state] for state in sorted(set(states))],
        page_size=whole("page_size", size, 1, limits.PAGE_SIZE_MAX),
        page_token=token,
        model_id=argument(parse_name, "model_id", model) if model else "",
    )

    def read(response: pb.ListJobsResponse) -> tuple[tuple[Job, ...], str]:
        return bounds.each("jobs", response.jobs, limits.PAGE_SIZE_MAX, job_from_proto), response.next_page_token

    return Call(service=JOBS, method="List", request=request, read=read, repeatable=True)


def watch(job_ids: Sequence[str], *, until_terminal: bool) -> Stream[JobChange]:
    """Changes of these jobs; of all of the tenant's when there are none."""
    names = [_job_id(job_id) for job_id in job_ids]

    def request_after(seq: int) -> pb.WatchJobsRequest:
        return pb.WatchJobsRequest(job_ids=names, after_seq=seq, until_terminal=until_terminal)

    def read(message: pb.WatchJobsResponse) -> JobChange | None:
        if not message.HasField("job"):
            return None
        return JobChange(seq=message.seq, job=job_from_proto(message.job))

    return Stream(service=JOBS, method="Watch", request_after=request_after, read=read, position=_watch_position)


def _watch_position(message: pb.WatchJobsResponse) -> Position:
    # The present state comes as several messages of one number: it is complete when something else follows.
    return Position(seq=message.seq, complete=not message.HasField("job") and not message.resync)


def cancel(job_id: str, reason: str) -> Call[Job]:
    """Cancel a job."""
    request = pb.CancelJobRequest(job_id=_job_id(job_id), reason=argument(bounds.label, "reason", reason))
    return Call(service=JOBS, method="Cancel", request=request, read=job_from_proto, repeatable=True)


def quote(request: JobRequest) -> Call[Quote]:
    """What a job would be offered."""
    message = pb.QuoteRequest(spec=request.described().to_proto().spec)

    def read(response: pb.QuoteResponse) -> Quote:
        return quote_from_proto(response.quote)

    return Call(service=JOBS, method="Quote", request=message, read=read, repeatable=True)


def explain(job_id: str, site_id: str) -> Call[JobExplained]:
    """Why a job is where it is; with a site what that one offers it now."""
    request = pb.ExplainJobRequest(job_id=_job_id(job_id), site_id=argument(parse_name, "site_id", site_id) if site_id else "")

    def read(response: pb.ExplainJobResponse) -> JobExplained:
        return JobExplained(
            job=job_from_proto(response.job),
            queue_position=bounds.number("queue_position", response.queue_position, 0, bounds.COUNT_MAX),
            queue_length=bounds.number("queue_length", response.queue_length, 0, bounds.COUNT_MAX),
            now_us=bounds.instant("now_us", response.now_us),
            held_until_us=bounds.instant("held_until_us", response.held_until_us),
            eta=bounds.part("eta", response.eta, eta_from_proto) if response.HasField("eta") else None,
            quote=bounds.part("quote", response.quote, quote_from_proto) if response.HasField("quote") else None,
            places=bounds.each("places", response.places, limits.POOLS_PER_SITE_MAX, place_from_proto),
        )

    return Call(service=JOBS, method="Explain", request=request, read=read, repeatable=True)


def logs(job_id: str, ordinal: int, lines: int) -> Call[JobLogs]:
    """The last lines of an attempt's log; ordinal 0 is the latest attempt, lines 0 the orchestrator's default."""
    request = pb.JobLogsRequest(
        job_id=_job_id(job_id),
        ordinal=whole("ordinal", ordinal, 0, limits.ATTEMPTS_PER_JOB_MAX),
        lines=whole("lines", lines, 0, limits.LOG_LINES_MAX),
    )

    def read(response: pb.JobLogsResponse) -> JobLogs:
        return JobLogs(
            site_id=SiteId(parse_name("site_id", response.site_id)) if response.site_id else None,
            ordinal=bounds.number("ordinal", response.ordinal, 0, bounds.COUNT_MAX),
            lines=tuple(bounds.line(line, bounds.LOG_LINE_CHARS) for line in response.lines[: limits.LOG_LINES_MAX]),
        )

    return Call(service=JOBS, method="Logs", request=request, read=read, repeatable=True)


def _job_id(value: str) -> str:
    return argument(parse_name, "job_id", value)


def _submitted(response: pb.SubmitResponse) -> Submitted:
    return Submitted(job_id=JobId(parse_name("job_id", response.job_id)), existing=response.existing)


def _outcome(outcome: pb.SubmitOutcome) -> Submitted:
    if outcome.HasField("refusal"):
        refusal = outcome.refusal
        return Submitted(job_id=None, error=of_refusal(refusal.code, refusal.message, refusal.field, refusal.retry_after_ms))
    return Submitted(job_id=JobId(parse_name("job_id", outcome.job_id)), existing=outcome.existing)
