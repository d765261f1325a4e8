"""The mutable state of the core, by noun. Everything here is primary: indexes that can be rebuilt live in `placement.columns` and `queue`.

Decides nothing; the handlers beside it do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import CopyKey, DesiredReplica
from atoll.model.attempt import Attempt, AttemptState, FailureKind
from atoll.model.gpu import GpuType
from atoll.model.ids import (
    AdapterId,
    AttemptKey,
    ChangeSeq,
    EventSeq,
    FleetId,
    FormId,
    Generation,
    GpuTypeId,
    JobId,
    ModelId,
    NodeId,
    PoolId,
    SiteId,
    SlotRef,
    TenantId,
    Term,
)
from atoll.model.job import Job, JobSpec
from atoll.model.learned import Start
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import FetchFrom, Stopped
from atoll.model.replica import ReplicaState
from atoll.model.report import AttemptProgress, NodeFacts, RateFacts, SiteHello, SlotFacts
from atoll.model.residency import Cause, Pin, Push
from atoll.model.site import LinkSpec, PoolSpec, SiteConnection, SiteRecord
from orchestrator.core.claimed import Claims
from orchestrator.core.events import SessionRef
from orchestrator.core.health import Breaker, Struck
from orchestrator.core.moves import Bettered, Move
from orchestrator.core.placement.policy import Identity


@dataclass(slots=True, kw_only=True)
class JobEntry:
    """A job that is not terminal. `accept_seq` orders equals; `not_before_us` holds a retry back."""

    job: Job
    accept_seq: int
    not_before_us: int = 0
    deferrals: int = 0
    stopped: tuple[Stopped, ...] = ()  # for it, since it was last bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A copy that a site is told to hold ahead of demand, why, and since when."""

    desired: DesiredReplica
    cause: Cause
    since_us: int
    fetch_from: FetchFrom | None = None  # the peer sites whose weights were nearest when it was wanted


class ReplicaKey(NamedTuple):
    """Which replica of a slot: one that a gang of slots shares is another than one of the slot's own."""

    model_id: ModelId
    gang_size: int = 1


@dataclass(slots=True, kw_only=True)
class Replica:
    """A model in a slot's memory, resident or about to be loaded by a bound attempt. `memory_bytes`: this slot's share of a gang's."""

    model_id: ModelId
    gang_size: int = 1
    memory_bytes: int
    state: ReplicaState
    last_used_us: int = 0
    adapters: tuple[AdapterId, ...] = ()  # loaded on it as last reported or about to be by bound attempts, active or not; sorted
    warm_us: int = 0  # since when it is resident; 0: not known

    @property
    def key(self) -> ReplicaKey:
        """Its key in its slot."""
        return ReplicaKey(self.model_id, self.gang_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A load in flight: what is loaded, since when, and until when as it is predicted now."""

    model_id: ModelId
    gang_size: int
    from_us: int
    until_us: int

    @property
    def key(self) -> ReplicaKey:
        """The key of the replica that it will be."""
        return ReplicaKey(self.model_id, self.gang_size)


@dataclass(slots=True, kw_only=True)
class Slot:
    """One GPU. All attempts bound to it at a time are of one model, the first executes. `version` grows at each change.

    `busy_until_us`: when what is bound to it, or what it loads, should be over.
    """

    ref: SlotRef
    node_index: int
    index: int
    memory_bytes: int
    ready: bool = False
    fresh: bool = False  # its process has generated nothing yet
    replicas: dict[ReplicaKey, Replica] = field(default_factory=dict)
    attempts: list[AttemptKey] = field(default_factory=list)
    busy_until_us: int = 0
    last_used_us: int = 0
    version: int = 0
    claimed_until_us: int = 0  # it is claimed for a gang that should be done by then (`State.claims` says which); 0: it is not
    kept_until_us: int = 0  # it is kept for a job that is moved here (`State.moves` says which), which should be done by then; 0: it is not
    loading: Loading | None = None  # as its site tells, for an attempt or ahead of demand
    told: tuple[SlotFacts, int] | None = None  # what a report said of it that was known already, and its version then

    @property
    def idle(self) -> bool:
        """Whether nothing is bound to it, and it loads nothing."""
        return not self.attempts and self.loading is None

    @property
    def awaits_first(self) -> bool:
        """Whether what is bound to it next would be the first generation of its process."""
        return self.fresh and not self.attempts

    @property
    def free_from_us(self) -> int:
        """When others should have it: after what is bound to it, and after the gang, or the job, that it is kept for."""
        return self.claimed_until_us or self.kept_until_us or self.busy_until_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A fetch under way: since when it is known, when something of it last came, what was left then, and the pace that is expected."""

    from_us: int
    told_us: int
    left_bytes: int
    us_per_gb: int


@dataclass(slots=True, kw_only=True)
class Node:
    """One host: what its disk and memory hold, what is being fetched to it and when that should be there."""

    node_id: NodeId
    slots: list[Slot]
    host_free_bytes: int = 0
    disk_free_bytes: int = 0
    host_models: set[ModelId] = field(default_factory=set)
    disk_models: set[ModelId] = field(default_factory=set)
    disk_adapters: set[AdapterId] = field(default_factory=set)
    fetching: dict[ModelId, int] = field(default_factory=dict)
    copying: set[ModelId] = field(default_factory=set)  # of them those that come from another node of the site
    sources: dict[ModelId, tuple[SiteId, ...]] = field(default_factory=dict)  # of the others the peer sites they read, if any
    flights: dict[ModelId, Flight] = field(default_factory=dict)  # of each fetch what its end is reckoned from
    pinned: tuple[ModelId, ...] = ()  # as the site understood it
    host_tier: bool = False
    compiled: set[FormId] = field(default_factory=set)  # forms for which its disk holds code
    shares_compiled: bool = False
    version: int = 0  # grows whenever that of one of its slots does
    told: tuple[NodeFacts, int] | None = None  # what a report said of it when all of its slots were known already, and its version then


@dataclass(slots=True, kw_only=True)
class Pool:
    """Identical GPUs within a site."""

    site_id: SiteId
    spec: PoolSpec
    gpu: GpuType
    nodes: list[Node]
    node_index: dict[NodeId, int] = field(default_factory=dict)
    stay_us: int = 0  # smoothed: how long replicas stayed until they made room; 0: none has
    residence_ms: int = 0  # as prices reckon with it, in steps; 0: as the policy says

    @property
    def pool_id(self) -> PoolId:
        """Its id within the site."""
        return self.spec.pool_id

    def members(self, lead: SlotRef, gang_size: int) -> list[Slot]:
        """The slots that an attempt led by this one holds; none if the pool does not (any longer) have them all."""
        node_index = self.node_index.get(lead.node_id)
        if node_index is None or not 0 <= lead.index <= self.spec.gpus_per_node - gang_size:
            return []
        return self.nodes[node_index].slots[lead.index : lead.index + gang_size]


@dataclass(slots=True, kw_only=True)
class LiveAttempt:
    """An attempt that holds a slot of a site. `given_up`: its job no longer waits for it, but the site has not said that it ended.

    `evict` are the victims in its slot; `on_stop` is why it is being stopped, None unless its state is `stopping`; stored with it.
    """

    attempt: Attempt
    spec: JobSpec
    request_id: str
    evict: tuple[ModelId, ...]
    exec_us: int
    lost_after_us: int
    charge_us: int = 0  # what its tenant's share was charged and has not been settled; 0 after a restart from the store
    given_up: bool = False
    advanced_us: int = 0  # when a report last showed a new phase or step
    adopted: bool = False  # from the store: how far it is only the site's first report can say
    gives_way_to: JobId | None = None  # its slot goes to this job next: nobody else is bound there until it is empty
    factors_milli: tuple[int, ...] = ()  # what the priors of its decision were multiplied by, by `learning.observation.COMPONENTS`
    ends_us: int = 0  # when its work should be done, or stopped, as of when that was decided; 0 after a restart from the store
    start: Start | None = None  # how it begins; None after a restart from the store
    phase: AttemptState | None = None  # the last that a report told of, and since when it has been in it
    phase_us: int = 0
    on_stop: FailureKind | None = None
    stop_reason: str = ""

    @property
    def key(self) -> AttemptKey:
        """Its fencing key."""
        return self.attempt.key

    @property
    def model_id(self) -> ModelId:
        """The model it runs."""
        return self.spec.model_id

    @property
    def replica(self) -> ReplicaKey:
        """The replica it runs on, in every slot that it holds."""
        return ReplicaKey(self.spec.model_id, self.spec.gang_size)

    @property
    def fetch_from(self) -> FetchFrom | None:
        """The peer sites whose weights were nearest when it was decided."""
        return self.attempt.explanation.chosen.fetch_from if self.attempt.explanation is not None else None

    @property
    def begun(self) -> bool:
        """Whether the site has spent anything on it, as far as is known: nobody stops what may be running."""
        return self.adopted or self.attempt.state is not AttemptState.LEASED


@dataclass(slots=True, kw_only=True)
class Site:
    """A site: the durable record, and what is observed and promised now."""

    record: SiteRecord
    connection: SiteConnection | None = None
    session: SessionRef | None = None
    hello: SiteHello | None = None
    reported: bool = False  # a full report came in this session
    told: tuple[AttemptProgress, ...] = ()  # what the last report said of its attempts
    hang_from_us: int = 0  # before, no attempt of its can have shown nothing new for too long
    last_heard_us: int = 0
    last_report_seq: int = 0
    rates: RateFacts = field(default_factory=RateFacts)
    pools: dict[PoolId, Pool] = field(default_factory=dict)
    attempts: dict[AttemptKey, LiveAttempt] = field(default_factory=dict)
    # The assignment as sent: its generation, when, and what changed since.
    generation: Generation = Generation(0)
    sent_us: int = 0
    acked_event_seq: EventSeq = EventSeq(0)
    acked_sent: EventSeq = EventSeq(0)
    needs_snapshot: bool = False
    dropped: bool = False  # this incarnation settled attempts of the site: a shrinking snapshot is meant
    changed: dict[AttemptKey, None] = field(default_factory=dict)
    removed: dict[AttemptKey, None] = field(default_factory=dict)
    evict: dict[ModelId, None] = field(default_factory=dict)
    fetches: int = 0  # flows from the origin: for placed attempts, and ahead of demand
    copies: int = 0  # flows between its nodes
    # Copies ahead of demand as told, what changed of them since, and from when on the next may be fetched within the link's share.
    wanted: dict[CopyKey, Wanted] = field(default_factory=dict)
    wanted_changed: dict[CopyKey, None] = field(default_factory=dict)
    unwanted: dict[CopyKey, DesiredReplica] = field(default_factory=dict)
    prefetch_from_us: int = 0
    breakers: dict[PoolId, Breaker] = field(default_factory=dict)
    struck: tuple[Struck, ...] = ()

    @property
    def site_id(self) -> SiteId:
        """Its name."""
        return self.record.spec.site_id


@dataclass(slots=True, kw_only=True)
class KeyEntry:
    """Which job an idempotency key belongs to, and the digest of its payload."""

    job_id: JobId
    payload_digest: str


@dataclass(slots=True, kw_only=True)
class State:
    """All of it. `gpus` is the catalogue."""

    fleet_id: FleetId
    term: Term
    gpus: dict[GpuTypeId, GpuType]
    jobs: dict[JobId, JobEntry] = field(default_factory=dict)
    sites: dict[SiteId, Site] = field(default_factory=dict)
    models: dict[ModelId, ModelSpec] = field(default_factory=dict)
    adapters: dict[AdapterId, AdapterSpec] = field(default_factory=dict)
    pins: dict[tuple[ModelId, SiteId], Pin] = field(default_factory=dict)
    pushes: dict[ModelId, Push] = field(default_factory=dict)
    links: dict[tuple[SiteId, SiteId], LinkSpec] = field(default_factory=dict)
    keys: dict[tuple[TenantId, str], KeyEntry] = field(default_factory=dict)
    ended_keys: dict[tuple[TenantId, str], KeyEntry] = field(default_factory=dict)
    tenant_jobs: dict[TenantId, int] = field(default_factory=dict)
    accept_seq: int = 0
    audit_seq: ChangeSeq = ChangeSeq(0)
    jobs_ended: int = 0
    policy: Identity | None = None  # by which the fleet was run last, as it is stored
    claims: Claims = field(default_factory=Claims)
    last_place: tuple[SiteId, PoolId] | None = None  # where the last attempt went: policies that take turns go on behind it
    braked: bool = False
    failing: dict[ModelId, tuple[tuple[SiteId, PoolId], ...]] = field(default_factory=dict)  # where a model failed since it last succeeded
    bettered: dict[tuple[SiteId, PoolId], Bettered] = field(default_factory=dict)  # pools to be looked at, in this order
    moves: dict[JobId, Move] = field(default_factory=dict)  # of jobs whose attempt is being stopped for it
