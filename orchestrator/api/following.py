"""Watch: the present state or what was missed, then every change as it is committed.

Decides the order in which a watcher hears of things: never back in time for a job, never a change left out without `resync`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError, NotFoundError
from atoll.model.ids import ChangeSeq, JobId, TenantId, parse_name
from atoll.model.job import TERMINAL, Job
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import types_pb2
from orchestrator.api.auth import CALLER
from orchestrator.api.shown import Shown
from orchestrator.readers import ReadModel
from orchestrator.store.base import Store
from orchestrator.watchers import Change, JobWatchers, Watcher

# Half of what idle connections are commonly cut after.
KEEP_ALIVE_S: Final = 15.0
# A placing round is over by then: who has just submitted a job that no place can take hears it while they look.
FIRST_LOOK_S: Final = 1.0
# Jobs of one watcher that are told at a time what they wait for; a script that waits for a thousand reads none of it.
_WHY_TOLD_MAX: Final = 20
# Less than that names nothing: all ids begin with two characters that are the same.
_BEGINNING_CHARS_MIN: Final = 4
# Jobs that are named where the beginning of an id is not enough.
_MEANT_MAX: Final = 5


async def find_job(readers: ReadModel, store: Store, tenant: TenantId | None, job_id: JobId) -> Job:
    """A job of this tenant (None: of any), by its id or by the beginning of its id if no other job's id begins so.

    Raises NotFoundError, with one text for none and for somebody else's, and FieldError naming some of the jobs that may be meant.
    """
    job = readers.job(job_id) or await store.get_job(job_id)
    if job is None and len(job_id) >= _BEGINNING_CHARS_MIN:
        meant = await store.find_ids(job_id, tenant=tenant, limit=_MEANT_MAX + 1)
        if len(meant) > 1:
            some = ", ".join(meant[:_MEANT_MAX]) + (", ..." if len(meant) > _MEANT_MAX else "")
            raise FieldError("job_id", job_id, f"the beginning of one job's id; so begin {some}")
        if meant:
            job = readers.job(meant[0]) or await store.get_job(meant[0])
    if job is None or (tenant is not None and job.spec.tenant != tenant):
        raise NotFoundError("job", job_id)
    return job


class Follower:
    """Answers Watch."""

    def __init__(self, *, readers: ReadModel, watchers: JobWatchers, store: Store, shown: Shown) -> None:
        self._shown = shown
        self._readers = readers
        self._watchers = watchers
        self._store = store

    async def follow(self, request: pb.WatchJobsRequest) -> AsyncIterator[pb.WatchJobsResponse]:
        """The stream of one watcher. Raises FieldError, NotFoundError, and RefusedError when it is cut off."""
        caller = CALLER.get()
        tenant = None if caller.operator else caller.tenant
        if len(request.job_ids) > limits.BATCH_JOBS_MAX:
            raise FieldError("job_ids", f"{len(request.job_ids)} jobs", f"at most {limits.BATCH_JOBS_MAX}, or none for all")
        if request.until_terminal and not request.job_ids:
            raise FieldError("until_terminal", True, "job_ids to wait for")
        if request.after_seq < 0:
            raise FieldError("after_seq", request.after_seq, "0, or the seq of an earlier answer")
        job_ids = frozenset(JobId(parse_name("job_ids", job_id)) for job_id in request.job_ids)
        # From the store before anything is watched: those have ended and do not change any more.
        jobs = [await find_job(self._readers, self._store, tenant, job_id) for job_id in sorted(job_ids)]
        found = {job.job_id: job for job in jobs}
        job_ids = frozenset(found)
        watcher = self._watchers.open(tenant, job_ids)
        try:
            async for response in self._stream(request, tenant, found, watcher):
                yield response
        finally:
            self._watchers.close(watcher, tenant, job_ids)

    async def _stream(
        self, request: pb.WatchJobsRequest, tenant: TenantId | None, found: dict[JobId, Job], watcher: Watcher[Change]
    ) -> AsyncIterator[pb.WatchJobsResponse]:
        # No await up to the first yield: `seq`, the present and the replay are of one moment, and `watcher` tells all that follows.
        seq = self._watchers.seq
        present = [self._readers.job(job_id) or job for job_id, job in found.items()]
        unfinished = {job.job_id for job in present if job.state not in TERMINAL}
        missed: list[Change] | None = None
        if request.after_seq:
            missed = self._watchers.replay(ChangeSeq(request.after_seq), lambda job: _concerns(job, tenant, found))
        if missed is None:
            resync = request.after_seq != 0
            if not found:
                present = list(self._readers.live(tenant))[::-1]
                if resync:
                    present = [*self._readers.recent(tenant), *present]
            missed = [(seq, job) for job in present]
            if resync:
                yield pb.WatchJobsResponse(seq=seq, resync=True)
        for number, job in missed:
            yield pb.WatchJobsResponse(seq=number, job=self._shown.job(job))
        why = _Why(found, self._readers, self._shown)
        looks_s = time.monotonic() + FIRST_LOOK_S
        while unfinished or not request.until_terminal:
            change = await watcher.next(max(looks_s - time.monotonic(), 0))
            if change is None:
                # Everything up to this number has been told, and what the jobs wait for is of the same moment.
                seq, looks_s = self._watchers.seq, time.monotonic() + KEEP_ALIVE_S
                for message in why.news():
                    yield pb.WatchJobsResponse(seq=seq, job=message)
                yield pb.WatchJobsResponse(seq=seq)
                continue
            number, job = change
            yield pb.WatchJobsResponse(seq=number, job=self._shown.job(job))
            if job.state in TERMINAL:
                unfinished.discard(job.job_id)


class _Why:
    """Why the jobs of one watcher wait. That is no change of a job, so nobody is told of it as it comes: it is looked at now and then."""

    def __init__(self, job_ids: Iterable[JobId], readers: ReadModel, shown: Shown) -> None:
        self._job_ids = sorted(job_ids)
        self._readers = readers
        self._shown = shown
        self._told: dict[JobId, bytes] = {}

    def news(self) -> list[types_pb2.Job]:
        """Those of the named jobs that wait for something else than they did when told last: a few, and all that no place can take."""
        found: list[types_pb2.Job] = []
        told = 0
        for job_id in self._job_ids:
            job = self._readers.job(job_id)
            message = self._shown.waiting(job) if job is not None else None
            if message is None:
                continue
            nowhere = not message.deferral.HasField("waits_for")
            about = message.deferral.waits_for.site_id.encode() if not nowhere else _reasons(message.deferral.rejections)
            if self._told.get(job_id) == about or (told >= _WHY_TOLD_MAX and not nowhere):
                continue
            self._told[job_id] = about
            told += 1
            found.append(message)
        return found


def _reasons(rejections: Iterable[types_pb2.Rejection]) -> bytes:
    return b"".join(one.SerializeToString(deterministic=True) for one in rejections)


def _concerns(job: Job, tenant: TenantId | None, found: dict[JobId, Job]) -> bool:
    if found:
        return job.job_id in found
    return tenant is None or job.spec.tenant == tenant
