"""What is known of every job without asking etcd: where it is kept, whose it is, when it ended, who has its idempotency key.

Decides what of it a transaction changes, and takes that over once the transaction is durable: until then nothing here has changed.
Must not know etcd.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from atoll.model.ids import JobId, TenantId
from atoll.model.job import TERMINAL, Job, JobState
from orchestrator.core.durable import EndedKey
from orchestrator.core.ends import is_stopping
from orchestrator.store.base import StoreError


@dataclass(frozen=True, slots=True)
class Entry:
    """One job. `n`: its place in the order of acceptance; `key` "": it has none, or a younger job has it."""

    n: int
    tenant: TenantId
    key: str
    payload_digest: str
    state: JobState
    ended_us: int = 0
    stopping: bool = False

    @property
    def live(self) -> bool:
        """Whether it is not terminal."""
        return self.state not in TERMINAL


class JobIndex:
    """All jobs that are kept."""

    def __init__(self) -> None:
        self.next_n = 1
        self._entries: dict[JobId, Entry] = {}
        self._owners: dict[tuple[TenantId, str], JobId] = {}
        # Of terminal jobs, oldest first.
        self._ended: list[tuple[int, JobId]] = []
        self._ended_of_tenant: dict[TenantId, list[tuple[int, JobId]]] = {}

    def get(self, job_id: JobId) -> Entry | None:
        """What is known of a job."""
        return self._entries.get(job_id)

    def owner(self, tenant: TenantId, key: str) -> JobId | None:
        """The job that has an idempotency key."""
        return self._owners.get((tenant, key))

    @property
    def ended_count(self) -> int:
        """How many terminal jobs are kept."""
        return len(self._ended)

    # --- terminal jobs -------------------------------------------------------------------------------------------------------

    def ended_before(self, before: tuple[int, JobId] | None, tenant: TenantId | None) -> Iterator[tuple[JobId, Entry]]:
        """Terminal jobs, youngest first, strictly before a place in their order. Valid until the next change."""
        order = self._ended if tenant is None else self._ended_of_tenant.get(tenant, [])
        until = len(order) if before is None else bisect_left(order, before)
        for place in range(until - 1, -1, -1):
            job_id = order[place][1]
            yield job_id, self._entries[job_id]

    def oldest(self, limit: int) -> list[tuple[JobId, Entry]]:
        """The terminal jobs that ended first."""
        return [(job_id, self._entries[job_id]) for _, job_id in islice(self._ended, limit)]

    def ended_keys(self, most: int) -> tuple[EndedKey, ...]:
        """Idempotency keys of terminal jobs, in the order in which those ended: the youngest."""
        keys = (key for _, job_id in reversed(self._ended) if (key := self.ended_key(job_id)) is not None)
        return tuple(reversed(tuple(islice(keys, most))))

    def ended_key(self, job_id: JobId) -> EndedKey | None:
        """That of one of them, if it has one."""
        entry = self._entries[job_id]
        if entry.live or not entry.key:
            return None
        return EndedKey(tenant=entry.tenant, idempotency_key=entry.key, job_id=job_id, payload_digest=entry.payload_digest)

    def stopping(self) -> list[JobId]:
        """Terminal jobs an attempt of which is still stopping, in the order in which they were accepted."""
        found = sorted((entry.n, job_id) for job_id, entry in self._entries.items() if entry.stopping and not entry.live)
        return [job_id for _, job_id in found]

    # --- changes -------------------------------------------------------------------------------------------------------------

    def put(self, job_id: JobId, entry: Entry) -> None:
        """It is so from now on."""
        self.remove(job_id)
        self._entries[job_id] = entry
        self.next_n = max(self.next_n, entry.n + 1)
        if entry.key:
            self._owners[(entry.tenant, entry.key)] = job_id
        if not entry.live:
            insort(self._ended, (entry.ended_us, job_id))
            insort(self._ended_of_tenant.setdefault(entry.tenant, []), (entry.ended_us, job_id))

    def remove(self, job_id: JobId) -> None:
        """It is kept no more."""
        entry = self._entries.pop(job_id, None)
        if entry is None:
            return
        if entry.key and self._owners.get((entry.tenant, entry.key)) == job_id:
            del self._owners[(entry.tenant, entry.key)]
        if not entry.live:
            place = (entry.ended_us, job_id)
            _discard(self._ended, place)
            of_tenant = self._ended_of_tenant[entry.tenant]
            _discard(of_tenant, place)
            if not of_tenant:
                del self._ended_of_tenant[entry.tenant]


def _discard(order: list[tuple[int, JobId]], place: tuple[int, JobId]) -> None:
    del order[bisect_left(order, place)]


class Plan:
    """What one transaction makes of the index. Nothing of it is visible before `settle`."""

    def __init__(self, index: JobIndex) -> None:
        self._index = index
        self._next_n = index.next_n
        self._owners: dict[tuple[TenantId, str], JobId] = {}
        self.entries: dict[JobId, Entry] = {}

    def entry(self, job_id: JobId) -> Entry | None:
        """As it will be."""
        return self.entries.get(job_id) or self._index.get(job_id)

    def put(self, job_id: JobId, job: Job) -> Entry:
        """The job is so from now on. A new one takes its key from the terminal job that has it; StoreError when a live one does."""
        known = self.entry(job_id)
        if known is None:
            n, key = self._next_n, job.idempotency_key
            self._next_n += 1
            self._free(job.spec.tenant, key, job_id)
        else:
            n, key = known.n, known.key
        entry = Entry(
            n=n,
            tenant=job.spec.tenant,
            key=key,
            payload_digest=job.payload_digest,
            state=job.state,
            ended_us=job.ended_us if job.state in TERMINAL else 0,
            stopping=is_stopping(job),
        )
        self.entries[job_id] = entry
        return entry

    def _free(self, tenant: TenantId, key: str, job_id: JobId) -> None:
        if not key:
            return
        place = (tenant, key)
        owner = self._owners.get(place) or self._index.owner(tenant, key)
        self._owners[place] = job_id
        entry = self.entry(owner) if owner is not None else None
        if owner is None or entry is None:
            return
        if entry.live:
            raise StoreError(f"job {job_id} was accepted with the idempotency key of job {owner}, which is UNIQUE among live jobs: a bug")
        self.entries[owner] = replace(entry, key="")

    def settle(self) -> None:
        """The transaction is durable."""
        for job_id, entry in self.entries.items():
            self._index.put(job_id, entry)
