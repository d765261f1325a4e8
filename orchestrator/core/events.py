"""Everything that can happen to the orchestrator, in the past tense.

Decides the form of the core's input. A list of `(now_us, event)` is a complete recording. Must not know who observed the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, FleetId, JobId, ModelId, SiteId, TenantId, Term
from atoll.model.job import JobSpec
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import Tier
from atoll.model.report import AttemptEvent, SiteHello, SiteReport
from atoll.model.site import LinkSpec, SiteSpec

# A caller waiting for an answer, numbered by the driver.
RequestRef = NewType("RequestRef", int)
# One stream of one agent, numbered by the driver; a newer number of the same site replaces an older one.
SessionRef = NewType("SessionRef", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One job to accept. `payload_digest` is over the client's payload: an equal key with another digest is refused."""

    job_id: JobId
    spec: JobSpec
    idempotency_key: str
    payload_digest: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSubmitted:
    """A client submitted jobs: each is accepted or refused on its own."""

    request: RequestRef
    submissions: tuple[Submission, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelRequested:
    """A client wants no result any more. `tenant` is whose job it must be."""

    request: RequestRef
    tenant: TenantId
    job_id: JobId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConnected:
    """An agent's hello was authenticated. Non-empty sha256 of a credential: a join token was just used up for it."""

    site_id: SiteId
    session: SessionRef
    hello: SiteHello
    credential_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDisconnected:
    """An agent's stream ended. The site is not silent yet; silence is measured by time."""

    site_id: SiteId
    session: SessionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReported:
    """An agent reported facts."""

    site_id: SiteId
    session: SessionRef
    report: SiteReport


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptsEnded:
    """An agent delivered numbered events, in order, perhaps again."""

    site_id: SiteId
    session: SessionRef
    events: tuple[AttemptEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncRequested:
    """An agent met a gap in its assignment's generations and wants a snapshot."""

    site_id: SiteId
    session: SessionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesApplied:
    """An operator declared sites and links (`clusters.yaml`): new ones are added, known ones updated, none removed."""

    request: RequestRef
    actor: str
    reason: str
    sites: tuple[SiteSpec, ...]
    links: tuple[LinkSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAdded:
    """An operator added one site; its agent may join once with the token of this digest ("" where no credential is configured)."""

    request: RequestRef
    actor: str
    reason: str
    spec: SiteSpec
    join_token_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCordoned:
    """An operator wants no new placements at a site."""

    request: RequestRef
    actor: str
    reason: str
    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUncordoned:
    """An operator takes back a cordon or a drain."""

    request: RequestRef
    actor: str
    reason: str
    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDrainRequested:
    """An operator wants a site empty `deadline_ms` of fleet time from now at the latest."""

    request: RequestRef
    actor: str
    reason: str
    site_id: SiteId
    deadline_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRemoveRequested:
    """An operator wants a site forgotten. `force` settles every attempt there as lost first."""

    request: RequestRef
    actor: str
    reason: str
    site_id: SiteId
    force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsAdded:
    """An operator added or replaced models."""

    request: RequestRef
    actor: str
    models: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRemoved:
    """An operator removed a model. Jobs waiting for it fail; running ones end."""

    request: RequestRef
    actor: str
    reason: str
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersAdded:
    """An operator added or replaced adapters."""

    request: RequestRef
    actor: str
    adapters: tuple[AdapterSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRemoved:
    """An operator removed an adapter. Jobs waiting for it fail; running ones end."""

    request: RequestRef
    actor: str
    reason: str
    adapter_id: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatesResetRequested:
    """An operator wants what was learned forgotten: of one component or all, at one site or everywhere."""

    request: RequestRef
    actor: str
    reason: str
    component: Component | None
    site_id: SiteId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPinned:
    """An operator wants a model kept on a tier of a site, whatever is asked for."""

    request: RequestRef
    actor: str
    reason: str
    model_id: ModelId
    site_id: SiteId
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnpinned:
    """An operator takes back a pin."""

    request: RequestRef
    actor: str
    reason: str
    model_id: ModelId
    site_id: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPushed:
    """An operator wants a model's weights on `sites` sites, warm on `warm` of them, before it is asked for."""

    request: RequestRef
    actor: str
    reason: str
    model_id: ModelId
    sites: int
    warm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TookOver:
    """This process became the one that may write: first event after a restore. All lease and silence timers start anew.

    `set_aside`: jobs over which the core failed before, and the `reference` of that in the log.
    """

    fleet_id: FleetId
    term: Term
    set_aside: tuple[JobId, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The process is about to end in good order: the last event of this incarnation. What is only kept now and then is kept now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """`next_deadline()` was reached."""


Event = (
    JobsSubmitted
    | JobCancelRequested
    | SiteConnected
    | SiteDisconnected
    | SiteReported
    | AttemptsEnded
    | ResyncRequested
    | SitesApplied
    | SiteAdded
    | SiteCordoned
    | SiteUncordoned
    | SiteDrainRequested
    | SiteRemoveRequested
    | ModelsAdded
    | ModelRemoved
    | AdaptersAdded
    | AdapterRemoved
    | EstimatesResetRequested
    | ModelPinned
    | ModelUnpinned
    | ModelPushed
    | TookOver
    | Stopping
    | TimerFired
)
