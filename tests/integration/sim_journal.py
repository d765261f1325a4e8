"""The simulated store behind the same few coroutines as the real ones: its world runs on until each is answered."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.model.audit import AuditEvent
from atoll.model.ids import ChangeSeq, FleetId, JobId, Term
from atoll.model.job import Job
from orchestrator.core.durable import Stored
from orchestrator.core.outputs import Record
from orchestrator.store.base import CommitOutcome
from sims import store as simulated
from sims.faults import Faults
from sims.store import SimStore
from sims.world import SECOND_US, World


class SimJournal:
    """One leader's view of the simulated store."""

    def __init__(self, world: World, store: SimStore) -> None:
        self._world = world
        self._store = store

    async def take_over(self) -> Stored:
        """See `Store`."""
        taken: list[Stored | None] = []
        self._store.take_over(taken.append)
        self._run(taken)
        assert taken[0] is not None, "it is not full"
        return taken[0]

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        """See `Store`."""
        heard: list[simulated.CommitOutcome] = []
        self._store.commit(term, now_us, tuple(records), heard.append)
        self._run(heard)
        return CommitOutcome(heard[0].value)

    async def get_job(self, job_id: JobId) -> Job | None:
        """What the checks of a simulated run look at."""
        return self._store.jobs.get(job_id)

    async def list_audit(self, *, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """As above."""
        return tuple(event for event in self._store.audit if event.seq > after)[:limit]

    async def close(self) -> None:
        """Nothing is held."""

    def _run(self, answers: Sequence[object]) -> None:
        while not answers:
            self._world.run(self._world.now_us + SECOND_US)


class SimBackend:
    """One simulated store, in a world without faults."""

    def __init__(self) -> None:
        self._world = World(1)
        self._store = SimStore(self._world, Faults(self._world, frozenset()), FleetId("simulated"))

    def open(self) -> SimJournal:
        """Another leader, not taken over yet."""
        return SimJournal(self._world, self._store)

    async def depose(self) -> None:
        """Somebody else takes over."""
        await self.open().take_over()
