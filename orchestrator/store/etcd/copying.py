"""A copy of a fleet's records as an embedded store: one file, on which an orchestrator runs as it is.

Decides the order in which records are written. All is read as of one revision, so the copy is of one moment, and commits go on meanwhile.
Must not know who asked for it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final, TypeVar

from atoll.model.ids import ChangeSeq, Term
from orchestrator.core.demand import PutDemand
from orchestrator.core.durable import Stored
from orchestrator.core.outputs import (
    AppendAudit,
    PutAdapter,
    PutEstimates,
    PutJob,
    PutLinks,
    PutModel,
    PutPin,
    PutPolicy,
    PutPush,
    PutSite,
    Record,
)
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.layout import Layout
from orchestrator.store.etcd.loading import Head, Reader, read_head
from orchestrator.store.sqlite import SqliteStore
from orchestrator.store.sqlite_backup import as_copy, new_file
from orchestrator.store.sqlite_schema import told

T = TypeVar("T")

# As many as a busy orchestrator commits at once.
_BATCH: Final = 500


async def write_copy(client: EtcdClient, layout: Layout, revision: int, path: str) -> int:
    """Copy what is below the prefix as of `revision` to `path`; its size in bytes.

    FieldError when `path` cannot be made, StoreError when it cannot be written, EtcdError: also when the revision is compacted meanwhile.
    """
    file = ExitStack()
    try:
        partial = await asyncio.to_thread(file.enter_context, new_file(path))
        try:
            await _copy(client, layout, revision, partial)
        except BaseException:
            await asyncio.to_thread(file.__exit__, *sys.exc_info())
            raise
        await asyncio.to_thread(file.close)
        return os.stat(path).st_size
    except (sqlite3.Error, OSError) as error:
        raise told(error, path) from error


async def _copy(client: EtcdClient, layout: Layout, revision: int, partial: str) -> None:
    reader = Reader(client, layout, revision=revision)
    head = await read_head(client, layout, revision=revision)
    known = await reader.jobs()
    whole = await reader.stored(head, head.commit, known, wall_ms=0)
    _, demand_ms = await reader.demand()
    copy = SqliteStore(partial)
    try:
        term = (await copy.take_over()).term
        await _write(copy, term, nouns_of(whole))
        # Jobs whose key a younger one has come before it: it takes the key.
        keyless = [job_id for job_id, entry in known.index.ended_before(None, None) if not entry.key]
        for chosen in _batches(keyless):
            await _write(copy, term, [PutJob(job=job) for job in await reader.done(chosen)])
        first = frozenset(keyless)
        async for jobs in reader.all_done():
            await _write(copy, term, [PutJob(job=job) for job in jobs if job.job_id not in first])
        for live in _batches(whole.jobs):
            await _write(copy, term, [PutJob(job=job) for job in live])
        written_ms: list[tuple[int, ChangeSeq]] = []
        while lines := await reader.audit(written_ms[-1][1] if written_ms else ChangeSeq(0), _BATCH):
            await _write(copy, term, [AppendAudit(event=line) for line in lines])
            written_ms.extend((line.written_ms, line.seq) for line in lines)
    finally:
        await copy.close()
    await asyncio.to_thread(_finish, partial, head, written_ms, demand_ms)


async def _write(copy: SqliteStore, term: Term, records: Sequence[Record]) -> None:
    if records and await copy.commit(term, 0, records) is not CommitOutcome.COMMITTED:
        raise StoreError("somebody else writes to the copy in the making")


def nouns_of(whole: Stored) -> list[Record]:
    """All that is neither a job nor a line of the audit."""
    records: list[Record] = [
        *(PutSite(site=site) for site in whole.sites),
        PutLinks(links=whole.links),
        *(PutModel(model=model) for model in whole.models),
        *(PutAdapter(adapter=adapter) for adapter in whole.adapters),
        *(PutPin(pin=pin) for pin in whole.pins),
        *(PutPush(push=push) for push in whole.pushes),
        PutEstimates(estimates=whole.estimates),
        PutDemand(demand=whole.demand),
    ]
    return [*records, PutPolicy(policy=whole.policy)] if whole.policy is not None else records


def _finish(partial: str, head: Head, written_ms: Sequence[tuple[int, ChangeSeq]], demand_ms: int) -> None:
    """What a store writes of itself is the original's: whose records they are, and when it wrote them."""
    connection = sqlite3.connect(partial, isolation_level=None)
    try:
        values = (head.fleet.fleet_id, head.leadership.term, head.commit.fleet_time_us)
        connection.execute("BEGIN")
        connection.execute("UPDATE fleet SET fleet_id = ?, term = ?, fleet_time_us = ?", values)
        connection.executemany("UPDATE audit SET written_ms = ? WHERE seq = ?", written_ms)
        connection.execute("UPDATE demand SET written_ms = ?", (demand_ms,))
        connection.execute("COMMIT")
        as_copy(connection)
    finally:
        connection.close()


def _batches(many: Sequence[T]) -> Iterator[Sequence[T]]:
    return (many[start : start + _BATCH] for start in range(0, len(many), _BATCH))
