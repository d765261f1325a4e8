"""Reading everything that a fleet's prefix holds: at a takeover, or as of one revision for a copy.

Decides the sizes of pages. Nothing here writes. Decoding is done in a thread: an event loop that stands still for it answers nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

from atoll.model.audit import AuditEvent
from atoll.model.demand import KeptDemand
from atoll.model.ids import ChangeSeq, FleetId, JobId, TenantId, Term
from atoll.model.job import Job, JobState
from atoll.model.learned import Estimates
from atoll.model.site import LinkSpec
from atoll.wire import stored
from orchestrator.core.durable import Stored
from orchestrator.core.jobs import ENDED_KEYS_MAX
from orchestrator.core.placement.policy import Identity
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.index import Entry, JobIndex
from orchestrator.store.etcd.layout import (
    CommitValue,
    FleetValue,
    Layout,
    LeadershipValue,
    PolicyValue,
    decode,
    decode_ended,
    number_of,
    strange,
)
from orchestrator.store.etcd.operations import OPERATIONS_MAX, end_of
from orchestrator.store.etcd.pb import etcd_pb2 as pb

T = TypeVar("T")

# Jobs of 2 to 40 KB: megabytes a page, and a few milliseconds of decoding.
_JOBS_PAGE: Final = 500
# Entries of 200 bytes.
_ENTRIES_PAGE: Final = 5_000
_NOUNS_PAGE: Final = 1_000
# Large values come in parts of a quarter of a megabyte.
_PARTS_PAGE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Who leads, and what was committed last, with the revisions that a writer compares."""

    fleet: FleetValue
    leadership: LeadershipValue
    leadership_revision: int
    commit: CommitValue
    commit_revision: int


async def read_head(client: EtcdClient, layout: Layout, *, revision: int = 0) -> Head:
    """As it is, or as of `revision`. KeyError when nobody ever led."""
    found = await client.read([layout.fleet, layout.leadership, layout.commit], revision=revision)
    return Head(
        fleet=decode(FleetValue, found[layout.fleet]),
        leadership=decode(LeadershipValue, found[layout.leadership]),
        leadership_revision=found[layout.leadership].mod_revision,
        commit=decode(CommitValue, found[layout.commit]),
        commit_revision=found[layout.commit].mod_revision,
    )


@dataclass(frozen=True, slots=True)
class Jobs:
    """Those that are not terminal, in the order in which they were accepted, each with its place in it; and what is known of all."""

    live: list[tuple[int, Job]]
    index: JobIndex


class Pages(Protocol):
    """Where keys are read in order: etcd, or what is kept of it at hand."""

    def pages(self, key: bytes, end: bytes, *, limit: int, revision: int = 0) -> AsyncGenerator[Sequence[pb.KeyValue]]:
        """All keys of [key, end) in order, `limit` at a time."""


class Reader:
    """Reads what is below a prefix, as it is or as of `revision`; what is neither a job nor a line of the audit from `nouns`, if given."""

    def __init__(self, client: EtcdClient, layout: Layout, *, revision: int = 0, nouns: Pages | None = None) -> None:
        self._client = client
        self._layout = layout
        self._revision = revision
        self._kept: Pages = nouns or client

    async def stored(self, head: Head, commit: CommitValue, jobs: Jobs, *, wall_ms: int, ended_keys_max: int = ENDED_KEYS_MAX) -> Stored:
        """All that the core begins with."""
        layout, index = self._layout, jobs.index
        demand, written_ms = await self.demand()
        return Stored(
            fleet_id=FleetId(head.fleet.fleet_id),
            term=Term(head.leadership.term),
            fleet_time_us=commit.fleet_time_us,
            last_audit_seq=await self.last_audit_seq(),
            jobs=tuple(job for _, job in jobs.live),
            stopping=await self.done(index.stopping()),
            sites=await self._nouns(layout.sites, stored.decode_site),
            links=await self._links(),
            models=await self._nouns(layout.models, stored.decode_model),
            adapters=await self._nouns(layout.adapters, stored.decode_adapter),
            pins=await self._nouns(layout.pins, stored.decode_pin),
            pushes=await self._nouns(layout.pushes, stored.decode_push),
            ended_keys=index.ended_keys(ended_keys_max),
            ended_count=index.ended_count,
            estimates=await self._estimates(),
            demand=demand,
            # A clock that was set back makes nothing younger than new.
            demand_age_us=max(wall_ms - written_ms, 0) * 1_000 if written_ms else 0,
            policy=await self._policy(),
        )

    # --- jobs ----------------------------------------------------------------------------------------------------------------

    async def jobs(self) -> Jobs:
        """All of them."""
        index = JobIndex()
        live = await self.live()
        for n, job in live:
            index.put(job.job_id, entry_of(n, job))
        async for entries in self.entries():
            for job_id, entry in entries:
                index.put(job_id, entry)
        return Jobs(live, index)

    async def live(self) -> list[tuple[int, Job]]:
        """Jobs that are not terminal, in the order in which they were accepted, each with its place in it."""
        found: list[tuple[int, Job]] = []
        async for kvs in self._jobs_pages(self._layout.live, _JOBS_PAGE):
            found.extend(await asyncio.to_thread(_decoded, kvs, live_of))
        found.sort(key=lambda each: each[0])
        return found

    async def entries(self) -> AsyncGenerator[list[tuple[JobId, Entry]]]:
        """What is known of terminal jobs, in the order in which they ended."""
        async for kvs in self._jobs_pages(self._layout.ended, _ENTRIES_PAGE):
            yield await asyncio.to_thread(_entries, self._layout, kvs)

    async def done(self, job_ids: Sequence[JobId]) -> tuple[Job, ...]:
        """These terminal jobs, in this order, without those that are kept no more."""
        found: list[Job] = []
        for start in range(0, len(job_ids), OPERATIONS_MAX):
            keys = [self._layout.done_job(job_id) for job_id in job_ids[start : start + OPERATIONS_MAX]]
            kvs = await self._client.read(keys, revision=self._revision)
            found.extend(await asyncio.to_thread(_decoded, [kvs[key] for key in keys if key in kvs], stored.decode_job))
        return tuple(found)

    async def all_done(self) -> AsyncGenerator[list[Job]]:
        """Every terminal job, by id."""
        async for kvs in self._jobs_pages(self._layout.done, _JOBS_PAGE):
            yield await asyncio.to_thread(_decoded, kvs, stored.decode_job)

    # --- the rest ------------------------------------------------------------------------------------------------------------

    async def audit(self, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """Lines after a number, in order, at most `limit`."""
        layout = self._layout
        page = await self._client.range(layout.audit_line(after + 1), end_of(layout.audit), limit=limit, revision=self._revision)
        return tuple(_audit(kv.value) for kv in page.kvs)

    async def demand(self) -> tuple[KeptDemand, int]:
        """Demand, and when it was written by people's clocks, in milliseconds; what cannot be read counts as not there."""
        whole = await self._whole(self._layout.demand)
        if not whole:
            return KeptDemand(), 0
        try:
            written_ms, blob = number_of(whole)
            return stored.decode_demand(blob), written_ms
        except (stored.StoredFormatError, ValueError):
            return KeptDemand(), 0

    async def _estimates(self) -> Estimates:
        blob = await self._whole(self._layout.estimates)
        try:
            return stored.decode_estimates(blob) if blob else Estimates()
        except stored.StoredFormatError:
            return Estimates()

    async def _links(self) -> tuple[LinkSpec, ...]:
        blob = await self._whole(self._layout.links)
        return stored.decode_links(blob) if blob else ()

    async def _policy(self) -> Identity | None:
        key = self._layout.policy
        kvs = [kv async for page in self._kept.pages(key, key + b"\x00", limit=1, revision=self._revision) for kv in page]
        if not kvs:
            return None
        value = decode(PolicyValue, kvs[0])
        return Identity(name=value.name, digest=value.digest)

    async def last_audit_seq(self, *, before: int = 0) -> ChangeSeq:
        """The number of the last line, or of the one that so many come after; 0: there is none."""
        folder, most = self._layout.audit, before + 1
        last = await self._client.range(folder, end_of(folder), limit=most, revision=self._revision, keys_only=True, last=True)
        if len(last.kvs) < most:
            return ChangeSeq(0)
        return _readable(last.kvs[-1], lambda kv: ChangeSeq(int(kv.key.removeprefix(folder), 16)))

    async def _nouns(self, folder: bytes, read: Callable[[bytes], T]) -> tuple[T, ...]:
        found: list[T] = []
        async for kvs in self._pages(folder, _NOUNS_PAGE):
            found.extend(await asyncio.to_thread(_decoded, kvs, read))
        return tuple(found)

    async def _whole(self, folder: bytes) -> bytes:
        """A value that is kept in parts."""
        return b"".join([kv.value async for kvs in self._pages(folder, _PARTS_PAGE) for kv in kvs])

    def _pages(self, folder: bytes, limit: int) -> AsyncGenerator[Sequence[pb.KeyValue]]:
        return self._kept.pages(folder, end_of(folder), limit=limit, revision=self._revision)

    def _jobs_pages(self, folder: bytes, limit: int) -> AsyncGenerator[Sequence[pb.KeyValue]]:
        return self._client.pages(folder, end_of(folder), limit=limit, revision=self._revision)


def _readable(kv: pb.KeyValue, read: Callable[[pb.KeyValue], T]) -> T:
    """What is made of it; StateError naming the key when it is damaged, or another program's."""
    try:
        return read(kv)
    except (stored.StoredFormatError, ValueError) as error:
        raise strange(kv, error) from error


def _decoded(kvs: Sequence[pb.KeyValue], read: Callable[[bytes], T]) -> list[T]:
    return [_readable(kv, lambda kv: read(kv.value)) for kv in kvs]


def live_of(value: bytes) -> tuple[int, Job]:
    """A job that is not terminal, with its place in the order of acceptance."""
    n, blob = number_of(value)
    return n, stored.decode_job(blob)


def _entries(layout: Layout, kvs: Sequence[pb.KeyValue]) -> list[tuple[JobId, Entry]]:
    return [_readable(kv, partial(ended_of, layout)) for kv in kvs]


def ended_of(layout: Layout, kv: pb.KeyValue) -> tuple[JobId, Entry]:
    """What is known of a terminal job. ValueError or StateError when it is none."""
    ended_us, job_id = layout.ended_of(kv.key)
    value = decode_ended(kv)
    return job_id, Entry(
        n=value.n,
        tenant=TenantId(value.tenant),
        key=value.key,
        payload_digest=value.payload_digest,
        state=JobState(value.state),
        ended_us=ended_us,
        stopping=value.stopping,
    )


def entry_of(n: int, job: Job) -> Entry:
    """What is known of a job that is not terminal."""
    return Entry(n=n, tenant=job.spec.tenant, key=job.idempotency_key, payload_digest=job.payload_digest, state=job.state)


def _audit(value: bytes) -> AuditEvent:
    written_ms, blob = number_of(value)
    return replace(stored.decode_audit(blob), written_ms=written_ms)
