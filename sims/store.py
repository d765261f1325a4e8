"""The simulated store: the semantics of `orchestrator.store.base`, with every way in which a commit can end.

Decides when a transaction applies and what its caller hears. Must not know why a record exists. State is what the records say, as
dictionaries; a transaction applies whole or not at all, and only under the term that holds the store.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol, assert_never

from atoll.model.adapter import AdapterSpec
from atoll.model.audit import AuditEvent
from atoll.model.demand import KeptDemand
from atoll.model.ids import AdapterId, ChangeSeq, FleetId, JobId, ModelId, SiteId, Term
from atoll.model.job import TERMINAL, Job
from atoll.model.learned import Estimates
from atoll.model.modelspec import ModelSpec
from atoll.model.residency import Pin, Push
from atoll.model.site import LinkSpec, SiteRecord
from orchestrator.core.demand import PutDemand
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.ends import EndAttempt, applied, is_stopping
from orchestrator.core.outputs import (
    AppendAudit,
    DeleteAdapter,
    DeleteModel,
    DeletePin,
    DeletePush,
    DeleteSite,
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
from orchestrator.core.placement.policy import Identity
from sims.faults import Fault, Faults
from sims.world import MILLISECOND_US, SECOND_US, World

# SQLite commits in 0.5-3 ms; a busy disk, or a store on the network, takes longer.
_COMMIT_US: Final = (500, 12 * MILLISECOND_US)
_SLOW_COMMIT_US: Final = (200 * MILLISECOND_US, 3 * SECOND_US)
# After this long without an answer a driver calls the outcome unknown.
_GIVE_UP_US: Final = 2 * SECOND_US
_LATE_US: Final = 8 * SECOND_US


class CommitOutcome(StrEnum):
    """What a caller hears of a commit."""

    COMMITTED = "committed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class StoreWatcher(Protocol):
    """Who looks at every transaction that applied."""

    def applied(self, term: Term, records: tuple[Record, ...]) -> None:
        """A transaction applied; the store holds its state already."""


class SimStore:
    """One store, whoever leads."""

    def __init__(self, world: World, faults: Faults, fleet_id: FleetId) -> None:
        self.term = Term(0)
        self.full = False
        self.jobs: dict[JobId, Job] = {}
        self.sites: dict[SiteId, SiteRecord] = {}
        self.models: dict[ModelId, ModelSpec] = {}
        self.adapters: dict[AdapterId, AdapterSpec] = {}
        self.pins: dict[tuple[ModelId, SiteId], Pin] = {}
        self.pushes: dict[ModelId, Push] = {}
        self.links: tuple[LinkSpec, ...] = ()
        self.estimates = Estimates()
        self.demand = KeptDemand()
        self.policy: Identity | None = None
        self.audit: list[AuditEvent] = []
        self.commits = 0
        self.watcher: StoreWatcher | None = None
        self._world = world
        self._faults = faults
        self._fleet_id = fleet_id
        self._fleet_time_us = 0
        self._demand_at_us = 0
        self._isolated: dict[Term, int] = {}  # until when the holder of a term cannot reach the store
        self._random = world.stream("store")

    def isolate(self, term: Term, outage_us: int) -> None:
        """Cut one process off from the store: its commits arrive when the outage is over."""
        self._isolated[term] = self._world.now_us + outage_us

    def take_over(self, done: Callable[[Stored | None], None]) -> None:
        """Become the one writer: term + 1, and everything read. None: not possible now (the store is full)."""
        self._world.after(self._random.randint(*_COMMIT_US), lambda: done(self._taken()))

    def _taken(self) -> Stored | None:
        if self.full:
            return None
        self.term = Term(self.term + 1)
        self._world.note("store", f"taken over: term {self.term}")
        ended = [job for job in self.jobs.values() if job.state in TERMINAL]
        return Stored(
            fleet_id=self._fleet_id,
            term=self.term,
            fleet_time_us=self._fleet_time_us,
            last_audit_seq=self.audit[-1].seq if self.audit else ChangeSeq(0),
            jobs=tuple(job for job in self.jobs.values() if job.state not in TERMINAL),
            stopping=tuple(job for job in ended if is_stopping(job)),
            sites=tuple(self.sites.values()),
            links=self.links,
            models=tuple(self.models.values()),
            adapters=tuple(self.adapters.values()),
            pins=tuple(self.pins.values()),
            pushes=tuple(self.pushes.values()),
            policy=self.policy,
            ended_keys=self._ended_keys(),
            ended_count=len(ended),
            estimates=self.estimates,
            demand=self.demand,
            demand_age_us=self._world.now_us - self._demand_at_us,
        )

    def _ended_keys(self) -> tuple[EndedKey, ...]:
        """In the order in which the jobs ended. The youngest job has a key: of those before it nobody asks any more."""
        owners = {(job.spec.tenant, job.idempotency_key): job for job in self.jobs.values() if job.idempotency_key}
        ended = sorted((job for job in owners.values() if job.state in TERMINAL), key=lambda job: (job.ended_us, job.job_id))
        return tuple(
            EndedKey(
                tenant=job.spec.tenant,
                idempotency_key=job.idempotency_key,
                job_id=job.job_id,
                payload_digest=job.payload_digest,
            )
            for job in ended
        )

    def commit(self, term: Term, now_us: int, records: tuple[Record, ...], done: Callable[[CommitOutcome], None]) -> None:
        """Write all records if `term` still holds the store; `done` hears of it, perhaps wrongly, perhaps late."""
        delay_us = self._random.randint(*_COMMIT_US) + max(self._isolated.get(term, 0) - self._world.now_us, 0)
        if self._faults.strikes(Fault.COMMIT_SLOW):
            delay_us += self._random.randint(*_SLOW_COMMIT_US)
        if not self._faults.strikes(Fault.COMMIT_UNKNOWN):
            self._world.after(delay_us, lambda: done(self._apply(term, now_us, records)))
            return
        # The answer is lost. What was asked for happens now, long after the caller gave up, or never.
        fate = self._random.choice(("applied", "late", "never"))
        self._world.note("store", f"outcome unknown: {fate}")
        if fate != "never":
            late_us = self._random.randint(0, _LATE_US) if fate == "late" else 0
            self._world.after(delay_us + late_us, lambda: self._applied_unseen(term, now_us, records))
        self._world.after(delay_us + _GIVE_UP_US, lambda: done(CommitOutcome.UNKNOWN))

    def _applied_unseen(self, term: Term, now_us: int, records: tuple[Record, ...]) -> None:
        self._apply(term, now_us, records)

    def _apply(self, term: Term, now_us: int, records: tuple[Record, ...]) -> CommitOutcome:
        if term != self.term or self.full:
            self._world.note("store", f"refused {len(records)} records of term {term}: {'full' if self.full else self.term}")
            return CommitOutcome.REFUSED
        for record in records:
            self._put(record)
        self._fleet_time_us = max(self._fleet_time_us, now_us)
        self.commits += 1
        self._world.note("store", f"commit {self.commits}: " + "; ".join(map(brief, records)))
        if self.watcher is not None:
            self.watcher.applied(term, records)
        return CommitOutcome.COMMITTED

    def _put(self, record: Record) -> None:  # noqa: C901 - one case per record and nothing else
        match record:
            case PutJob():
                self.jobs[record.job.job_id] = record.job
            case EndAttempt():
                known = self.jobs.get(record.key.job_id)
                told = applied(known, record) if known is not None else None
                if told is not None:
                    self.jobs[told.job_id] = told
            case PutSite():
                self.sites[record.site.spec.site_id] = record.site
            case DeleteSite():
                self.sites.pop(record.site_id, None)
            case PutLinks():
                self.links = record.links
            case PutModel():
                self.models[record.model.model_id] = record.model
            case DeleteModel():
                self.models.pop(record.model_id, None)
            case PutAdapter():
                self.adapters[record.adapter.adapter_id] = record.adapter
            case DeleteAdapter():
                self.adapters.pop(record.adapter_id, None)
            case PutEstimates():
                self.estimates = record.estimates
            case PutDemand():
                self.demand, self._demand_at_us = record.demand, self._world.now_us
            case PutPolicy():
                self.policy = record.policy
            case PutPin():
                self.pins[(record.pin.model_id, record.pin.site_id)] = record.pin
            case DeletePin():
                self.pins.pop((record.model_id, record.site_id), None)
            case PutPush():
                self.pushes[record.push.model_id] = record.push
            case DeletePush():
                self.pushes.pop(record.model_id, None)
            case AppendAudit():
                self.audit.append(record.event)
            case _:
                assert_never(record)


def brief(record: Record) -> str:  # noqa: C901 - one case per record and nothing else
    """A record in few words, for the history."""
    match record:
        case PutJob():
            job = record.job
            attempts = ",".join(f"{item.key.ordinal}:{item.site_id}:{item.state}" for item in job.attempts)
            return f"job {job.job_id} {job.state} [{attempts}]"
        case EndAttempt():
            return f"attempt {record.key} at {record.site_id} {record.state}"
        case PutSite():
            return f"site {record.site.spec.site_id} {record.site.admin}"
        case DeleteSite():
            return f"site {record.site_id} deleted"
        case PutLinks():
            return f"{len(record.links)} links"
        case PutModel():
            return f"model {record.model.model_id}"
        case DeleteModel():
            return f"model {record.model_id} deleted"
        case PutAdapter():
            return f"adapter {record.adapter.adapter_id}"
        case DeleteAdapter():
            return f"adapter {record.adapter_id} deleted"
        case PutEstimates():
            return f"estimates of {sum(one.observations for one in record.estimates.components)} observations"
        case PutDemand():
            return f"demand for {record.demand.active} models"
        case PutPolicy():
            return f"policy {record.policy.name} {record.policy.digest}"
        case PutPin():
            return f"pin {record.pin.model_id} at {record.pin.site_id}: {record.pin.tier.name}"
        case DeletePin():
            return f"pin {record.model_id} at {record.site_id} deleted"
        case PutPush():
            return f"push {record.push.model_id} to {','.join(record.push.sites)}"
        case DeletePush():
            return f"push {record.model_id} deleted"
        case AppendAudit():
            return f"audit {record.event.seq} {record.event.verb} {record.event.subject}"
        case _:
            assert_never(record)
