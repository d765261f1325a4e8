"""The simulated runtime of a site: disks, slots and executions that outlive the agent, and what goes wrong in them.

Decides how long things take (by the hidden truth, never by the estimator's prior) and when they fail. It answers as every runtime does:
through the sink, with events of `agents.core.events`. It knows nothing of the orchestrator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from agents.core.events import (
    AgentEvent,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    NodeMeasured,
    RecoveredSlot,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SlotLost,
    SlotReady,
)
from agents.core.gangs import block
from agents.core.outputs import AdaptReplica, EvictReplica, FetchAdapter, LoadReplica, RenewAttempts, RunAttempt, StopAttempt
from agents.core.state import ReplicaKey
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, NodeId, SlotRef
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.site import SiteSpec
from sims.adapters import Held, SimAdapters
from sims.checks import History
from sims.faults import Fault, Faults
from sims.fleet import BAD_PROMPT
from sims.truth import Truth
from sims.weights import Disks, SimWeights, Storage, WeightsCommand
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

RuntimeCommand = WeightsCommand | FetchAdapter | LoadReplica | AdaptReplica | EvictReplica | RunAttempt | StopAttempt | RenewAttempts

_EVICT_US: Final = 300 * MILLISECOND_US
_PROCESS_START_US: Final = (SECOND_US, 4 * SECOND_US)
_FAILURE_US: Final = (50 * MILLISECOND_US, 3 * SECOND_US)
_UPLOAD_US: Final = (20 * MILLISECOND_US, 400 * MILLISECOND_US)
_SLOW_FACTOR: Final = 6  # a GPU that is throttled or shared with somebody


@dataclass(slots=True, kw_only=True)
class _Run:
    command: RunAttempt
    started_us: int
    step_us: int
    steps_done: int = 0
    stopping: bool = False
    hangs: bool = False
    timer: Timer | None = None
    expiry: Timer | None = None

    @property
    def replica(self) -> ReplicaKey:
        """What it runs on, in each of its slots."""
        return ReplicaKey(model_id=self.command.model.model_id, gang_size=self.command.spec.gang_size)


@dataclass(slots=True, kw_only=True)
class _Slot:
    memory_bytes: int
    alive: bool = True
    fresh: bool = False  # its process has generated nothing yet
    replicas: dict[ReplicaKey, int] = field(default_factory=dict)  # bytes, adapters included
    adapters: dict[ReplicaKey, Held] = field(default_factory=dict)
    loading: Timer | None = None  # the end of a load or an adaptation
    run: _Run | None = None


class SimRuntime:
    """Everything at a site but the agent. `pools` is what there is; a lying site's agent claims more."""

    def __init__(self, world: World, faults: Faults, history: History, truth: Truth, spec: SiteSpec, disks: Disks) -> None:
        self.sink: Callable[[AgentEvent], None] | None = None
        self._world = world
        self._faults = faults
        self._history = history
        self._truth = truth
        self._site_id = spec.site_id
        self._random = world.stream(f"site/{spec.site_id}")
        self._broken_until_us = 0
        self._nodes: dict[NodeId, Storage] = {}
        self._slots: dict[SlotRef, _Slot] = {}
        self._finished: dict[AttemptKey, ResultManifest] = {}
        for pool in spec.pools:
            for index in range(pool.nodes):
                node_id = pool.node_id(index)
                self._nodes[node_id] = Storage(pool=pool)
                for gpu in range(pool.gpus_per_node):
                    slot = SlotRef(pool_id=pool.pool_id, node_id=node_id, index=gpu)
                    self._slots[slot] = _Slot(memory_bytes=pool.gpu_memory_bytes)
        self._weights = SimWeights(world, faults, history, truth, spec.site_id, self._nodes, disks, self._random, self._say)
        self._adapters = SimAdapters(world, faults, history, truth, spec.site_id, self._random, self._say, disks)

    # --- what an agent sees when it starts -------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether no slot is in the middle of a load or a start: an agent that starts waits for that."""
        return all(slot.alive and slot.loading is None for slot in self._slots.values())

    def started(self) -> RuntimeStarted:
        """What an agent finds."""
        self._weights.agent_started()
        return RuntimeStarted(
            slots=tuple(
                RecoveredSlot(
                    slot=ref,
                    replicas=tuple(
                        ReplicaFact(
                            model_id=key.model_id,
                            state=ReplicaState.BUSY if slot.run is not None and slot.run.replica == key else ReplicaState.WARM,
                            memory_bytes=size,
                            gang_size=key.gang_size,
                            adapters=tuple(sorted(slot.adapters.get(key, ()))),
                        )
                        for key, size in slot.replicas.items()
                    ),
                    running=None if slot.run is None else slot.run.command.key,
                    gang_size=1 if slot.run is None else slot.run.replica.gang_size,
                    fresh=slot.fresh,
                )
                for ref, slot in self._slots.items()
            ),
            disk_models=tuple(
                (node_id, model_id, digest) for node_id, node in self._nodes.items() for model_id, (_, digest) in node.disk.items()
            ),
            disk_adapters=self._adapters.on_disk(),
            finished=tuple(self._finished.values()),
            host_tier=True,
        )

    def measured(self) -> tuple[NodeMeasured, ...]:
        """What the probes read now."""
        return tuple(
            NodeMeasured(
                node_id=node_id,
                host_free_bytes=node.pool.node.host_memory_bytes,
                disk_free_bytes=max(node.disk_free_bytes(), 0),
                gpu_free_bytes=tuple(
                    max(slot.memory_bytes - sum(slot.replicas.values()), 0) for ref, slot in self._slots.items() if ref.node_id == node_id
                ),
            )
            for node_id, node in self._nodes.items()
        )

    def kept(self, key: AttemptKey) -> None:
        """The agent has the end of this attempt on its disk: no later start need be told of it."""
        self._finished.pop(key, None)

    def break_for(self, lasting_us: int) -> None:
        """Whatever begins to execute fails from now on, for so long."""
        self._broken_until_us = self._world.now_us + lasting_us

    # --- commands ----------------------------------------------------------------------------------------------------------------

    def perform(self, command: RuntimeCommand) -> None:
        """Begin a command; the outcome comes through the sink."""
        match command:
            case LoadReplica():
                self._load(self._slots[command.slot], command)
            case EvictReplica():
                self._world.after(_EVICT_US, partial(self._evicted, command))
            case RunAttempt():
                self._run(command)
            case StopAttempt():
                run = self._slots[command.slot].run
                if run is not None and run.command.key == command.key:
                    run.stopping = True
                    if run.hangs:
                        self._slot_dies(command.slot, "killed: it did not stop")
            case RenewAttempts():
                for ref, slot in self._slots.items():
                    if slot.run is not None and slot.run.command.key in command.keys and slot.run.command.slot == ref:
                        self._renew(slot.run)
            case FetchAdapter():
                self._adapters.fetch(command)
            case AdaptReplica():
                self._adapt(self._slots[command.slot], command)
            case _:
                self._weights.perform(command)

    def _load(self, slot: _Slot, command: LoadReplica) -> None:
        ref, model = command.slot, command.model
        if not slot.alive:
            return  # SlotLost is on its way, or was said
        if slot.loading is not None or slot.run is not None:
            self._history.fail(f"{self._site_id} was told to load {model.model_id} into {ref}, which is at work")
        node = self._nodes[ref.node_id]
        if model.model_id not in node.disk and model.model_id not in node.host:
            self._history.fail(f"{self._site_id} was told to load {model.model_id}, which is not on the disk of {ref.node_id}")
        elapsed_us = self._truth.load_us(self._site_id, ref.pool_id, model, from_host=model.model_id in node.host)
        kind: FailureKind | None = None
        if sum(slot.replicas.values()) + model.resident_bytes > slot.memory_bytes:
            self._history.overcommitted(self._site_id, ref, model.model_id)
            kind = FailureKind.OUT_OF_MEMORY
        elif self._faults.strikes(Fault.OUT_OF_MEMORY):
            kind = FailureKind.OUT_OF_MEMORY

        def loaded() -> None:
            slot.loading = None
            if kind is None:
                slot.replicas[ReplicaKey(model_id=model.model_id, gang_size=command.gang_size)] = model.resident_bytes
                self._say(
                    ReplicaLoaded(
                        slot=ref,
                        model_id=model.model_id,
                        memory_bytes=model.resident_bytes,
                        elapsed_us=elapsed_us,
                        gang_size=command.gang_size,
                    )
                )
            else:
                failure = Failure(kind=kind, message="simulated: out of memory")
                self._say(ReplicaLoadFailed(slot=ref, model_id=model.model_id, failure=failure, gang_size=command.gang_size))

        slot.loading = self._world.after(elapsed_us, loaded)

    def _adapt(self, slot: _Slot, command: AdaptReplica) -> None:
        key = ReplicaKey(model_id=command.model_id, gang_size=command.gang_size)
        if not slot.alive:
            return  # SlotLost is on its way, or was said
        if slot.loading is not None or slot.run is not None or key not in slot.replicas:
            self._history.fail(f"{self._site_id} was told to adapt {key} in {command.slot}, which is at work or without it")
        held = slot.adapters.setdefault(key, {})
        base_bytes = slot.replicas[key] - sum(held.values())
        room_bytes = slot.memory_bytes - sum(size for other, size in slot.replicas.items() if other != key)

        def done(size: int) -> None:
            slot.loading = None
            slot.replicas[key] = size

        slot.loading = self._adapters.adapt(command, held, base_bytes, room_bytes, done)

    def _evicted(self, command: EvictReplica) -> None:
        ref, slot = command.slot, self._slots[command.slot]
        key = ReplicaKey(model_id=command.model_id, gang_size=command.gang_size)
        if slot.run is not None and slot.run.replica == key:
            self._history.fail(f"{self._site_id} evicts {key} from {ref}, where {slot.run.command.key} runs on it")
        if slot.alive:
            slot.replicas.pop(key, None)
            slot.adapters.pop(key, None)
            self._say(ReplicaEvicted(slot=ref, model_id=command.model_id, gang_size=command.gang_size))
            self._weights.left_gpu(ref.node_id, command.model_id)

    # --- execution ---------------------------------------------------------------------------------------------------------------

    def _run(self, command: RunAttempt) -> None:
        members = {ref: self._slots[ref] for ref in block(command.slot, command.spec.gang_size)}
        if not all(slot.alive for slot in members.values()):
            return  # SlotLost is on its way, or was said
        busy = [slot.run.command.key for slot in members.values() if slot.run is not None]
        self._history.executes(self._site_id, command.slot, command.key, busy[0] if busy else None)
        step_us = self._truth.step_us(self._site_id, command.slot.pool_id, command.model, command.spec, command.key)
        first_us = self._truth.first_generation_us(self._site_id, command.key) if any(slot.fresh for slot in members.values()) else 0
        step_us += first_us // command.spec.shape.steps
        if self._faults.strikes(Fault.SLOW_GPU):
            step_us *= _SLOW_FACTOR
        run = _Run(command=command, started_us=self._world.now_us, step_us=step_us)
        for ref, slot in members.items():
            if run.replica not in slot.replicas:
                self._history.fail(f"{self._site_id} runs {command.key} in {ref} without {run.replica}")
            lacking = {use.adapter_id for use in command.spec.adapters} - slot.adapters.get(run.replica, {}).keys()
            if lacking:
                self._history.fail(f"{self._site_id} runs {command.key} in {ref} without its adapters {sorted(lacking)}")
            slot.run = run
        self._renew(run)
        if command.spec.prompt == BAD_PROMPT:
            refuse = partial(self._errored, run, FailureKind.BAD_INPUT)
            run.timer = self._world.after(_FAILURE_US[0], refuse)
        elif self._world.now_us < self._broken_until_us and self._faults.on(Fault.BROKEN_SITE):
            self._faults.strike(Fault.BROKEN_SITE, self._site_id)
            run.timer = self._world.after(_FAILURE_US[0], partial(self._errored, run, FailureKind.EXECUTION_FAILED))
        elif self._faults.strikes(Fault.HANG):
            run.hangs = True
        elif self._faults.strikes(Fault.EXECUTION_FAILS):
            kind = self._random.choice((FailureKind.EXECUTION_FAILED, FailureKind.OUT_OF_MEMORY, FailureKind.INTERNAL))
            run.timer = self._world.after(self._random.randint(*_FAILURE_US), partial(self._errored, run, kind))
        elif self._faults.strikes(Fault.SLOT_DIES):
            dies = partial(self._slot_dies, self._random.choice(list(members)), "simulated: the process died")
            run.timer = self._world.after(self._random.randint(*_FAILURE_US), dies)
        else:
            run.timer = self._world.after(step_us, partial(self._stepped, run))
        self._say(AttemptAdvanced(key=command.key, state=AttemptState.RUNNING, steps_done=0))

    def _stepped(self, run: _Run) -> None:
        if run.stopping:
            self._end(run)
            self._say(AttemptHalted(key=run.command.key))
            return
        run.steps_done += 1
        done = run.steps_done >= run.command.spec.shape.steps
        state = AttemptState.UPLOADING if done else AttemptState.RUNNING
        if done:
            upload = partial(self._uploaded, run)
            run.timer = self._world.after(self._random.randint(*_UPLOAD_US), upload)
        else:
            run.timer = self._world.after(run.step_us, partial(self._stepped, run))
        self._say(AttemptAdvanced(key=run.command.key, state=state, steps_done=run.steps_done))

    def _uploaded(self, run: _Run) -> None:
        key = run.command.key
        manifest = ResultManifest(
            key=key,
            artifacts=(Artifact(name="out-0.png", media_type="image/png", bytes=1_000, digest=f"sha256:{run.command.spec.seed:064x}"),),
            seed=run.command.spec.seed,
            simulated=True,
        )
        self._end(run)
        for ref in block(run.command.slot, run.replica.gang_size):
            self._slots[ref].fresh = False
        self._history.produced(manifest)
        self._finished[key] = manifest
        times = PhaseTimes(run_us=self._world.now_us - run.started_us, upload_us=_UPLOAD_US[0])
        self._say(AttemptFinished(key=key, manifest=manifest, times=times))

    def _errored(self, run: _Run, kind: FailureKind) -> None:
        self._end(run)
        failure = Failure(kind=kind, message=f"simulated: {kind}")
        times = PhaseTimes(run_us=self._world.now_us - run.started_us)
        self._say(AttemptErrored(key=run.command.key, failure=failure, times=times))

    def _renew(self, run: _Run) -> None:
        if run.expiry is not None:
            run.expiry.cancel()

        def expire() -> None:
            self._slot_dies(run.command.slot, "killed: no renewal within stop_after")

        run.expiry = self._world.after(run.command.stop_after_ms * MILLISECOND_US, expire)

    def _end(self, run: _Run) -> None:
        """No member of it works on it any more."""
        for timer in (run.timer, run.expiry):
            if timer is not None:
                timer.cancel()
        for ref in block(run.command.slot, run.replica.gang_size):
            self._slots[ref].run = None

    def _slot_dies(self, ref: SlotRef, message: str) -> None:
        slot = self._slots[ref]
        self._clear(slot)
        slot.alive = False
        self._world.after(self._random.randint(*_PROCESS_START_US), partial(self._slot_starts, slot, ref))
        self._say(SlotLost(slot=ref, message=message))

    def _slot_starts(self, slot: _Slot, ref: SlotRef) -> None:
        if not slot.alive:
            slot.alive = slot.fresh = True
            self._say(SlotReady(slot=ref))

    def _clear(self, slot: _Slot) -> None:
        if slot.run is not None:
            self._end(slot.run)
        if slot.loading is not None:
            slot.loading.cancel()
            slot.loading = None
        slot.replicas.clear()
        slot.adapters.clear()

    # --- what befalls the site -----------------------------------------------------------------------------------------------------

    def agent_died(self) -> None:
        """The agent's process ended: its fetches end with it, what executes goes on."""
        self.sink = None
        self._weights.agent_died()
        self._adapters.agent_died()

    def power_lost(self, *, disk_lost: bool) -> None:
        """The hosts restart: nothing is in memory any more; committed results are in the artifact store all the same."""
        self.agent_died()
        for slot in self._slots.values():
            self._clear(slot)
            slot.alive = True
        self._weights.power_lost(disk_lost=disk_lost)
        if disk_lost:
            self._adapters.disks_lost()
            self._finished.clear()

    def heal(self) -> None:
        """What hangs is found and killed."""
        for ref, slot in self._slots.items():
            if slot.run is not None and slot.run.hangs:
                self._slot_dies(ref, "killed: it hung")

    def _say(self, event: AgentEvent) -> None:
        if self.sink is not None:
            self.sink(event)
