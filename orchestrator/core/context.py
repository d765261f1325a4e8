"""What every handler works with: the state, its indexes, the timers, and the Step being built.

Decides nothing about the fleet; collects effects in order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from atoll.model.attempt import Attempt
from atoll.model.audit import AuditEvent, Severity
from atoll.model.ids import ChangeSeq, JobId, ModelId, SiteId
from atoll.model.job import Job, JobSpec
from orchestrator.core.arrivals import Arrivals
from orchestrator.core.bound import Bound
from orchestrator.core.demand import Demand
from orchestrator.core.ends import EndAttempt
from orchestrator.core.events import RequestRef
from orchestrator.core.learning.book import Book
from orchestrator.core.outflow import Outflow
from orchestrator.core.outputs import (
    Answer,
    AppendAudit,
    Command,
    Decision,
    PublishAudit,
    PublishJob,
    PublishSite,
    PutJob,
    PutSite,
    Record,
    Refusal,
    RefusalCode,
    Reply,
    Step,
)
from orchestrator.core.placement.choose import Scorer
from orchestrator.core.placement.classes import NO_AVOIDANCE, Avoidance, ClassKey, class_of
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.estimate import Estimator
from orchestrator.core.placement.policy import Policy
from orchestrator.core.promised import Promises, no_promises
from orchestrator.core.queue import JobClass, Queue
from orchestrator.core.state import JobEntry, Site, State

if TYPE_CHECKING:
    from orchestrator.core.residency import Residency  # whose handlers work with this very context

# A live job has at most a deadline, a start timeout and a back-off, a site silence, losses and a drain. More than this are of ended jobs.
_TIMERS_EACH: Final = 6
_TIMERS_SPARE: Final = 4_096


class TimerKind(IntEnum):
    """What a timer is for. The subject is a site, a job or nothing; a timer whose reason is gone does nothing when it fires."""

    SITE_SILENCE = 0
    SITE_LOSSES = 1
    DRAIN_DEADLINE = 2
    JOB_EXPIRY = 3
    RETRY = 4
    PLACING = 5
    RESIDENCY = 6
    PUSH_OVER = 7
    BREAKER = 8


@dataclass(slots=True, kw_only=True)
class Context:
    """The core's working set. `now_us` is the time of the event at hand; the lists are the Step so far."""

    state: State
    policy: Policy
    columns: Columns
    estimator: Estimator
    scorer: Scorer
    queue: Queue
    book: Book
    promises: Promises = field(default_factory=no_promises)
    bound: Bound = field(default_factory=Bound)
    demand: Demand
    residency: Residency
    # Indexes of wishes: sites with any for a model; how many copies of a model on GPUs they name to make room.
    wishes: dict[ModelId, dict[SiteId, None]] = field(default_factory=dict)
    making_room: Counter[ModelId] = field(default_factory=Counter)
    outflow: Outflow = field(default_factory=Outflow)
    arrivals: Arrivals = field(default_factory=Arrivals)
    now_us: int = 0
    timers: list[tuple[int, TimerKind, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    looked_at: JobClass | None = None  # the class that is being placed just now, and the job of it that is being bound
    binding: JobId | None = None
    touched_jobs: dict[str, Job] = field(default_factory=dict)
    touched_sites: dict[SiteId, None] = field(default_factory=dict)

    def class_of(self, spec: JobSpec, avoidance: Avoidance = NO_AVOIDANCE) -> ClassKey:
        """The class of a job, by what the policy allows its tenant."""
        return class_of(spec, avoidance, self.policy.tenant_rules.get(spec.tenant))

    def arm(self, at_us: int, kind: TimerKind, subject: str = "") -> None:
        """Have a handler called at this fleet time, or as soon after as time is told."""
        heappush(self.timers, (at_us, kind, subject))
        if len(self.timers) > _TIMERS_EACH * (len(self.state.jobs) + len(self.state.sites)) + _TIMERS_SPARE:
            self._forget_ended()

    def _forget_ended(self) -> None:
        """Drop the timers of jobs that have ended: a deadline of a week would be kept for a week after a job of a second."""
        of_jobs = (TimerKind.JOB_EXPIRY, TimerKind.RETRY)
        self.timers = [timer for timer in self.timers if timer[1] not in of_jobs or timer[2] in self.state.jobs]
        heapify(self.timers)

    def due(self) -> list[tuple[TimerKind, str]]:
        """Timers whose time has come, in order, each once."""
        fired: dict[tuple[TimerKind, str], None] = {}
        while self.timers and self.timers[0][0] <= self.now_us:
            _, kind, subject = heappop(self.timers)
            fired[(kind, subject)] = None
        return list(fired)

    def save_job(self, entry: JobEntry) -> None:
        """The job as it is at the end of this step becomes durable, then visible."""
        self.touched_jobs[entry.job.job_id] = entry.job

    def save_ended(self, job: Job) -> None:
        """A job that has just left memory becomes durable, then visible."""
        self.touched_jobs[job.job_id] = job

    def end_attempt(self, end: EndAttempt) -> None:
        """An attempt of a job that has left memory is over: durable, then visible."""
        self.records.append(end)
        self.commands.append(end)

    def show_job(self, job: Job) -> None:
        """A soft change: visible, and durable only if this step writes the job anyway."""
        if job.job_id in self.touched_jobs:
            self.touched_jobs[job.job_id] = job
        else:
            self.commands.append(PublishJob(job=job))

    def save_site(self, site: Site) -> None:
        """The site's record becomes durable, then visible."""
        self.records.append(PutSite(site=site.record))
        self.commands.append(PublishSite(site=site.record))

    def touch_assignment(self, site: Site) -> None:
        """Something of this site's assignment changed: it is sent at the end of the step."""
        self.touched_sites[site.site_id] = None

    def answer(self, request: RequestRef, reply: Reply) -> None:
        """Answer a caller once this step is durable."""
        self.commands.append(Answer(request=request, reply=reply))

    def refuse(self, request: RequestRef, code: RefusalCode, message: str, field_name: str = "") -> None:
        """Answer a caller that nothing changed, and why."""
        self.answer(request, Refusal(code=code, message=message, field=field_name))

    def audit(
        self, verb: str, subject: str, *, actor: str = "atoll", reason: str = "", detail: str = "", severity: Severity = Severity.INFO
    ) -> None:
        """Add a line to the fleet's history."""
        self.state.audit_seq = ChangeSeq(self.state.audit_seq + 1)
        event = AuditEvent(
            seq=self.state.audit_seq,
            at_us=self.now_us,
            severity=severity,
            actor=actor,
            verb=verb,
            subject=subject,
            reason=reason,
            detail=detail,
        )
        self.records.append(AppendAudit(event=event))
        self.commands.append(PublishAudit(event=event))

    def take_step(self) -> Step:
        """The Step built so far; the next begins empty. One record and one publication per job, with its last state."""
        jobs = tuple(self.touched_jobs.values())
        step = Step(
            records=(*(PutJob(job=job) for job in jobs), *self.records),
            commands=(*(PublishJob(job=job) for job in jobs), *self.commands),
            decisions=tuple(self.decisions),
        )
        self.records, self.commands, self.decisions, self.touched_jobs = [], [], [], {}
        return step


def with_attempt(job: Job, attempt: Attempt) -> tuple[Attempt, ...]:
    """The job's attempts with this one in the place of its ordinal."""
    index = attempt.key.ordinal - 1
    return (*job.attempts[:index], attempt, *job.attempts[index + 1 :])


def put_attempt(entry: JobEntry, attempt: Attempt) -> None:
    """Show an attempt's present state in its job."""
    job = entry.job
    entry.job = job.decided(job.state, with_attempt(job, attempt), job.deferral)
