"""What the orchestrator's core answers to an event: one Step of records, commands and decisions.

The order of effects is in the type: records must be durable before any command of this Step is performed or shown.
Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import Assignment
from atoll.model.attempt import Attempt, FailureKind
from atoll.model.audit import AuditEvent
from atoll.model.ids import AdapterId, AttemptKey, JobId, ModelId, SiteId
from atoll.model.job import Job, JobState
from atoll.model.learned import Estimates, Shift
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Deferral, Explanation
from atoll.model.replica import Tier
from atoll.model.residency import Cause, Pin, Push, ResidencyEvent
from atoll.model.site import LinkSpec, SiteRecord
from orchestrator.core.claimed import ClaimDropped
from orchestrator.core.demand import PutDemand
from orchestrator.core.ends import EndAttempt
from orchestrator.core.events import RequestRef, SessionRef
from orchestrator.core.health import BreakerTurned
from orchestrator.core.placement.policy import Identity

# --- records: must be durable first -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PutJob:
    """The job as it is now replaces what the store has (spec and idempotency key never change)."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class PutSite:
    """The site's durable part."""

    site: SiteRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSite:
    """The site is forgotten, its credential with it."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class PutLinks:
    """All links of the fleet, replacing those before."""

    links: tuple[LinkSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutModel:
    """A model of the catalogue."""

    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteModel:
    """The model is forgotten."""

    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAdapter:
    """An adapter that jobs may name."""

    adapter: AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAdapter:
    """The adapter is forgotten."""

    adapter_id: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEstimates:
    """What was learned, replacing what was before. Nothing rests on it: a restart without it learns again."""

    estimates: Estimates


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPin:
    """A model is pinned at a site."""

    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePin:
    """A model is not pinned at a site any more."""

    model_id: ModelId
    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPush:
    """A model is being pushed."""

    push: Push


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePush:
    """A push is over."""

    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPolicy:
    """By which policy the fleet is run from here on."""

    policy: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendAudit:
    """One line of the audit."""

    event: AuditEvent


Record = (
    PutJob | PutSite | DeleteSite | PutLinks | PutModel | DeleteModel | PutAdapter | DeleteAdapter | PutPin | DeletePin | PutPush
    | DeletePush | PutEstimates | PutDemand | PutPolicy | AppendAudit | EndAttempt
)  # fmt: skip

# --- answers ------------------------------------------------------------------------------------------------------------------


class RefusalCode(StrEnum):
    """Which row of the status contract a refusal belongs to."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    QUOTA = "quota"
    UNAVAILABLE = "unavailable"
    WRONG_STATE = "wrong_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request changed nothing. `field` is "" where no single field is to blame; `retry_after_ms` 0: waiting does not help."""

    code: RefusalCode
    message: str
    field: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A submitted job is now promised. `existing`: the same key and payload had been accepted before."""

    job_id: JobId
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitReply:
    """One outcome per submission, in order."""

    outcomes: tuple[Accepted | Refusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The request took effect. `changed` lists what it touched; empty when all was so already."""

    changed: tuple[str, ...] = ()


Reply = SubmitReply | Done | Refusal

# --- commands: performed only once the Step's records are durable -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer the caller of a request."""

    request: RequestRef
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAssignment:
    """Send down this session of the site, if it is still the current one."""

    site_id: SiteId
    session: SessionRef
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """End a stream: it is of another fleet, protocol or a second agent of the same name, or its site is gone."""

    site_id: SiteId
    session: SessionRef
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """Readers and watchers see the job so from now on."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSite:
    """Readers see the durable part of the site so from now on."""

    site: SiteRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSiteRemoved:
    """Readers see the site no more."""

    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishModel:
    """Readers see the model so from now on."""

    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishModelRemoved:
    """Readers see the model no more."""

    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAdapter:
    """Readers see the adapter so from now on."""

    adapter: AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAdapterRemoved:
    """Readers see the adapter no more."""

    adapter_id: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAudit:
    """Watchers of events see this line."""

    event: AuditEvent


Command = (
    Answer | SendAssignment | CloseSession | PublishJob | PublishSite | PublishSiteRemoved | PublishModel | PublishModelRemoved
    | PublishAdapter | PublishAdapterRemoved | PublishAudit | EndAttempt
)  # fmt: skip

# --- decisions: for metrics, logs and learning; no effect ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlaced:
    """A job was placed, for these reasons."""

    key: AttemptKey
    explanation: Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsDeferred:
    """The jobs of one class wait."""

    model_id: ModelId
    jobs: int
    deferral: Deferral


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSettled:
    """An attempt ended; `attempt` has predicted and actual times."""

    attempt: Attempt
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettled:
    """A job became terminal."""

    job_id: JobId
    state: JobState
    queued_to_end_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LateResultRefused:
    """An attempt that may no longer speak brought a result: refused, and said so."""

    key: AttemptKey
    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateShifted:
    """A site became lastingly slower or faster in a component."""

    shift: Shift


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled:
    """A job goes back to the queue for this cause."""

    key: AttemptKey
    kind: FailureKind
    not_before_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPreempted:
    """An attempt is stopped so that a job of a higher priority gets its slot. As it was weighed, `lost_us` of its work must be done again,
    and loading its model again takes `reload_us`."""

    key: AttemptKey
    for_job: JobId
    lost_us: int
    reload_us: int


class Bound(StrEnum):
    """Which bound a submission met."""

    QUEUE = "queue"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRefused:
    """A job was not accepted because so many wait already."""

    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWanted:
    """A copy is wanted ahead of demand; `fetch_bytes` have to come for it."""

    site_id: SiteId
    model_id: ModelId
    tier: Tier
    cause: Cause
    fetch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyMoved:
    """A copy came or left."""

    event: ResidencyEvent


Decision = (
    JobPlaced | JobsDeferred | AttemptSettled | AttemptPreempted | JobSettled | LateResultRefused | EstimateShifted | CopyWanted
    | CopyMoved | BreakerTurned | ClaimDropped | RetryScheduled | SubmissionRefused
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Records, then commands, then decisions: in this order they take effect."""

    records: tuple[Record, ...] = ()
    commands: tuple[Command, ...] = ()
    decisions: tuple[Decision, ...] = ()
