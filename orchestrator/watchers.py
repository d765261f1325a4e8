"""Watchers: who is told of which change, from which number on, and who is cut off.

Decides the numbering of changes, how far back a watcher may resume, and that a slow watcher slows nobody: it is cut off with a
status that says where to resume. Must not know gRPC.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Generic, TypeVar

from atoll.model.audit import AuditEvent
from atoll.model.ids import ChangeSeq, JobId, TenantId, Term
from atoll.model.job import Job
from orchestrator.core.outputs import Refusal
from orchestrator.refusals import RefusedError, unavailable

T = TypeVar("T")

# Changes kept for watchers that come back: at 1,000 changes a second, half a minute; an entry shares its Job with the read model.
RING_MAX: Final = 32_768
# Changes a watcher may lag behind. A page of progress views reads thousands a second; one that does not is gone or stuck.
LAG_MAX: Final = 8_192
# Streams open at a time. Each costs a task and a few KiB.
WATCHERS_MAX: Final = 10_000
# A change has its term above these bits, so numbers grow over restarts without a write per change: room for 10,000 changes a second
# for 80 days, and for terms that a restored backup raises by a million.
_SEQ_BITS: Final = 36


class Watcher(Generic[T]):
    """One reader of a stream: a bounded queue, and the reason it ends."""

    __slots__ = ("_arrived", "_ended", "_items", "_lag_max")

    def __init__(self, lag_max: int = LAG_MAX) -> None:
        self._items: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._ended: Refusal | None = None
        self._lag_max = lag_max

    def push(self, item: T) -> None:
        """Tell it; one that is too far behind is cut off instead."""
        if self._ended is not None:
            return
        if len(self._items) >= self._lag_max:
            self._items.clear()
            self.cut(unavailable(f"this watcher fell {self._lag_max} changes behind and was cut off: resume from the last seq it got", 100))
            return
        self._items.append(item)
        self._arrived.set()

    def cut(self, refusal: Refusal) -> None:
        """End it, after what it has not read yet."""
        self._ended = refusal
        self._arrived.set()

    async def next(self, timeout_s: float) -> T | None:
        """The next item; None when none came in time. Raises RefusedError when it was cut off."""
        if not self._items and self._ended is None:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                pass  # it may have come this very moment: look below
        if self._items:
            return self._items.popleft()
        if self._ended is not None:
            raise RefusedError(self._ended)
        return None


Change = tuple[ChangeSeq, Job]
TOO_MANY: Final = unavailable("too many streams are open", 5_000)


class JobWatchers:
    """Numbers changes of jobs, keeps the last ones, tells the watchers concerned."""

    def __init__(self) -> None:
        self._ring: deque[Change] = deque(maxlen=RING_MAX)
        self._seq = 0
        self._by_job: dict[JobId, set[Watcher[Change]]] = {}
        self._by_tenant: dict[TenantId | None, set[Watcher[Change]]] = {}
        self._count = 0

    @property
    def seq(self) -> ChangeSeq:
        """Number of the last change."""
        return ChangeSeq(self._seq)

    def restart(self, term: Term, refusal: Refusal) -> None:
        """A new core begins: its changes count from the term on, and whoever watched the old one resumes."""
        self._ring.clear()
        self._seq = term << _SEQ_BITS
        self.cut_all(refusal)

    def publish(self, job: Job) -> None:
        """Number this change and tell who watches the job, its tenant, or everything."""
        self._seq += 1
        change = (ChangeSeq(self._seq), job)
        self._ring.append(change)
        for group in (self._by_job.get(job.job_id), self._by_tenant.get(job.spec.tenant), self._by_tenant.get(None)):
            for watcher in group or ():
                watcher.push(change)

    def replay(self, after: ChangeSeq, wanted: Callable[[Job], bool]) -> list[Change] | None:
        """Wanted changes after this number; None when it is too old, or was never given out."""
        first = self._seq - len(self._ring)
        if not first <= after <= self._seq:
            return None
        # The ring is dense: its newest `self._seq - after` entries are the ones.
        missed = list(islice(reversed(self._ring), self._seq - after))
        return [change for change in reversed(missed) if wanted(change[1])]

    def open(self, tenant: TenantId | None, job_ids: frozenset[JobId]) -> Watcher[Change]:
        """A watcher of these jobs; without any, of the tenant (None: of all). Raises RefusedError when there are too many."""
        if self._count >= WATCHERS_MAX:
            raise RefusedError(TOO_MANY)
        watcher: Watcher[Change] = Watcher()
        self._count += 1
        if not job_ids:
            self._by_tenant.setdefault(tenant, set()).add(watcher)
        for job_id in job_ids:
            self._by_job.setdefault(job_id, set()).add(watcher)
        return watcher

    def close(self, watcher: Watcher[Change], tenant: TenantId | None, job_ids: frozenset[JobId]) -> None:
        """Forget a watcher."""
        self._count -= 1
        if not job_ids:
            _discard(self._by_tenant, tenant, watcher)
        for job_id in job_ids:
            _discard(self._by_job, job_id, watcher)

    def cut_all(self, refusal: Refusal) -> None:
        """End every stream."""
        for groups in (self._by_job.values(), self._by_tenant.values()):
            for group in groups:
                for watcher in group:
                    watcher.cut(refusal)


K = TypeVar("K")


def _discard(groups: dict[K, set[Watcher[Change]]], key: K, watcher: Watcher[Change]) -> None:
    group = groups.get(key)
    if group is not None:
        group.discard(watcher)
        if not group:
            del groups[key]


class AuditWatchers:
    """Tells who follows the audit. What came before is read from the store."""

    def __init__(self) -> None:
        self._watchers: set[Watcher[AuditEvent]] = set()

    def publish(self, event: AuditEvent) -> None:
        """A line of the audit is durable."""
        for watcher in self._watchers:
            watcher.push(event)

    def open(self) -> Watcher[AuditEvent]:
        """A watcher of all lines from now on. Raises RefusedError when there are too many."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise RefusedError(TOO_MANY)
        watcher: Watcher[AuditEvent] = Watcher()
        self._watchers.add(watcher)
        return watcher

    def close(self, watcher: Watcher[AuditEvent]) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)

    def cut_all(self, refusal: Refusal) -> None:
        """End every stream."""
        for watcher in self._watchers:
            watcher.cut(refusal)
