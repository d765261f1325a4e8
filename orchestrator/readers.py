"""The committed read model: what Get, List and Watch may know.

Decides what readers see and how long an ended job stays at hand. Fed only by commands whose records are durable, so nothing
shown is ever taken back. Must not know gRPC or the core's own state.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, JobId, ModelId, SiteId, TenantId
from atoll.model.job import TERMINAL, Job, JobState, Priority
from atoll.model.modelspec import ModelSpec
from atoll.model.site import LinkSpec, SiteRecord
from orchestrator.core.durable import Stored
from orchestrator.core.ends import EndAttempt, applied

# Ended jobs kept in memory, so that a client that asks right after the end needs no read of the store.
RECENT_MAX: Final = 10_000

# Where a job stands in listings: newest last.
ListKey = tuple[int, JobId]


class ReadModel:
    """Live jobs, those that ended a moment ago, sites, links, models and adapters, as committed."""

    __slots__ = ("_gone", "_live", "_order", "_recent", "adapters", "counts", "ended_count", "links", "models", "sites")

    def __init__(self) -> None:
        self._live: dict[JobId, Job] = {}
        self._recent: OrderedDict[JobId, Job] = OrderedDict()
        # Keys of live jobs, ascending. An ended job's key stays until there are enough of them to be worth a sweep.
        self._order: list[ListKey] = []
        self._gone = 0
        self.counts: Counter[tuple[Priority, JobState]] = Counter()
        self.ended_count = 0
        self.sites: dict[SiteId, SiteRecord] = {}
        self.models: dict[ModelId, ModelSpec] = {}
        self.adapters: dict[AdapterId, AdapterSpec] = {}
        self.links: tuple[LinkSpec, ...] = ()

    def load(self, stored: Stored) -> None:
        """Forget everything and begin with what the store holds."""
        self._live = {job.job_id: job for job in stored.jobs}
        self.counts = Counter((job.spec.priority, job.state) for job in stored.jobs)
        self._recent = OrderedDict((job.job_id, job) for job in stored.stopping)
        self.ended_count = stored.ended_count
        self._order = sorted((job.accepted_us, job.job_id) for job in stored.jobs)
        self._gone = 0
        self.sites = {record.spec.site_id: record for record in stored.sites}
        self.models = {model.model_id: model for model in stored.models}
        self.adapters = {adapter.adapter_id: adapter for adapter in stored.adapters}
        self.links = stored.links

    def inputs_needed(self) -> set[str]:
        """Digests of all files that jobs which have not ended begin with."""
        return {one.digest for job in self._live.values() for one in job.spec.inputs}

    def put_job(self, job: Job) -> None:
        """The job as it is from now on."""
        if job.state in TERMINAL:
            self._end(job)
        elif job.job_id not in self._recent:
            before = self._live.get(job.job_id)
            if before is None:
                insort(self._order, (job.accepted_us, job.job_id))
            else:
                self.counts[before.spec.priority, before.state] -= 1
            self._live[job.job_id] = job
            self.counts[job.spec.priority, job.state] += 1

    def _end(self, job: Job) -> None:
        before = self._live.pop(job.job_id, None)
        if before is not None:
            self.counts[before.spec.priority, before.state] -= 1
            self.ended_count += 1
            self._gone += 1
            if self._gone > 1_000 and self._gone * 2 > len(self._order):
                self._order = [key for key in self._order if key[1] in self._live]
                self._gone = 0
        self._recent[job.job_id] = job
        self._recent.move_to_end(job.job_id)
        while len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def end_attempt(self, end: EndAttempt) -> Job | None:
        """An attempt of a job that ended a moment ago is over: the job with that. None of older ones: of these the store tells."""
        known = self._recent.get(end.key.job_id)
        told = applied(known, end) if known is not None else None
        if told is not None:
            self._recent[told.job_id] = told
        return told

    def forgot(self, ended: int) -> None:
        """So many ended jobs left the store; they stay at hand here for as long as there is room."""
        self.ended_count = max(self.ended_count - ended, 0)

    def job(self, job_id: JobId) -> Job | None:
        """A job that lives or ended a moment ago."""
        return self._live.get(job_id) or self._recent.get(job_id)

    def live_count(self) -> int:
        """How many jobs are not terminal."""
        return len(self._live)

    def live(self, tenant: TenantId | None, before: ListKey | None = None) -> Iterator[Job]:
        """Live jobs newest first, strictly before `before`; of one tenant, or of all (None). Read at once or not at all: it changes."""
        index = len(self._order) if before is None else bisect_left(self._order, before)
        for position in range(index - 1, -1, -1):
            job = self._live.get(self._order[position][1])
            if job is not None and (tenant is None or job.spec.tenant == tenant):
                yield job

    def recent(self, tenant: TenantId | None) -> Iterable[Job]:
        """Jobs that ended a moment ago, oldest end first."""
        return [job for job in self._recent.values() if tenant is None or job.spec.tenant == tenant]

    def regions(self) -> set[str]:
        """Every region that a site declares."""
        return {record.spec.region for record in self.sites.values()}
