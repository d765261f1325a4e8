"""JobService: what clients speak. Each method decodes, asks, encodes; the work is in the modules beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, cast

from atoll.model import limits
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import JobId, TenantId, parse_name
from atoll.model.job import TERMINAL, Job, JobState
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.v1.job_service_pb2_grpc import JobServiceServicer
from atoll.wire.bounds import label, number
from orchestrator.api.auth import CALLER
from orchestrator.api.following import Follower, find_job
from orchestrator.api.interceptor import Context
from orchestrator.api.listing import Lister
from orchestrator.api.quotes import Quoter
from orchestrator.api.shown import Shown
from orchestrator.api.submit import Submitter
from orchestrator.api.transfers import Transfers
from orchestrator.core.events import JobCancelRequested, RequestRef
from orchestrator.core.outputs import Refusal
from orchestrator.driver import Driver
from orchestrator.inbox import Lane
from orchestrator.readers import ReadModel
from orchestrator.refusals import RefusedError
from orchestrator.sessions import SessionTable
from orchestrator.store.base import Store

_LOG_LINES: Final = 200
# A log is read from the site's disk; a site that needs longer is busy with better things.
_LOG_TIMEOUT_S: Final = 10.0


class JobService(JobServiceServicer):
    """The servicer. Errors are raised; the interceptor maps them."""

    def __init__(
        self,
        *,
        driver: Driver,
        readers: ReadModel,
        store: Store,
        sessions: SessionTable,
        submitter: Submitter,
        quoter: Quoter,
        shown: Shown,
        lister: Lister,
        follower: Follower,
        transfers: Transfers,
    ) -> None:
        self._driver = driver
        self._readers = readers
        self._store = store
        self._sessions = sessions
        self._submitter = submitter
        self._quoter = quoter
        self._shown = shown
        self._lister = lister
        self._follower = follower
        self._transfers = transfers

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """One job."""
        return await self._submitter.one(request)

    async def SubmitBatch(self, request: pb.SubmitBatchRequest, context: Context) -> pb.SubmitBatchResponse:
        """Many jobs."""
        return await self._submitter.many(request)

    async def Get(self, request: pb.GetJobRequest, context: Context) -> types_pb2.Job:
        """One job as it is."""
        return self._shown.job(await self._find(request.job_id))

    async def List(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """A page of jobs."""
        return await self._lister.page(request)

    async def Watch(self, request: pb.WatchJobsRequest, context: Context) -> AsyncIterator[pb.WatchJobsResponse]:
        """Changes as they come."""
        async for response in self._follower.follow(request):
            yield response

    async def Cancel(self, request: pb.CancelJobRequest, context: Context) -> types_pb2.Job:
        """No result is wanted any more; cancelled already is fine."""
        reason = label("reason", request.reason, limits.REASON_CHARS_MAX)
        job = await self._find(request.job_id)
        if job.state is JobState.CANCELLED:
            return self._shown.job(job)
        if job.state in TERMINAL:
            raise StateError(f"job {job.job_id} has {job.state} already: nothing is left to cancel")

        def cancelled(ref: RequestRef) -> JobCancelRequested:
            return JobCancelRequested(request=ref, tenant=job.spec.tenant, job_id=job.job_id, reason=reason)

        reply = await self._driver.ask(Lane.OPERATORS, cancelled)
        if isinstance(reply, Refusal):
            raise RefusedError(reply)
        return self._shown.job(await self._find(request.job_id))

    async def Explain(self, request: pb.ExplainJobRequest, context: Context) -> pb.ExplainJobResponse:
        """Why it is where it is."""
        return await self._quoter.explain(await self._find(request.job_id), request.site_id)

    async def Quote(self, request: pb.QuoteRequest, context: Context) -> pb.QuoteResponse:
        """Where it would go, when and at what price."""
        return await self._quoter.quote(request)

    async def Logs(self, request: pb.JobLogsRequest, context: Context) -> pb.JobLogsResponse:
        """The end of an attempt's log, from its site."""
        lines = number("lines", request.lines or _LOG_LINES, 1, limits.LOG_LINES_MAX)
        job = await self._find(request.job_id)
        if not job.attempts:
            so_far = "was never placed" if job.state in TERMINAL else "has not been placed yet"
            raise StateError(f"job {job.job_id} is {job.state}: it {so_far}, so there is no log")
        attempt = job.attempts[-1]
        if request.ordinal:
            matching = [one for one in job.attempts if one.key.ordinal == request.ordinal]
            if not matching:
                raise FieldError("ordinal", request.ordinal, f"1 to {attempt.key.ordinal}, or 0 for the latest attempt")
            attempt = matching[0]
        found = await self._sessions.logs(attempt.site_id, attempt.key, lines, _LOG_TIMEOUT_S)
        return pb.JobLogsResponse(site_id=attempt.site_id, ordinal=attempt.key.ordinal, lines=found)

    async def Upload(self, request_iterator: Any, context: Context) -> pb.UploadResponse:
        """A file for jobs to come."""
        return await self._transfers.upload(cast("AsyncIterator[pb.UploadRequest]", request_iterator))

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[pb.DownloadResponse]:
        """A file of a result."""
        job = await self._find(request.job_id)
        async for response in self._transfers.download(job, request.artifact, request.offset):
            yield response

    async def _find(self, job_id: str) -> Job:
        caller = CALLER.get()
        tenant: TenantId | None = None if caller.operator else caller.tenant
        return await find_job(self._readers, self._store, tenant, JobId(parse_name("job_id", job_id)))
