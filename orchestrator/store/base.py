"""The store: one transaction per commit, guarded by the leadership term.

Decides the contract that every store keeps. Must not know why a record exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

from atoll.model.audit import AuditEvent
from atoll.model.errors import AtollError, StateError
from atoll.model.ids import ChangeSeq, JobId, TenantId, Term
from atoll.model.job import Job, JobState
from atoll.model.orchestrators import OrchestratorView
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.outputs import Record

# Ids that are looked through for the jobs of one tenant, a few milliseconds of a reader. So many begin alike when they were
# submitted in the same second; who has typed so little of one can type more.
BEGUN_IDS_MAX: Final = 5_000


class StoreError(AtollError):
    """The store failed: full, broken, unreachable. It may work again later; whether a commit that met it was applied is not known."""


class HeldError(StateError):
    """Another process leads on this store."""


class CommitOutcome(StrEnum):
    """What became of a commit. After `refused`, `unknown` and a StoreError the core is dropped and loaded again by `take_over`."""

    COMMITTED = "committed"
    REFUSED = "refused"  # the term was deposed
    UNKNOWN = "unknown"  # applied or not: nobody can say


class Store(Protocol):
    """A durable store. Methods run off the event loop or are coroutines; `commit` is called with one batch at a time.

    Every method may raise StoreError. `take_over` comes first, and again after every commit that was not `committed`.
    """

    async def take_over(self) -> Stored:
        """Become the one writer (term + 1, durably) and read everything. HeldError when another process leads, StateError when none can.

        Jobs come in the order in which they were first written; `ended_keys` are the youngest, in the order in which they ended.
        """

    async def stand_by(self) -> None:
        """Returns when the one that leads is heard no more: `take_over` is to be tried then, and is quick: what the store holds is kept
        at hand meanwhile. HeldError where only a process that ends makes room for another.
        """

    def out_of_touch(self) -> bool:
        """Whether another may lead by now, of which this one could not hear. Costs nothing."""

    def orchestrators(self) -> tuple[OrchestratorView, ...]:
        """Who leads on this store, first, and who stands by, as far as is known here. (): nobody else can. Costs nothing."""

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        """Write all records in one transaction if `term` is still the store's; durable when it returns `committed`."""

    async def deposed(self) -> None:
        """Returns once another one has taken over: at once, not with the next commit. Never, where nobody else can."""

    def why_shed(self) -> str:
        """Why no new job may be accepted now, for whoever wanted one: it is nearly full. "": it may. Costs nothing."""

    async def get_job(self, job_id: JobId) -> Job | None:
        """A job, terminal ones included as long as they are retained."""

    async def find_ids(self, prefix: str, *, tenant: TenantId | None, limit: int) -> tuple[JobId, ...]:
        """Ids that begin so, ascending; of one tenant, or of all (None). FieldError when too many begin so."""

    async def find_keys(self, *, tenant: TenantId, keys: Sequence[str]) -> tuple[EndedKey, ...]:
        """The retained terminal jobs of these idempotency keys: also those too old for `Stored.ended_keys`."""

    async def list_ended(
        self, *, tenant: TenantId | None, states: frozenset[JobState], before: tuple[int, JobId] | None, limit: int
    ) -> tuple[Job, ...]:
        """Terminal jobs, by (ended_us, job_id) descending, strictly before `before`. No `states`: any."""

    async def list_audit(self, *, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """Audit lines with seq > `after`, ascending."""

    async def audit_tail(self, *, most: int) -> ChangeSeq:
        """The number after which at most so many lines of the audit follow; 0: all do."""

    async def sweep(self, *, now_us: int, retention_ms: int, max_ended: int) -> int:
        """Forget terminal jobs older than the retention or beyond the count; how many went. In small transactions."""

    async def backup(self, path: str) -> int:
        """Write a consistent copy to `path` (which must not exist); its size in bytes. FieldError when `path` cannot be written."""

    async def close(self) -> None:
        """Finish the commit in flight and let go."""
