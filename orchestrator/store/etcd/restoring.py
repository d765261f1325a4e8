"""Putting the records of an embedded store into an etcd: a copy is restored, or a fleet moves.

Decides the order. The fleet goes on as the same one, in a later term. Until all is written the prefix has a format that no orchestrator
reads; what was cut off is begun anew. Must not know who asked for it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ChangeSeq, JobId
from atoll.model.job import Job
from orchestrator.core.durable import Stored
from orchestrator.core.outputs import AppendAudit, PutJob, Record
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.changes import changes_of
from orchestrator.store.etcd import rows
from orchestrator.store.etcd.client import PATIENCE_S, EtcdClient
from orchestrator.store.etcd.copying import nouns_of
from orchestrator.store.etcd.errors import EtcdError
from orchestrator.store.etcd.index import JobIndex, Plan
from orchestrator.store.etcd.layout import FORMAT, UNFINISHED, CommitValue, FleetValue, Layout, LeadershipValue, decode, encode
from orchestrator.store.etcd.leading import check_apart, holder_name
from orchestrator.store.etcd.loading import read_head
from orchestrator.store.etcd.operations import Delete, Put, Unchanged, end_of
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.writing import Writer
from orchestrator.store.sqlite import SqliteStore
from orchestrator.store.wall import wall_ms

_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was written."""

    jobs: int
    ended_jobs: int
    audit_lines: int


async def restore(path: Path, target: EtcdTarget, *, ended_jobs_max: int, patience_s: float = PATIENCE_S) -> Restored:
    """Write all that the embedded store at `path` holds to the prefix of `target`; of terminal jobs the youngest.

    FieldError when there is no such file; StateError when it is in use or no store, or the prefix holds something; StoreError.
    """
    if not os.path.isfile(path):  # noqa: ASYNC240 - before anything else is begun
        raise FieldError("path", str(path), "a file: a copy by `atoll store backup`, or the atoll.sqlite of a data folder")
    source = SqliteStore(path)
    try:
        whole = await source.take_over()
        client = await EtcdClient.open(target, patience_s=patience_s)
        try:
            return await _Restoring(client, Layout(target.prefix), source, whole).run(ended_jobs_max)
        finally:
            await client.close()
    except EtcdError as error:
        raise StoreError(f"{target}: {error}") from error
    finally:
        await source.close()


class _Restoring:
    def __init__(self, client: EtcdClient, layout: Layout, source: SqliteStore, whole: Stored) -> None:
        self._client = client
        self._layout = layout
        self._source = source
        self._whole = whole
        self._index = JobIndex()

    async def run(self, ended_jobs_max: int) -> Restored:
        mine = await self._begin()
        head = await read_head(self._client, self._layout)
        if head.leadership != mine:
            raise StoreError("somebody else writes to the prefix")
        writer = Writer(self._client, self._layout, head)
        await self._write(writer, nouns_of(self._whole), wall_ms() - self._whole.demand_age_us // 1_000)
        # In the order of acceptance: the younger job has the key.
        jobs = sorted([*await self._ended(ended_jobs_max)], key=lambda job: (job.accepted_us, job.job_id))
        for batch in _batches([*jobs, *self._whole.jobs]):
            await self._write(writer, [PutJob(job=job) for job in batch], 0)
        lines = await self._audit(writer)
        fleet = encode(FleetValue(format=FORMAT, fleet_id=self._whole.fleet_id))
        if await writer.commit(0, [Put(self._layout.fleet, fleet)]) is not CommitOutcome.COMMITTED:
            raise StoreError("somebody else writes to the prefix")
        return Restored(jobs=len(self._whole.jobs), ended_jobs=len(jobs), audit_lines=lines)

    async def _begin(self) -> LeadershipValue:
        """An empty prefix, marked as unfinished. StateError when it holds anything but what was cut off."""
        layout, root = self._layout, self._layout.root
        found = (await self._client.read([layout.fleet])).get(layout.fleet)
        others = (await self._client.range(root, end_of(root), limit=1, keys_only=True)).kvs
        if decode(FleetValue, found).format != UNFINISHED if found is not None else others:
            remedy = f"name an empty prefix, or `etcdctl del --prefix {root.decode()}` if nobody needs them"
            raise StateError(f"{self._client.target} holds keys already: {remedy}")
        if found is not None:
            await self._client.transact([Unchanged(layout.fleet, found.mod_revision)], [Delete(root, end_of(root))])
        await check_apart(self._client, layout)
        leadership = LeadershipValue(term=self._whole.term, instance=uuid.uuid4().hex, holder=holder_name())
        await self._client.transact(
            [Unchanged(layout.fleet, 0)],
            [
                Put(layout.fleet, encode(FleetValue(format=UNFINISHED, fleet_id=self._whole.fleet_id))),
                Put(layout.leadership, encode(leadership)),
                Put(layout.commit, encode(CommitValue(fleet_time_us=self._whole.fleet_time_us, nonce=""))),
            ],
        )
        return leadership

    async def _ended(self, most: int) -> list[Job]:
        found: list[Job] = []
        before: tuple[int, JobId] | None = None
        while len(found) < most:
            limit = min(_BATCH, most - len(found))
            page = await self._source.list_ended(tenant=None, states=frozenset(), before=before, limit=limit)
            if not page:
                break
            found.extend(page)
            before = (page[-1].ended_us, page[-1].job_id)
        return found

    async def _audit(self, writer: Writer) -> int:
        """All lines: an orchestrator trims them."""
        written, after = 0, ChangeSeq(0)
        while lines := await self._source.list_audit(after=after, limit=_BATCH):
            after = lines[-1].seq
            written += len(lines)
            for group in _written_at_once(lines):
                await self._write(writer, [AppendAudit(event=line) for line in group], group[0].written_ms)
        return written

    async def _write(self, writer: Writer, records: Sequence[Record], written_ms: int) -> None:
        plan = Plan(self._index)
        changes = rows.operations(self._layout, plan, changes_of(records), {}, written_ms)
        if await writer.commit(self._whole.fleet_time_us, changes) is not CommitOutcome.COMMITTED:
            raise StoreError("somebody else writes to the prefix")
        plan.settle()


def _batches(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    return (jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH))


def _written_at_once(lines: Sequence[AuditEvent]) -> list[list[AuditEvent]]:
    groups: list[list[AuditEvent]] = []
    for line in lines:
        if groups and groups[-1][0].written_ms == line.written_ms:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups
