"""Everything that can happen to an agent, in the past tense.

Decides the form of the agent core's input. Must not know which runtime or network observed it.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.assignment import Assignment
from atoll.model.attempt import AttemptState, Failure, PhaseTimes, ResultManifest
from atoll.model.ids import AdapterId, AttemptKey, FormId, ModelId, NodeId, SlotRef
from atoll.model.replica import ReplicaFact
from atoll.model.report import RateFacts, Welcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The orchestrator answered the hello."""

    welcome: Welcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """The stream to the orchestrator ended; work goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentReceived:
    """A snapshot or delta of the desired state came down."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredSlot:
    """What a runtime found in one slot when it started: replicas in memory, and the attempt still executing there, if any. `fresh`: its
    process has generated nothing yet.

    `gang_size` is of that attempt. A gang that is not told of by each slot of its block is lost, and the runtime has stopped the others.
    """

    slot: SlotRef
    replicas: tuple[ReplicaFact, ...] = ()
    running: AttemptKey | None = None
    gang_size: int = 1
    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStarted:
    """The runtime is ready. Lists every slot with its memory, what survived the agent, which models and adapters the nodes' disks
    hold, and the manifests of attempts that finished while no agent watched."""

    slots: tuple[RecoveredSlot, ...]
    disk_models: tuple[tuple[NodeId, ModelId, str], ...] = ()  # node, model, weights_digest
    disk_adapters: tuple[tuple[NodeId, AdapterId, str], ...] = ()
    compiled: tuple[tuple[NodeId, FormId], ...] = ()  # forms for which there is code
    shares_compiled: bool = False  # whether code of other sites is executed, and theirs may execute this
    finished: tuple[ResultManifest, ...] = ()
    host_tier: bool = False  # whether the memory of its nodes can hold weights for GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFetched:
    """A node's disk now holds a model, verified."""

    node_id: NodeId
    model_id: ModelId
    weights_digest: str
    bytes: int
    elapsed_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAdvanced:
    """So many bytes of a fetch have come."""

    node_id: NodeId
    model_id: ModelId
    bytes_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchYielded:
    """A fetch stopped because it was told to yield; what has come stays, and a later fetch goes on from there."""

    node_id: NodeId
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """A fetch ended without the weights; nothing of it is left on disk."""

    node_id: NodeId
    model_id: ModelId
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsDeleted:
    """A node's disk no longer holds a model."""

    node_id: NodeId
    model_id: ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemoryChanged:
    """All that a node's host memory holds now, by digest. `ended`: stagings that are over, well or not."""

    node_id: NodeId
    models: tuple[tuple[ModelId, str], ...]
    ended: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeChanged:
    """All forms for which a node holds compiled code now, the ones used last first."""

    node_id: NodeId
    forms: tuple[FormId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFetched:
    """A node's disk now holds an adapter, verified."""

    node_id: NodeId
    adapter_id: AdapterId
    weights_digest: str
    bytes: int
    elapsed_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFetchFailed:
    """A fetch ended without the adapter; nothing of it is left on disk."""

    node_id: NodeId
    adapter_id: AdapterId
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDeleted:
    """A node's disk no longer holds an adapter."""

    node_id: NodeId
    adapter_id: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoaded:
    """A model is resident in a slot. `memory_bytes` as measured; of a gang's replica, the share that this slot holds."""

    slot: SlotRef
    model_id: ModelId
    memory_bytes: int
    elapsed_us: int
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoadFailed:
    """A load ended without a replica; its memory is free again."""

    slot: SlotRef
    model_id: ModelId
    failure: Failure
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAdapted:
    """An order to adapt a replica was carried out. `adapters` are all that are loaded on it now; `memory_bytes` with them, as measured."""

    slot: SlotRef
    model_id: ModelId
    adapters: tuple[AdapterId, ...]
    memory_bytes: int
    elapsed_us: int
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAdaptFailed:
    """An order to adapt a replica failed; the replica is usable, and holds `adapters`."""

    slot: SlotRef
    model_id: ModelId
    adapters: tuple[AdapterId, ...]
    memory_bytes: int
    failure: Failure
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaEvicted:
    """A model left the memory of a slot."""

    slot: SlotRef
    model_id: ModelId
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptAdvanced:
    """An executing attempt reached a phase (running or uploading) or a further step."""

    key: AttemptKey
    state: AttemptState
    steps_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """An attempt's outputs are stored and its manifest is committed. `times` holds run and upload."""

    key: AttemptKey
    manifest: ResultManifest
    times: PhaseTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptErrored:
    """An executing attempt ended without a result."""

    key: AttemptKey
    failure: Failure
    times: PhaseTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptHalted:
    """An executing attempt stopped because it was told to; its slot is free."""

    key: AttemptKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLost:
    """The process of a slot died: its replicas are gone, its attempt with them. The runtime restarts it by itself.

    Where the attempt was a gang's, the other members have stopped working on it when this is told.
    """

    slot: SlotRef
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReady:
    """The process of a slot is up again, empty: another one, which has generated nothing yet."""

    slot: SlotRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesMeasured:
    """The runtime measured rates by its own reads, loads and fetches."""

    rates: RateFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMeasured:
    """The probes measured a node: free memory of the host, of its disk cache, and of each GPU by index."""

    node_id: NodeId
    host_free_bytes: int
    disk_free_bytes: int
    gpu_free_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """`next_deadline()` was reached."""


AgentEvent = (
    SessionOpened
    | SessionClosed
    | AssignmentReceived
    | RuntimeStarted
    | WeightsFetched
    | FetchAdvanced
    | FetchYielded
    | FetchFailed
    | WeightsDeleted
    | HostMemoryChanged
    | CodeChanged
    | AdapterFetched
    | AdapterFetchFailed
    | AdapterDeleted
    | ReplicaLoaded
    | ReplicaLoadFailed
    | ReplicaAdapted
    | ReplicaAdaptFailed
    | ReplicaEvicted
    | AttemptAdvanced
    | AttemptFinished
    | AttemptErrored
    | AttemptHalted
    | SlotLost
    | SlotReady
    | RatesMeasured
    | NodeMeasured
    | TimerFired
)
