"""The embedded store: one SQLite file in write-ahead mode, every commit synced before it is reported.

Decides which thread does what: one writes (commits and sweeps, each a transaction that compares the term first), one reads, and a
backup has its own, so that neither a page of a list nor a copy delays a commit. Must not know what a record means.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from atoll.model.audit import AuditEvent
from atoll.model.errors import StateError
from atoll.model.ids import ChangeSeq, JobId, TenantId, Term
from atoll.model.job import Job, JobState
from atoll.model.limits import AUDIT_LINES_MAX
from atoll.model.orchestrators import OrchestratorView
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.outputs import Record
from orchestrator.store import sqlite_rows as rows
from orchestrator.store.base import CommitOutcome, HeldError
from orchestrator.store.changes import changes_of
from orchestrator.store.lockfile import LockFile
from orchestrator.store.sqlite_backup import write_backup
from orchestrator.store.sqlite_schema import open_reader, open_writer, told
from orchestrator.store.wall import wall_ms as peoples_wall_ms

T = TypeVar("T")

# As many as the core remembers: older ones are found by `find_keys`. Loading a million would take seconds and half a gigabyte.
ENDED_KEYS_MAX: Final = 300_000
# Rows deleted in one transaction of a sweep: a few milliseconds, for which a commit may have to wait.
SWEEP_ROWS: Final = 500


class SqliteStore:
    """The store in the file at `path` (made when there is none). Nothing is opened before `take_over`."""

    def __init__(
        self, path: str | os.PathLike[str], *, ended_keys_max: int = ENDED_KEYS_MAX, wall_ms: Callable[[], int] = peoples_wall_ms
    ) -> None:
        # Two names of one file are one store, and one lock.
        self._path = os.path.realpath(os.fspath(path))
        self._ended_keys_max = ended_keys_max
        self._wall_ms = wall_ms
        self._lock = LockFile(f"{self._path}.lock")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._rows = rows.LiveRows()
        self._term = Term(0)
        self._closed = False

    # --- the contract --------------------------------------------------------------------------------------------------------

    async def take_over(self) -> Stored:
        """See `Store`. Also opens both connections anew: after a failed sync, what the old ones hold is not to be trusted."""
        await self._read(self._close_reader, opened=False)
        return await self._write(self._take_over)

    async def stand_by(self) -> None:
        """See `Store`."""
        raise HeldError(f"the store {self._path} is a file: nobody stands by on it")

    def out_of_touch(self) -> bool:
        """See `Store`."""
        return False

    def orchestrators(self) -> tuple[OrchestratorView, ...]:
        """See `Store`."""
        return ()

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        """See `Store`. Raises StoreError when SQLite fails; it is then not known whether the transaction survives."""
        return await self._write(lambda: self._commit(term, now_us, records))

    async def deposed(self) -> None:
        """See `Store`. The kernel's lock keeps others out for as long as this process has it."""
        await asyncio.get_running_loop().create_future()

    def why_shed(self) -> str:
        """See `Store`. A full disk is told by the commit that meets it."""
        return ""

    async def get_job(self, job_id: JobId) -> Job | None:
        """See `Store`."""
        return await self._read(lambda: rows.get_job(self._open_reader(), job_id))

    async def find_ids(self, prefix: str, *, tenant: TenantId | None, limit: int) -> tuple[JobId, ...]:
        """See `Store`."""
        return await self._read(lambda: rows.find_ids(self._open_reader(), prefix, tenant, limit))

    async def find_keys(self, *, tenant: TenantId, keys: Sequence[str]) -> tuple[EndedKey, ...]:
        """See `Store`."""
        return await self._read(lambda: rows.find_keys(self._open_reader(), tenant, keys))

    async def list_ended(
        self, *, tenant: TenantId | None, states: frozenset[JobState], before: tuple[int, JobId] | None, limit: int
    ) -> tuple[Job, ...]:
        """See `Store`."""
        return await self._read(lambda: rows.list_ended(self._open_reader(), tenant, states, before, limit))

    async def list_audit(self, *, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """See `Store`."""
        return await self._read(lambda: rows.list_audit(self._open_reader(), after, limit))

    async def audit_tail(self, *, most: int) -> ChangeSeq:
        """See `Store`."""
        return await self._read(lambda: rows.audit_tail(self._open_reader(), most))

    async def sweep(self, *, now_us: int, retention_ms: int, max_ended: int) -> int:
        """See `Store`. Ends early when the term was deposed. Trims the audit too."""
        went = 0
        before_us = now_us - retention_ms * 1_000
        while went_now := await self._write(lambda: self._sweep(before_us, SWEEP_ROWS)):
            went += went_now
        excess = await self._read(lambda: rows.count_ended(self._open_reader())) - max_ended
        while excess > 0:
            limit = min(excess, SWEEP_ROWS)
            # Whatever ended, the oldest first.
            went_now = await self._write(partial(self._sweep, 2**62, limit))
            if not went_now:
                break
            went += went_now
            excess -= went_now
        while await self._write(self._sweep_audit):
            pass
        return went

    async def backup(self, path: str) -> int:
        """See `Store`."""
        self._check_open()
        return await asyncio.to_thread(write_backup, self._path, path)

    async def close(self) -> None:
        """See `Store`. Again is allowed."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reading, self._close_reader)
        await loop.run_in_executor(self._writing, self._close_writer)
        self._reading.shutdown(wait=True)
        self._writing.shutdown(wait=True)
        self._lock.release()

    # --- threads -------------------------------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[], T]) -> T:
        return await self._run(self._writing, work)

    async def _read(self, work: Callable[[], T], *, opened: bool = True) -> T:
        if opened:
            self._check_open()
        return await self._run(self._reading, work)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._closed:
            raise StateError("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work)
        except (sqlite3.Error, OSError) as error:
            raise told(error, self._path) from error

    def _check_open(self) -> None:
        if self._term == 0:
            raise StateError("the store was not taken over yet")

    # --- on the reading thread -----------------------------------------------------------------------------------------------

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = open_reader(self._path)
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # --- on the writing thread -----------------------------------------------------------------------------------------------

    def _take_over(self) -> Stored:
        self._close_writer()
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        self._lock.acquire()
        writer = self._writer = open_writer(self._path)
        writer.execute("BEGIN IMMEDIATE")
        rows.raise_term(writer)
        writer.execute("COMMIT")
        # Millions of new objects, none of them garbage: looking for some would double the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            loaded, self._rows = rows.load(writer, ended_keys_max=self._ended_keys_max, wall_ms=self._wall_ms())
        finally:
            if collecting:
                gc.enable()
        self._term = loaded.term
        return loaded

    def _commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        changes = changes_of(records)
        new: list[tuple[JobId, int]] = []

        def work(writer: sqlite3.Connection) -> None:
            new.extend(rows.write(writer, self._rows, changes, self._wall_ms()))

        if not self._transact(term, now_us, work):
            return CommitOutcome.REFUSED
        rows.settle(self._rows, changes, new)
        return CommitOutcome.COMMITTED

    def _sweep(self, before_us: int, limit: int) -> int:
        went = 0

        def work(writer: sqlite3.Connection) -> None:
            nonlocal went
            went = rows.forget_ended(writer, before_us=before_us, limit=limit)

        return went if self._transact(self._term, 0, work) else 0

    def _sweep_audit(self) -> int:
        went = 0

        def work(writer: sqlite3.Connection) -> None:
            nonlocal went
            went = rows.forget_audit(writer, keep=AUDIT_LINES_MAX, limit=SWEEP_ROWS)

        return went if self._transact(self._term, 0, work) else 0

    def _transact(self, term: Term, now_us: int, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do `work` in one transaction, durable on return; False, and nothing done, when `term` is not the store's any more."""
        writer = self._writer
        if writer is None:
            raise StateError("the store was not taken over yet")
        writer.execute("BEGIN IMMEDIATE")
        try:
            if not rows.check_term(writer, term, now_us):
                return False
            work(writer)
            writer.execute("COMMIT")
        finally:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        return True

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
