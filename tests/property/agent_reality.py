"""What outlives an agent in the tests of its promises: slots, disks and executions. It fails the test when told what cannot be done."""

from __future__ import annotations

from agents.core.events import (
    AdapterFetched,
    AdapterFetchFailed,
    AgentEvent,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    RecoveredSlot,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SlotLost,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.gangs import block
from agents.core.outputs import (
    AdaptReplica,
    AgentCommand,
    DeleteWeights,
    EvictReplica,
    FetchAdapter,
    FetchWeights,
    LoadReplica,
    PinWeights,
    RefuseOrchestrator,
    RenewAttempts,
    RequestResync,
    RunAttempt,
    SendEvents,
    SendReport,
    StageWeights,
    StopAttempt,
    YieldFetch,
)
from atoll.model.attempt import Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import AdapterId, AttemptKey, ModelId, NodeId, SlotRef
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.site import PoolSpec
from tests.unit.agent_core_site import GB, POOL, adapter, manifest, model, slot

MODELS = {name: model(name, gigabytes) for name, gigabytes in (("m", 10), ("n", 12), ("o", 20))}
FAILED = Failure(kind=FailureKind.INTERNAL, message="told by the test")
# s3 and s2 do not fit beside the largest model at once.
ADAPTERS = {AdapterId(name): adapter(name, megabytes) for name, megabytes in (("s1", 100), ("s2", 3_000), ("s3", 3_000))}
Pending = LoadReplica | AdaptReplica | FetchAdapter | EvictReplica | FetchWeights | YieldFetch | StageWeights | DeleteWeights


class Reality:
    """The slots, disks and executions that outlive the agent; it fails the test when told what cannot be done."""

    def __init__(self, pool: PoolSpec = POOL) -> None:
        self.slots = [slot(node, index) for node in range(pool.nodes) for index in range(pool.gpus_per_node)]
        self.replicas: dict[SlotRef, dict[tuple[ModelId, int], int]] = {ref: {} for ref in self.slots}
        self.running: dict[SlotRef, RunAttempt] = {}  # of a gang, at each of its members
        self.alive = dict.fromkeys(self.slots, True)
        self.adapters: dict[SlotRef, dict[tuple[ModelId, int], set[AdapterId]]] = {ref: {} for ref in self.slots}
        self.adapter_disk: dict[NodeId, set[AdapterId]] = {pool.node_id(node): set() for node in range(pool.nodes)}
        self.pending: list[Pending] = []
        self.kept: dict[str, frozenset[ModelId]] = {}
        self.host: dict[NodeId, dict[ModelId, str]] = {pool.node_id(node): {} for node in range(pool.nodes)}
        self.disk: dict[NodeId, set[ModelId]] = {pool.node_id(node): set() for node in range(pool.nodes)}
        self.runs: list[AttemptKey] = []
        self.stopping: set[AttemptKey] = set()
        self.finished: dict[AttemptKey, ResultManifest] = {}

    def perform(self, command: AgentCommand) -> None:  # noqa: C901 - one case per command
        match command:
            case FetchWeights():
                under_way = [p for p in self.pending if isinstance(p, FetchWeights) and p.node_id == command.node_id]
                assert command.model not in [p.model for p in under_way], "one fetch per node and model"
                self.pending.append(command)
            case FetchAdapter():
                assert command not in self.pending, "one fetch per node and adapter"
                self.pending.append(command)
            case AdaptReplica(slot=where):
                if self.alive[where]:
                    assert where not in self.running, "nothing is adapted beside what executes"
                    assert not [p for p in self.pending if isinstance(p, LoadReplica | AdaptReplica) and p.slot == where]
                    assert (command.model_id, command.gang_size) in self.replicas[where]
                    assert {one.adapter_id for one in command.adapters} <= self.adapter_disk[where.node_id]
                    self.pending.append(command)
            case LoadReplica(slot=where):
                if self.alive[where]:
                    assert where not in self.running
                    assert not [p for p in self.pending if isinstance(p, LoadReplica | AdaptReplica) and p.slot == where]
                    held = self.host[where.node_id]
                    assert command.model.model_id in self.disk[where.node_id] or command.model.model_id in held
                    assert sum(self.replicas[where].values()) + command.model.resident_bytes <= 24 * GB
                    self.pending.append(command)
            case EvictReplica(slot=where):
                assert where not in self.running
                self.pending.append(command)
            case DeleteWeights():
                self.pending.append(command)
            case RunAttempt(slot=where):
                members = block(where, command.spec.gang_size)
                for member in members:
                    assert member not in self.running, "one attempt executes at a time"
                    if self.alive[member]:
                        assert (command.model.model_id, len(members)) in self.replicas[member], "a gang is loaded on each of its members"
                        used = {use.adapter_id for use in command.spec.adapters}
                        held_on = self.adapters[member].get((command.model.model_id, len(members)), set())
                        assert used <= held_on, "what it uses is loaded on each of its members"
                if all(self.alive[member] for member in members):
                    assert command.key not in self.runs, "no attempt executes twice here"
                    self.runs.append(command.key)
                    self.running |= dict.fromkeys(members, command)
            case StopAttempt():
                self.stopping.add(command.key)
            case YieldFetch() | StageWeights():
                self.pending.append(command)
            case PinWeights():
                self.kept[command.node_id] = frozenset(command.host)
            case RenewAttempts() | SendReport() | SendEvents() | RequestResync() | RefuseOrchestrator():
                pass

    def started(self) -> RuntimeStarted:
        """What a new agent finds. Fetches, loads and evictions under way ended with the old one."""
        for command in self.pending:
            if isinstance(command, EvictReplica):
                self.replicas[command.slot].pop((command.model_id, command.gang_size), None)
                self.adapters[command.slot].pop((command.model_id, command.gang_size), None)
        self.pending = []
        self.host = {node: {} for node in self.host}
        self.kept = {}
        self.alive = dict.fromkeys(self.slots, True)
        slots = []
        for ref in self.slots:
            run = self.running.get(ref)
            busy = (run.model.model_id, run.spec.gang_size) if run is not None else None
            facts = tuple(
                ReplicaFact(
                    model_id=name,
                    state=ReplicaState.BUSY if (name, gang_size) == busy else ReplicaState.WARM,
                    memory_bytes=size,
                    gang_size=gang_size,
                    adapters=tuple(sorted(self.adapters[ref].get((name, gang_size), ()))),
                )
                for (name, gang_size), size in self.replicas[ref].items()
            )
            key, gang_size = (run.key, run.spec.gang_size) if run is not None else (None, 1)
            slots.append(RecoveredSlot(slot=ref, replicas=facts, running=key, gang_size=gang_size))
        disk = tuple((node, name, MODELS[name].weights_digest) for node, names in self.disk.items() for name in sorted(names))
        held = tuple((node, name, ADAPTERS[name].weights_digest) for node, names in self.adapter_disk.items() for name in sorted(names))
        finished = tuple(self.finished.values())
        return RuntimeStarted(
            slots=tuple(slots),
            disk_models=disk,
            disk_adapters=held,
            finished=finished,
            host_tier=True,
        )

    def settle(self, number: int, well: bool) -> AgentEvent | None:  # noqa: C901 - one case per command
        """One of the commands under way ends."""
        if not self.pending:
            return None
        command = self.pending.pop(number % len(self.pending))
        match command:
            case FetchWeights(node_id=node, model=found) if well:
                self.disk[node].add(found.model_id)
                return WeightsFetched(
                    node_id=node, model_id=found.model_id, weights_digest=found.weights_digest, bytes=found.weights_bytes, elapsed_us=1
                )
            case FetchWeights():
                return FetchFailed(node_id=command.node_id, model_id=command.model.model_id, failure=FAILED)
            case FetchAdapter(node_id=node, adapter=wanted) if well:
                self.adapter_disk[node].add(wanted.adapter_id)
                return AdapterFetched(
                    node_id=node, adapter_id=wanted.adapter_id, weights_digest=wanted.weights_digest, bytes=wanted.weights_bytes,
                    elapsed_us=1,
                )  # fmt: skip
            case FetchAdapter():
                return AdapterFetchFailed(node_id=command.node_id, adapter_id=command.adapter.adapter_id, failure=FAILED)
            case AdaptReplica(slot=where, model_id=name):
                adapted, gang_size = (name, command.gang_size), command.gang_size
                on_it = self.adapters[where].setdefault(adapted, set())
                on_it -= set(command.unload)
                if well:
                    on_it |= {one.adapter_id for one in command.adapters}
                size = self.replicas[where][adapted] = MODELS[name].resident_bytes + sum(ADAPTERS[one].weights_bytes for one in on_it)
                assert sum(self.replicas[where].values()) <= 24 * GB
                loaded = tuple(sorted(on_it))
                if well:
                    return ReplicaAdapted(slot=where, model_id=name, adapters=loaded, memory_bytes=size, elapsed_us=1, gang_size=gang_size)
                return ReplicaAdaptFailed(
                    slot=where, model_id=name, adapters=loaded, memory_bytes=size, failure=FAILED, gang_size=gang_size
                )
            case LoadReplica(slot=where, model=found) if well:
                size, gang_size = found.resident_bytes, command.gang_size
                self.replicas[where][(found.model_id, gang_size)] = size
                return ReplicaLoaded(slot=where, model_id=found.model_id, memory_bytes=size, elapsed_us=1, gang_size=gang_size)
            case LoadReplica():
                name, gang_size = command.model.model_id, command.gang_size
                return ReplicaLoadFailed(slot=command.slot, model_id=name, failure=FAILED, gang_size=gang_size)
            case EvictReplica(slot=where):
                self.replicas[where].pop((command.model_id, command.gang_size), None)
                self.adapters[where].pop((command.model_id, command.gang_size), None)
                return ReplicaEvicted(slot=where, model_id=command.model_id, gang_size=command.gang_size)
            case DeleteWeights(node_id=node):
                self.disk[node].discard(command.model_id)
                return WeightsDeleted(node_id=node, model_id=command.model_id)
            case YieldFetch(node_id=node, model_id=name):
                fetches = [p for p in self.pending if isinstance(p, FetchWeights) and (p.node_id, p.model.model_id) == (node, name)]
                if not fetches:
                    return None
                self.pending.remove(fetches[0])
                return FetchYielded(node_id=node, model_id=name)
            case StageWeights(node_id=node, model=found):
                kept = self.kept.get(node, frozenset()) - {found.model_id}
                if well and found.model_id in self.disk[node] and not kept & self.host[node].keys():
                    self.host[node] = {found.model_id: found.weights_digest}  # room for one
                return HostMemoryChanged(node_id=node, models=tuple(self.host[node].items()), ended=(found.model_id,))

    def end_run(self, number: int, well: bool) -> AgentEvent | None:
        """One of the executions ends."""
        if not self.running:
            return None
        where = list(self.running)[number % len(self.running)]
        run = self.running[where]
        self._stops(run)
        if run.key in self.stopping and number % 2:
            return AttemptHalted(key=run.key)
        if well:
            self.finished[run.key] = manifest(run.key)
            return AttemptFinished(key=run.key, manifest=manifest(run.key), times=PhaseTimes(run_us=1))
        return AttemptErrored(key=run.key, failure=FAILED, times=PhaseTimes())

    def _stops(self, run: RunAttempt) -> None:
        for member in block(run.slot, run.spec.gang_size):
            del self.running[member]

    def lose(self, number: int) -> AgentEvent:
        """The process of a slot dies, and a gang with any of its members."""
        where = self.slots[number % len(self.slots)]
        self.alive[where] = False
        self.replicas[where], self.adapters[where] = {}, {}
        if where in self.running:
            self._stops(self.running[where])
        self.pending = [p for p in self.pending if not isinstance(p, LoadReplica | AdaptReplica | EvictReplica) or p.slot != where]
        return SlotLost(slot=where, message="died")
