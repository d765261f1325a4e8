"""The history of a run and what must hold of it: the promises as seen from outside the machines.

Decides what counts as a violation. It believes only the store's transactions, what clients were told and what sites did; the machines'
own invariants are checked beside it, after every event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.core.gangs import block
from agents.core.outputs import AgentStep
from atoll.model.attempt import ENDED, Attempt, AttemptState, ResultManifest
from atoll.model.ids import AttemptKey, JobId, ModelId, SiteId, SlotRef, TenantId, Term
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.report import AttemptEvent
from atoll.model.site import SiteAdmin
from orchestrator.core.events import Event
from orchestrator.core.outputs import DeleteSite, Done, PutJob, PutSite, Record, Refusal, Reply, SendAssignment, Step
from sims.store import SimStore
from sims.texts import brief_event, brief_step
from sims.world import World


class Violation(Exception):  # noqa: N818 - it reads as what it is: not an error of the program
    """A promise was broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a client was told when its job was accepted."""

    job_id: JobId
    tenant: TenantId
    key: str
    payload_digest: str


class History:
    """Everything that was durable, shown or done, checked as it happens."""

    def __init__(self, world: World, store: SimStore, slot_depth: int) -> None:
        self.liars: set[SiteId] = set()
        self.promises: dict[JobId, Promise] = {}
        self.overcommits = 0
        self.terminal_shown: dict[JobId, Job] = {}
        self._world = world
        self._store = store
        self._slot_depth = slot_depth
        self._durable: dict[JobId, Job] = {}
        self._keys: dict[tuple[TenantId, str], JobId] = {}
        self._produced: dict[AttemptKey, ResultManifest] = {}
        self._cancelled: set[JobId] = set()
        self._shown_by: dict[tuple[str, JobId], Job] = {}
        # Attempts by slot as one term leased them, until the site ended them or is out of the fleet.
        self._held: dict[tuple[Term, SiteId, SlotRef], set[AttemptKey]] = {}
        self._ended_at_sites: set[AttemptKey] = set()
        self._ends_shown_by_term: dict[JobId, Term] = {}
        self._stops_seen: set[AttemptKey] = set()
        store.watcher = self

    # --- the store ----------------------------------------------------------------------------------------------------------

    def applied(self, term: Term, records: tuple[Record, ...]) -> None:
        """A transaction applied."""
        for record in records:
            if isinstance(record, PutJob):
                self._check_capacity(term, record.job)
                self._job_written(record.job)
            elif isinstance(record, DeleteSite) or (isinstance(record, PutSite) and record.site.admin is SiteAdmin.DRAINED):
                # Drained though work was there: the site was lost first, and what was given up there counts as ended.
                site_id = record.site_id if isinstance(record, DeleteSite) else record.site.spec.site_id
                self._held = {key: held for key, held in self._held.items() if key[1] != site_id}

    def _check_capacity(self, term: Term, job: Job) -> None:
        """A slot is leased again only when its site said that it is free."""
        before = self._durable.get(job.job_id)
        for attempt in job.attempts[len(before.attempts) if before is not None else 0 :]:
            for slot in block(attempt.slot, job.spec.gang_size):
                held = self._held.setdefault((term, attempt.site_id, slot), set())
                held -= self._ended_at_sites
                if len(held) >= self._slot_depth:
                    names = sorted(str(key) for key in held)
                    raise Violation(f"{attempt.key} is leased {slot} of {attempt.site_id}, which still holds {names}")
                held.add(attempt.key)

    def _job_written(self, job: Job) -> None:
        before = self._durable.get(job.job_id)
        self._durable[job.job_id] = job
        self._check_attempts(job)
        if before is None:
            key = (job.spec.tenant, job.idempotency_key)
            if job.idempotency_key and self._keys.setdefault(key, job.job_id) != job.job_id:
                raise Violation(f"two jobs of one idempotency key: {self._keys[key]} and {job.job_id} of {key}")
            return
        if before.spec != job.spec or before.idempotency_key != job.idempotency_key:
            raise Violation(f"the payload of job {job.job_id} changed")
        if before.state in TERMINAL and (before.state is not job.state or before.result != job.result or before.failure != job.failure):
            raise Violation(f"terminal is final: job {job.job_id} was {before.state}, became {job.state}")
        known = {attempt.key: attempt for attempt in job.attempts}
        for old in before.attempts:
            new = known.get(old.key)
            if new is None:
                raise Violation(f"attempt {old.key} is gone")
            if new.site_id != old.site_id or new.slot != old.slot or new.leased_us != old.leased_us:
                raise Violation(f"ordinal {old.key} was given twice: {old.site_id} {old.slot}, then {new.site_id} {new.slot}")
            if old.state in ENDED and new.state is not old.state:
                raise Violation(f"attempt {old.key} was {old.state}, became {new.state}")

    def _check_attempts(self, job: Job) -> None:
        ordinals = [attempt.key.ordinal for attempt in job.attempts]
        if ordinals != list(range(1, len(ordinals) + 1)):
            raise Violation(f"ordinals of job {job.job_id} are {ordinals}")
        won = [attempt for attempt in job.attempts if attempt.state is AttemptState.SUCCEEDED]
        if job.state is JobState.SUCCEEDED:
            if len(won) != 1 or job.result is None or job.result.key != won[0].key:
                raise Violation(f"job {job.job_id} succeeded without exactly one attempt of its result: {job.result}")
            if self._produced.get(job.result.key) != job.result:
                raise Violation(f"the result of job {job.job_id} was never produced: {job.result}")
        elif won or job.result is not None:
            raise Violation(f"job {job.job_id} is {job.state} and has a result of {[str(item.key) for item in won]}")

    # --- what is shown ------------------------------------------------------------------------------------------------------

    def event(self, actor: str, event: Event, step: Step) -> None:
        """The orchestrator's machine handled an event."""
        self._world.note(actor, f"{brief_event(event)} => {brief_step(step)}")

    def published(self, actor: str, term: Term, job: Job) -> None:
        """Readers of one incarnation see the job so."""
        durable = self._durable.get(job.job_id)
        if durable is None:
            raise Violation(f"{actor} shows job {job.job_id}, which is not durable")
        seen = self._shown_by.get((actor, job.job_id))
        if seen is not None and seen.state in TERMINAL and seen.state is not job.state:
            raise Violation(f"{actor} showed job {job.job_id} as {seen.state}, now as {job.state}")
        self._shown_by[actor, job.job_id] = job
        if job.state in TERMINAL:
            if durable.state is not job.state or durable.result != job.result:
                raise Violation(f"{actor} shows job {job.job_id} as {job.state}; durable is {durable.state}")
            self.terminal_shown[job.job_id] = job
            self._ends_shown_by_term.setdefault(job.job_id, term)
        elif self._ends_shown_by_term.get(job.job_id, term) < term:
            raise Violation(f"{actor} shows job {job.job_id} as {job.state} after an earlier term showed its end")

    def assigned(self, actor: str, now_us: int, command: SendAssignment) -> None:
        """An assignment leaves an orchestrator: it may name only what is durable."""
        for item in command.assignment.attempts:
            job = self._durable.get(item.key.job_id)
            attempt = None if job is None else _attempt(job, item.key)
            if attempt is None:
                raise Violation(f"{actor} sends attempt {item.key} to {command.site_id} before its lease is durable")
            if attempt.site_id != command.site_id:
                raise Violation(f"{actor} sends attempt {item.key} of {attempt.site_id} to {command.site_id}")
            if item.stop and item.key not in self._stops_seen:
                self._stops_seen.add(item.key)
                self._check_stop(actor, now_us, command.site_id, item.key)

    def _check_stop(self, actor: str, now_us: int, site_id: SiteId, key: AttemptKey) -> None:
        """A drain stops nothing that runs before its deadline."""
        site = self._store.sites.get(site_id)
        shown = self._shown_by.get((actor, key.job_id))
        if site is None or site.admin is not SiteAdmin.DRAINING or site.drain is None or shown is None:
            return
        attempt = _attempt(shown, key)
        if shown.state in TERMINAL or attempt is None or attempt.state in ENDED or attempt.running_us == 0:
            return
        if now_us < site.drain.deadline_us:
            raise Violation(f"{actor} stops {key}, which runs at {site_id}, before the deadline of its drain")

    # --- clients ------------------------------------------------------------------------------------------------------------

    def told_accepted(self, promise: Promise) -> None:
        """A client heard that its job is accepted."""
        self._world.note("client", f"told: {promise.job_id} accepted for {promise.key}")
        job = self._durable.get(promise.job_id)
        if job is None:
            raise Violation(f"job {promise.job_id} was accepted before it was durable")
        if (job.spec.tenant, job.idempotency_key) != (promise.tenant, promise.key):
            raise Violation(f"job {promise.job_id} was accepted for key {promise.key}, it has {job.idempotency_key}")
        if job.payload_digest != promise.payload_digest:
            raise Violation(f"another payload was accepted under key {promise.key}")
        for other in self.promises.values():
            if (other.tenant, other.key) == (promise.tenant, promise.key) and other.job_id != promise.job_id:
                raise Violation(f"two jobs for key {promise.key}: {other.job_id} and {promise.job_id}")
        self.promises[promise.job_id] = promise

    def told_cancelled(self, job_id: JobId, reply: Reply) -> None:
        """A client heard the answer to its cancel."""
        self._world.note("client", f"told: cancel of {job_id}: {reply}")
        job = self._durable[job_id]
        match reply:
            case Done(changed=changed) if changed:
                self._cancelled.add(job_id)
                if job.state is not JobState.CANCELLED:
                    raise Violation(f"the cancel of job {job_id} was confirmed, durable is {job.state}")
            case Refusal():
                if job.state not in TERMINAL:
                    raise Violation(f"the cancel of live job {job_id} was refused: {reply.message}")
            case _:
                pass

    # --- sites --------------------------------------------------------------------------------------------------------------

    def agent_step(self, site_id: SiteId, what: str, step: AgentStep) -> None:
        """An agent's machine handled an event."""
        self._world.note(site_id, f"{what} => {brief_step(step)}")

    def produced(self, manifest: ResultManifest) -> None:
        """A site committed a manifest to the artifact store."""
        before = self._produced.setdefault(manifest.key, manifest)
        if before != manifest:
            raise Violation(f"attempt {manifest.key} produced two manifests")

    def forgotten(self, site_id: SiteId, event: AttemptEvent) -> None:
        """An agent forgot an event because it was acknowledged: then its consequence must be durable."""
        job = self._durable.get(event.key.job_id)
        if job is None:
            raise Violation(f"{site_id} forgot the end of {event.key}, whose job is not durable")
        attempt = _attempt(job, event.key)
        if job.state not in TERMINAL and (attempt is None or attempt.state not in ENDED):
            raise Violation(f"{site_id} forgot the end of {event.key}, which is not durable: {attempt}")

    def executes(self, site_id: SiteId, slot: SlotRef, key: AttemptKey, running: AttemptKey | None) -> None:
        """A runtime was told to execute an attempt."""
        if running is not None:
            raise Violation(f"{site_id} was told to run {key} in {slot}, where {running} runs")
        job = self._durable.get(key.job_id)
        attempt = None if job is None else _attempt(job, key)
        if attempt is None or attempt.site_id != site_id or attempt.slot != slot:
            raise Violation(f"{site_id} runs {key} in {slot}; durable is {attempt}")

    def ended_at_site(self, key: AttemptKey) -> None:
        """An agent has the end of an attempt on its disk."""
        self._ended_at_sites.add(key)

    def overcommitted(self, site_id: SiteId, slot: SlotRef, model_id: ModelId) -> None:
        """A load did not fit beside what a slot held."""
        if site_id not in self.liars:
            raise Violation(f"{model_id} does not fit into {slot} of {site_id}, which told the truth")
        self.overcommits += 1
        self._world.note(site_id, f"{model_id} does not fit into {slot}")

    def fail(self, text: str) -> NoReturn:
        """Something happened that must never happen."""
        raise Violation(text)

    # --- the end ------------------------------------------------------------------------------------------------------------

    def unfinished(self) -> list[JobId]:
        """Accepted jobs that have not ended."""
        return [job_id for job_id in self.promises if self._durable[job_id].state not in TERMINAL]

    def check_end(self) -> None:
        """After healing: every promise was kept."""
        for job_id in self.promises:
            job = self._durable[job_id]
            if job.state not in TERMINAL:
                attempts = [f"{item.key.ordinal}:{item.site_id}:{item.state}" for item in job.attempts]
                raise Violation(f"accepted job {job_id} of {job.spec.model_id} never ended: {job.state} {attempts}")
            if job_id in self._cancelled and job.state is not JobState.CANCELLED:
                raise Violation(f"the cancel of job {job_id} was confirmed, it ended as {job.state}")
            shown = self.terminal_shown.get(job_id)
            if shown is not None and (shown.state, shown.result) != (job.state, job.result):
                raise Violation(f"job {job_id} was shown as {shown.state}, it ended as {job.state}")

    def states(self) -> dict[JobState, int]:
        """How many durable jobs are in each state."""
        counts: dict[JobState, int] = {}
        for job in self._durable.values():
            counts[job.state] = counts.get(job.state, 0) + 1
        return counts


def _attempt(job: Job, key: AttemptKey) -> Attempt | None:
    for attempt in job.attempts:
        if attempt.key == key:
            return attempt
    return None
