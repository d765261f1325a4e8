"""The store in etcd: for fleets with which another machine must be able to go on.

Decides what is answered from memory (where a job is, whose a key is) and what etcd is asked for. etcd is kept small: terminal jobs leave
after the retention, history is compacted as it is written, and nothing new is accepted when it is nearly full.
Must not know what a record means.
"""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog

from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ChangeSeq, JobId, TenantId, Term
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.orchestrators import Introduction, OrchestratorView
from atoll.wire import stored
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.jobs import ENDED_KEYS_MAX
from orchestrator.core.outputs import Record
from orchestrator.store.base import BEGUN_IDS_MAX, CommitOutcome, StoreError
from orchestrator.store.changes import changes_of
from orchestrator.store.etcd import leading, rows
from orchestrator.store.etcd.client import PATIENCE_S, EtcdClient
from orchestrator.store.etcd.copying import write_copy
from orchestrator.store.etcd.errors import EtcdCompactedError, EtcdError, EtcdUnavailableError
from orchestrator.store.etcd.history import History
from orchestrator.store.etcd.index import JobIndex, Plan
from orchestrator.store.etcd.layout import CommitValue, HealthValue, Layout, LeadershipValue, encode, number_of
from orchestrator.store.etcd.loading import Head, Reader
from orchestrator.store.etcd.operations import OPERATIONS_MAX, Delete, end_of
from orchestrator.store.etcd.pulse import Pulse
from orchestrator.store.etcd.quota import DEFAULT_QUOTA_BYTES, why_shed
from orchestrator.store.etcd.roster import Roster
from orchestrator.store.etcd.standing import Standby
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.writing import Writer
from orchestrator.store.wall import wall_ms as peoples_wall_ms

_log = structlog.get_logger(__name__)

# Lines of the audit that are kept here, fewer than `limits.AUDIT_LINES_MAX`: 4 MB, a week of incidents. Who must keep them longer follows
# `atoll events` into a log.
AUDIT_LINES_MAX: Final = 20_000
# An election takes 1 to 2 s; whoever stands by, and reaches etcd, has taken over long before.
OUT_OF_TOUCH_S: Final = 3.0
# Whoever shares this etcd compacts it too, each fleet every few minutes: a copy that took longer than that is begun anew.
_COPY_TRIES: Final = 3
# From so many records on they are encoded in a thread: milliseconds in which streams are served.
_FEW_RECORDS: Final = 64


class EtcdStore:
    """The store below the prefix of `target`. Nothing is asked before `take_over`. `quota_bytes`: etcd's, where it does not say."""

    def __init__(
        self,
        target: EtcdTarget,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        patience_s: float = PATIENCE_S,
        ended_keys_max: int = ENDED_KEYS_MAX,
        me: Introduction = Introduction(),
        wall_ms: Callable[[], int] = peoples_wall_ms,
    ) -> None:
        self._target = target
        self._quota_bytes = quota_bytes
        self._patience_s = patience_s
        self._ended_keys_max = ended_keys_max
        self._wall_ms = wall_ms
        self._layout = Layout(target.prefix)
        self._instance = uuid.uuid4().hex
        self._client: EtcdClient | None = None
        self._writer: Writer | None = None
        self._pulse: Pulse | None = None
        self._me = me
        self._roster = Roster(self._layout)
        self._standby: Standby | None = None
        self._standing_down: asyncio.Task[None] | None = None
        # Of the health, when this one stood by until nothing came after it.
        self._silent_revision = 0
        self._index = JobIndex()
        self._term = Term(0)
        self._closed = False
        # Commits, sweeps and takeovers, one at a time.
        self._writing = asyncio.Lock()
        self._deposed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._history = History()

    # --- leading -------------------------------------------------------------------------------------------------------------

    async def take_over(self) -> Stored:
        """See `Store`."""
        async with self._writing, self._telling():
            if self._closed:
                raise StateError("the store is closed")
            try:
                return await self._take_over()
            except EtcdUnavailableError:
                # Names may stand for other addresses by the next try.
                await self._disconnect()
                raise

    async def _take_over(self) -> Stored:
        self._writer = None
        client, layout = await self._connected(), self._layout
        silent, self._silent_revision = self._silent_revision, 0
        head = await leading.take_over(client, layout, self._instance, me=self._me, silent=silent)
        writer = Writer(client, layout, head)
        self._beat(writer)
        self._watch(head.leadership)
        commit = await writer.recover()
        loaded, index = await self._load(client, head, commit, writer.commit_revision)
        if not await writer.look():
            raise StoreError("another took over while this one was loading")
        self._writer, self._index, self._term = writer, index, loaded.term
        self._stand_down()
        return loaded

    async def _load(self, client: EtcdClient, head: Head, commit: CommitValue, commit_revision: int) -> tuple[Stored, JobIndex]:
        """Everything: from what was kept at hand, if that is level with the store, else from etcd."""
        collecting = gc.isenabled()
        # Very many new objects, none of them garbage: looking for some would double the time.
        gc.disable()
        try:
            jobs, nouns = None, None
            if self._standby is not None and await self._standby.level(commit_revision):
                nouns = self._standby.mirror
                jobs = await nouns.jobs()
            reader = Reader(client, self._layout, nouns=nouns)
            jobs = jobs or await reader.jobs()
            return await reader.stored(head, commit, jobs, wall_ms=self._wall_ms(), ended_keys_max=self._ended_keys_max), jobs.index
        finally:
            if collecting:
                gc.enable()

    async def _connected(self) -> EtcdClient:
        if self._client is None:
            self._client = await EtcdClient.open(self._target, patience_s=self._patience_s)
        return self._client

    async def stand_by(self) -> None:
        """See `Store`."""
        async with self._telling():
            if self._closed:
                raise StateError("the store is closed")
            try:
                client = await self._connected()
                if self._layout.fleet not in await client.read([self._layout.fleet]):
                    return  # nothing is written where no fleet is
                if self._standby is None:
                    self._standby = Standby(client, self._target, self._layout, self._instance, self._me)
                    self._standby.begin()
                self._silent_revision = await self._standby.until_silent()
            except EtcdUnavailableError:
                async with self._writing:
                    await self._disconnect()
                raise

    def _stand_down(self) -> None:
        """What was kept at hand is the core's now. Saying so may take as long as a member that hangs."""
        if self._standby is not None:
            standing, self._standby = self._standby, None
            self._standing_down = asyncio.create_task(standing.end())

    def out_of_touch(self) -> bool:
        """See `Store`. Where nobody stands by, nobody does: what is known can be told all the while."""
        return self._pulse is not None and self._pulse.silent_s > OUT_OF_TOUCH_S and self._roster.others

    def orchestrators(self) -> tuple[OrchestratorView, ...]:
        """See `Store`."""
        if self._standby is not None:
            return self._standby.views()
        return self._roster.views(leader_silent_s=self._pulse.silent_s if self._pulse is not None else 0.0)

    def _beat(self, writer: Writer) -> None:
        if self._pulse is not None:
            self._pulse.guard = writer.leadership
            return
        holder = leading.holder_name()

        def value(beat: int) -> bytes:
            return encode(HealthValue(instance=self._instance, holder=holder, beat=beat))

        self._pulse = Pulse(self._target, key=self._layout.health, value=value, guard=writer.leadership)
        self._pulse.start()

    def _watch(self, mine: LeadershipValue) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._deposed.clear()
        self._watching = asyncio.create_task(self._notice_others(mine))

    async def _notice_others(self, mine: LeadershipValue) -> None:
        try:
            async for leader in self._roster.follow(self._open()):
                if leader.instance != mine.instance:
                    self._deposed.set()
        except (EtcdError, StateError) as error:
            # The next commit will say the same.
            _log.warning("leadership_not_watched", error=str(error))

    async def deposed(self) -> None:
        """See `Store`."""
        await self._deposed.wait()

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        """See `Store`. Raises StoreError when etcd does not answer; it is then not known whether the records are there."""
        async with self._writing, self._telling():
            writer = self._led()
            if term != self._term:
                return CommitOutcome.REFUSED
            changes = changes_of(records)
            awaited = rows.awaited(changes, self._index)
            read = await self._reader().done(awaited) if awaited else ()
            stopping = {job.job_id: job for job in read}
            plan = Plan(self._index)
            arguments = (self._layout, plan, changes, stopping, self._wall_ms())
            wanted = rows.operations(*arguments) if len(records) < _FEW_RECORDS else await asyncio.to_thread(rows.operations, *arguments)
            outcome = await writer.commit(now_us, wanted)
            if outcome is CommitOutcome.COMMITTED:
                plan.settle()
            self._history.compact_when_due(self._open(), writer)
            return outcome

    async def sweep(self, *, now_us: int, retention_ms: int, max_ended: int) -> int:
        """See `Store`. Ends early when the term was deposed. Trims the audit too."""
        went = 0
        before_us = now_us - retention_ms * 1_000
        while went_now := await self._forget(before_us, max_ended):
            went += went_now
        async with self._writing, self._telling():
            writer = self._led()
            last = await self._reader().last_audit_seq()
            if last > AUDIT_LINES_MAX:
                await writer.apply([Delete(self._layout.audit, self._layout.audit_line(last - AUDIT_LINES_MAX + 1))])
            # A fleet that has nothing to do commits nothing, but its leader's heart beats: four hundred thousand revisions a day.
            await writer.look()
            self._history.compact_when_due(self._open(), writer)
        return went

    async def _forget(self, before_us: int, max_ended: int) -> int:
        """The oldest terminal jobs that are too old, or too many: as many as one transaction takes."""
        async with self._writing, self._telling():
            writer, index = self._led(), self._index
            excess = index.ended_count - max_ended
            oldest = index.oldest(OPERATIONS_MAX // 2)
            leaving = [(job_id, entry) for place, (job_id, entry) in enumerate(oldest) if entry.ended_us < before_us or place < excess]
            deletes = [delete for job_id, entry in leaving for delete in rows.forgotten(self._layout, job_id, entry)]
            if not deletes or not await writer.apply(deletes):
                return 0
            for job_id, _ in leaving:
                index.remove(job_id)
            return len(leaving)

    def why_shed(self) -> str:
        """See `Store`."""
        return why_shed(self._pulse.fullness, self._quota_bytes) if self._pulse is not None else ""

    # --- reading -------------------------------------------------------------------------------------------------------------

    async def get_job(self, job_id: JobId) -> Job | None:
        """See `Store`."""
        async with self._telling():
            self._led()
            if self._index.get(job_id) is None:
                return None
            live, done = self._layout.live_job(job_id), self._layout.done_job(job_id)
            found = await self._open().read([live, done])
            if done in found:
                return stored.decode_job(found[done].value)
            return stored.decode_job(number_of(found[live].value)[1]) if live in found else None

    async def find_ids(self, prefix: str, *, tenant: TenantId | None, limit: int) -> tuple[JobId, ...]:
        """See `Store`."""
        async with self._telling():
            self._led()
            begun: list[JobId] = []
            for folder, first in ((self._layout.live, self._layout.live_job(prefix)), (self._layout.done, self._layout.done_job(prefix))):
                page = await self._open().range(first, end_of(first), limit=BEGUN_IDS_MAX + 1, keys_only=True)
                begun.extend(JobId(kv.key.removeprefix(folder).decode()) for kv in page.kvs)
            looked_at = sorted(set(begun))[: BEGUN_IDS_MAX + 1]
            found = tuple(job_id for job_id in looked_at if (entry := self._index.get(job_id)) and tenant in {None, entry.tenant})[:limit]
            if len(looked_at) > BEGUN_IDS_MAX and len(found) < limit:
                raise FieldError("job_id", prefix, f"more of the id: more than {BEGUN_IDS_MAX} begin so")
            return found

    async def find_keys(self, *, tenant: TenantId, keys: Sequence[str]) -> tuple[EndedKey, ...]:
        """See `Store`."""
        self._led()
        owners = [self._index.owner(tenant, key) for key in keys]
        found = (self._index.ended_key(job_id) for job_id in owners if job_id is not None)
        return tuple(key for key in found if key is not None)

    async def list_ended(
        self, *, tenant: TenantId | None, states: frozenset[JobState], before: tuple[int, JobId] | None, limit: int
    ) -> tuple[Job, ...]:
        """See `Store`."""
        async with self._telling():
            self._led()
            wanted = (states or TERMINAL) & TERMINAL
            chosen: list[JobId] = []
            for job_id, entry in self._index.ended_before(before, tenant) if wanted else ():
                if entry.state in wanted:
                    chosen.append(job_id)
                    if len(chosen) == limit:
                        break
            return await self._reader().done(chosen)

    async def list_audit(self, *, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """See `Store`."""
        async with self._telling():
            self._led()
            return await self._reader().audit(after, limit)

    async def audit_tail(self, *, most: int) -> ChangeSeq:
        """See `Store`."""
        async with self._telling():
            self._led()
            return await self._reader().last_audit_seq(before=most)

    async def backup(self, path: str) -> int:
        """See `Store`. The copy is an embedded store: `atoll orchestrator` runs on it as it is."""
        async with self._telling():
            tries = _COPY_TRIES
            while True:
                tries -= 1
                async with self._writing:
                    # None is half carried out; and what is compacted from here, from here on, is older.
                    writer = self._led()
                    await writer.look()
                    self._history.hold()
                try:
                    return await write_copy(self._open(), self._layout, writer.revision, path)
                except EtcdCompactedError:
                    if not tries:
                        raise
                finally:
                    self._history.release()

    # --- the end -------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """See `Store`. Again is allowed."""
        if self._closed:
            return
        self._closed = True
        async with self._writing:
            await self._disconnect()

    async def _disconnect(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._watching = self._writer = None
        await self._history.close()
        self._stand_down()
        if self._standing_down is not None:
            await asyncio.gather(self._standing_down, return_exceptions=True)
        if self._pulse is not None:
            await asyncio.to_thread(self._pulse.stop)
            self._pulse = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _led(self) -> Writer:
        """The writer of the own term. StateError before the first takeover and after the end, StoreError between."""
        if self._closed:
            raise StateError("the store is closed")
        if self._term == 0:
            raise StateError("the store was not taken over yet")
        if self._writer is None:
            raise StoreError("the store is being taken over anew")
        return self._writer

    def _open(self) -> EtcdClient:
        assert self._client is not None
        return self._client

    def _reader(self) -> Reader:
        return Reader(self._open(), self._layout)

    @asynccontextmanager
    async def _telling(self) -> AsyncGenerator[None]:
        try:
            yield
        except EtcdError as error:
            raise StoreError(f"{self._target}: {error}") from error
