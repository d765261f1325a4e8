"""What the agent's core answers to an event: one AgentStep of records and commands.

Records (the outbox, the identity) must be on the agent's disk before the commands of the step are performed. Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import Peer, Sources
from atoll.model.ids import AdapterId, AttemptKey, EventSeq, FleetId, FormId, Generation, ModelId, NodeId, SlotRef, Term
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.report import AttemptEvent, SiteReport


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxAppended:
    """An event that the orchestrator must hear of, whatever happens to this process."""

    event: AttemptEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTrimmed:
    """Events up to this one were acknowledged and may be forgotten."""

    acked_event_seq: EventSeq


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityChanged:
    """The fleet this site belongs to, and the highest term it has seen."""

    fleet_id: FleetId
    term: Term


AgentRecord = OutboxAppended | OutboxTrimmed | IdentityChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchWeights:
    """Bring a model to a node's disk, verified by digest. Answered by WeightsFetched or FetchFailed. At most one per node and model.

    `ahead`: no attempt waits for it, so nothing on the disk gives way for it. `fetch_from`: the peer sites to read; the origin store has
    them too.
    """

    node_id: NodeId
    model: ModelSpec
    ahead: bool = False
    fetch_from: Sources | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldFetch:
    """Stop a fetch that nobody waits for. Answered by FetchYielded, or by its end if that comes first."""

    node_id: NodeId
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class PinWeights:
    """What the node's caches must not drop by themselves: exactly these, by digest on disk, and in host memory.

    `host` is all that is wanted there, pinned or not. Replaces what was told before.
    """

    node_id: NodeId
    disk: tuple[tuple[ModelId, str], ...] = ()
    host: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWeights:
    """Bring a model from the node's disk into its host memory. Answered by HostMemoryChanged that names it among `ended`."""

    node_id: NodeId
    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteWeights:
    """Remove a model from a node's disk and host memory. Answered by WeightsDeleted."""

    node_id: NodeId
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAdapter:
    """Bring an adapter to a node's disk, verified by digest. Answered by AdapterFetched or AdapterFetchFailed. At most one per node
    and adapter. `fetch_from`: the peer site to try first; the origin store has it too."""

    node_id: NodeId
    adapter: AdapterSpec
    fetch_from: Peer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReplica:
    """Load a model from the node's disk into a slot. Answered by ReplicaLoaded or ReplicaLoadFailed.

    `gang_size` above 1: as a member of gangs of that size, beside a replica of the same model that works alone, if there is one.
    """

    slot: SlotRef
    model: ModelSpec
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptReplica:
    """Unload these adapters from an idle replica, then load others from the node's disk; what else is loaded stays, inactive.
    Answered by ReplicaAdapted or ReplicaAdaptFailed."""

    slot: SlotRef
    model_id: ModelId
    adapters: tuple[AdapterSpec, ...]
    unload: tuple[AdapterId, ...] = ()
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictReplica:
    """Unload an idle replica. Answered by ReplicaEvicted."""

    slot: SlotRef
    model_id: ModelId
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAttempt:
    """Execute on the resident replica with the adapters of `spec` active and no others, store outputs, commit the manifest. Answered
    by AttemptAdvanced and one of AttemptFinished, AttemptErrored, AttemptHalted. `stop_after_ms` is enforced where it executes, even
    if this agent dies.

    With a `form` by code that is compiled for it, by whatever the replica is otherwise.
    With `spec.gang_size` above 1 on that many slots from `slot` on, the lead. It is over when no member works on it any more.
    """

    slot: SlotRef
    key: AttemptKey
    spec: JobSpec
    model: ModelSpec
    stop_after_ms: int
    request_id: str
    form: FormId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAttempt:
    """Stop an executing attempt at the next step boundary."""

    slot: SlotRef
    key: AttemptKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewAttempts:
    """The orchestrator was heard: these executing attempts may go on for another stop_after."""

    keys: tuple[AttemptKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """Report facts, if connected."""

    report: SiteReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEvents:
    """Deliver outbox events, if connected."""

    events: tuple[AttemptEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestResync:
    """Ask for a snapshot: the delta at hand does not fit what is held."""

    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseOrchestrator:
    """Close the stream and say why: another fleet, or a term that was deposed. `final`: dialling again cannot help."""

    message: str
    final: bool = False


AgentCommand = (
    FetchWeights
    | YieldFetch
    | PinWeights
    | StageWeights
    | DeleteWeights
    | FetchAdapter
    | LoadReplica
    | AdaptReplica
    | EvictReplica
    | RunAttempt
    | StopAttempt
    | RenewAttempts
    | SendReport
    | SendEvents
    | RequestResync
    | RefuseOrchestrator
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStep:
    """Records, then commands: in this order they take effect. `notices` are lines for the log, without effect."""

    records: tuple[AgentRecord, ...] = ()
    commands: tuple[AgentCommand, ...] = ()
    notices: tuple[str, ...] = ()
