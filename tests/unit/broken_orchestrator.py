"""An orchestrator in this process that fails as told: what the SDK must live through, on a real socket.

It keeps jobs by idempotency key as the real one does, and nothing else of it; whole runs are tested against the real one.
"""

# ruff: noqa: N802 - the names are those of the generated interface

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.v1 import types_pb2
from atoll.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from atoll.v1.operator_service_pb2_grpc import OperatorServiceServicer, add_OperatorServiceServicer_to_server

Context = grpc.ServicerContext
CONTENT = bytes(range(256)) * 1024
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass(kw_only=True)
class Troubles:
    """What goes wrong, and what was asked. Counters count down to health."""

    lose_answers: int = 0  # the effect happens, the answer is lost
    break_streams: int = 0  # a stream ends in the middle, as when a connection breaks
    digest: str = DIGEST
    refuse: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] | None = None
    calls: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    watched_after: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    never_ends: bool = False


class Service(JobServiceServicer, OperatorServiceServicer):
    """Both services."""

    def __init__(self, troubles: Troubles) -> None:
        self.troubles = troubles
        self.jobs: dict[str, types_pb2.JobSpec] = {}
        self._lock = threading.Lock()

    def _met(self, name: str, context: Context) -> None:
        self.troubles.calls.append(name)
        self.troubles.tokens.extend(str(value) for key, value in context.invocation_metadata() if key == "authorization")
        if self.troubles.refuse is not None:
            code, message, trailers = self.troubles.refuse
            context.set_trailing_metadata((("x-request-id", "r"), *trailers))
            context.abort(code, message)

    def _maybe_lose(self, context: Context) -> None:
        with self._lock:
            if self.troubles.lose_answers:
                self.troubles.lose_answers -= 1
                _break(context)

    def _accept(self, request: pb.SubmitRequest) -> pb.SubmitOutcome:
        if request.spec.model_id == "unknown":
            refusal = pb.Refusal(code=3, message="model_id is 'unknown': expected a known model", field="model_id")
            return pb.SubmitOutcome(refusal=refusal)
        existing = request.idempotency_key in self.jobs
        self.jobs.setdefault(request.idempotency_key, request.spec)
        return pb.SubmitOutcome(job_id=f"job-{list(self.jobs).index(request.idempotency_key)}", existing=existing)

    def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        self._met("Submit", context)
        outcome = self._accept(request)
        self._maybe_lose(context)
        return pb.SubmitResponse(job_id=outcome.job_id, existing=outcome.existing)

    def SubmitBatch(self, request: pb.SubmitBatchRequest, context: Context) -> pb.SubmitBatchResponse:
        self._met("SubmitBatch", context)
        self.troubles.batches.append(len(request.jobs))
        outcomes = [self._accept(job) for job in request.jobs]
        self._maybe_lose(context)
        return pb.SubmitBatchResponse(outcomes=outcomes)

    def Get(self, request: pb.GetJobRequest, context: Context) -> types_pb2.Job:
        self._met("Get", context)
        self._maybe_lose(context)
        return self._job(request.job_id, types_pb2.JOB_STATE_SUCCEEDED)

    def List(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        self._met("List", context)
        page = int(request.page_token or "0")
        jobs = [self._job(f"job-{page * 2 + index}", types_pb2.JOB_STATE_QUEUED) for index in range(2)]
        return pb.ListJobsResponse(jobs=jobs, next_page_token=str(page + 1) if page < 2 else "")

    def Watch(self, request: pb.WatchJobsRequest, context: Context) -> Iterator[pb.WatchJobsResponse]:
        self._met("Watch", context)
        self.troubles.watched_after.append(request.after_seq)
        job_id = request.job_ids[0]
        states = [types_pb2.JOB_STATE_QUEUED, types_pb2.JOB_STATE_PLACED, types_pb2.JOB_STATE_SUCCEEDED]
        for seq, state in enumerate(states, start=10):
            if seq <= request.after_seq:
                continue
            if state == types_pb2.JOB_STATE_SUCCEEDED:
                with self._lock:
                    broken = self.troubles.break_streams > 0
                    self.troubles.break_streams -= broken
                if broken:
                    _break(context)
                while self.troubles.never_ends and context.is_active():
                    yield pb.WatchJobsResponse(seq=seq - 1)
                    threading.Event().wait(0.02)
            yield pb.WatchJobsResponse(seq=seq, job=self._job(job_id, state))

    def Download(self, request: pb.DownloadRequest, context: Context) -> Iterator[pb.DownloadResponse]:
        self._met("Download", context)
        self.troubles.offsets.append(request.offset)
        yield pb.DownloadResponse(total_bytes=len(CONTENT))
        half = request.offset + (len(CONTENT) - request.offset) // 2
        yield pb.DownloadResponse(chunk=CONTENT[request.offset : half])
        with self._lock:
            broken = self.troubles.break_streams > 0
            self.troubles.break_streams -= broken
        if broken:
            _break(context)
        yield pb.DownloadResponse(chunk=CONTENT[half:])

    def Upload(self, request_iterator: Iterator[pb.UploadRequest], context: Context) -> pb.UploadResponse:
        self._met("Upload", context)
        name, content = "", b""
        for request in request_iterator:
            name, content = name or request.name, content + request.chunk
        self._maybe_lose(context)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return pb.UploadResponse(input=types_pb2.InputRef(name=name, digest=digest, bytes=len(content)))

    def CordonSite(self, request: operator_pb.CordonSiteRequest, context: Context) -> types_pb2.SiteView:
        self._met("CordonSite", context)
        self._maybe_lose(context)
        spec = types_pb2.SiteSpec(site_id=request.site_id, region="here", wan_bytes_per_s=1, origin_bytes_per_s=1)
        return types_pb2.SiteView(spec=spec, admin=types_pb2.SITE_ADMIN_CORDONED, reason=request.reason)

    def Events(self, request: operator_pb.EventsRequest, context: Context) -> Iterator[types_pb2.AuditEvent]:
        self._met("Events", context)
        for seq in range(request.after_seq + 1, 6):
            if seq == 4 and self.troubles.break_streams:
                self.troubles.break_streams -= 1
                _break(context)
            yield types_pb2.AuditEvent(
                seq=seq, at_us=seq, severity=types_pb2.SEVERITY_INFO, actor="ann", verb="site_added", subject="site/x"
            )

    def _job(self, job_id: str, state: types_pb2.JobState.ValueType) -> types_pb2.Job:
        shape = types_pb2.Shape(width=64, height=64, frames=1, steps=4, cfg_passes=1, batch=1)
        spec = types_pb2.JobSpec(tenant="default", model_id="tiny-image", shape=shape, precision=types_pb2.PRECISION_FP32)
        job = types_pb2.Job(job_id=job_id, spec=spec, state=state, accepted_us=1)
        if state == types_pb2.JOB_STATE_SUCCEEDED:
            artifact = types_pb2.Artifact(name="0.png", media_type="image/png", bytes=len(CONTENT), digest=self.troubles.digest)
            key = types_pb2.AttemptKey(job_id=job_id, ordinal=1)
            job.result.CopyFrom(types_pb2.ResultManifest(key=key, artifacts=[artifact]))
        return job


def _break(context: Context) -> NoReturn:
    """What a client sees when a connection breaks: UNAVAILABLE without any metadata of an orchestrator."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    raise AssertionError("abort raises")


@contextmanager
def serving(troubles: Troubles, port: int) -> Iterator[Service]:
    """The service on a port of 127.0.0.1."""
    pool = ThreadPoolExecutor(max_workers=16)
    server: Any = grpc.server(pool)
    service = Service(troubles)  # type: ignore[abstract] # what is not here answers UNIMPLEMENTED
    add_JobServiceServicer_to_server(service, server)
    add_OperatorServiceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield service
    finally:
        server.stop(None).wait()
        pool.shutdown()
