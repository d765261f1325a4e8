"""The plant of one site: its slots, and with `weights` its disks and host memories. It takes the time that its truth gives, and makes
nothing.

Decides when simulated fetches, loads and executions end, and says so in events of the site's machine. Every result is marked `simulated`.
Must not know the machine that commands it, nor whose clock it runs by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from agents.core.commands import RuntimeCommand
from agents.core.events import (
    AgentEvent,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    CodeChanged,
    RecoveredSlot,
    ReplicaAdapted,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SlotLost,
    SlotReady,
)
from agents.core.outputs import AdaptReplica, EvictReplica, LoadReplica, RenewAttempts, RunAttempt, StopAttempt
from agents.core.rates import Rates
from agents.core.state import ReplicaKey
from agents.twin.holdings import Holding
from agents.twin.peers import TwinPeers
from agents.twin.results import simulated_result
from agents.twin.slots import TwinNode, TwinSlot
from agents.twin.timers import Timer, Timers
from agents.twin.truth import Truth
from agents.twin.weights import Surroundings, TwinWeights
from atoll.model import limits
from atoll.model.attempt import AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import AttemptKey, GpuTypeId, NodeId, SlotRef
from atoll.model.site import PoolSpec, SiteSpec
from atoll.model.words import duration
from atoll.physics.coldstart import transfer_us
from atoll.physics.output import output_bytes

# Dropping the references to a pipeline and emptying the allocator's cache.
_EVICT_US: Final = 200_000
# Steps are told this often at most, per attempt: 10,000 GPUs must not drown one process in progress.
_MARKS_MAX: Final = 8
# Renewals are looked at once in so many paces.
_EXPIRY_PACES: Final = 5

Sink = Callable[[AgentEvent], None]


@dataclass(slots=True, kw_only=True)
class _Run:
    command: RunAttempt
    compile_us: int  # until the code for its form runs; 0 where it does
    input_us: int  # until the job's files are there, which an agent reads when the attempt's turn has come
    run_us: int
    upload_us: int
    began_us: int
    renewed_us: int
    timers: list[Timer] = field(default_factory=list)

    def cancel(self) -> None:
        for timer in self.timers:
            timer.cancel()


class Plant:
    """What one site has. `pace_us`: how often at most progress is told."""

    def __init__(
        self,
        spec: SiteSpec,
        *,
        gpus: Mapping[GpuTypeId, GpuType],
        truth: Truth,
        timers: Timers,
        tell: Sink,
        peers: TwinPeers | None = None,
        result: Callable[[RunAttempt, int], ResultManifest] = simulated_result,
        note: Callable[[AttemptKey, str], None] | None = None,
        holdings: Mapping[NodeId, Holding] | None = None,
    ) -> None:
        """FieldError when a pool's GPU type is not in the catalogue. `peers`: the twins beside it, and the ways to others.

        `holdings`: what is there already.
        """
        self.pace_us = 1_000_000
        self._site_id = spec.site_id
        self._spec = spec
        self._truth = truth
        self._timers = timers
        self._after = timers.after
        self._tell = tell
        self._result = result
        self._note = note
        self._nodes: dict[NodeId, TwinNode] = {}
        self._slots: dict[SlotRef, TwinSlot] = {}
        self._runs: dict[AttemptKey, _Run] = {}
        self._expiry_timer: Timer | None = None
        self._rates = Rates(tell)
        self._peers = peers or TwinPeers()
        self.pools = tuple(self._build(pool, gpus) for pool in spec.pools)
        around = Surroundings(
            timers=timers,
            pace_us=lambda: self.pace_us,
            tell=tell,
            uses=lambda node_id, model_id: self._nodes[node_id].uses(model_id),
            learn_origin=lambda rate: self._rates.measured(origin=rate),
        )
        self.weights = TwinWeights(spec, truth, around, self._peers)
        for node_id, holding in (holdings or {}).items():
            self._hold(node_id, holding)

    def _build(self, pool: PoolSpec, gpus: Mapping[GpuTypeId, GpuType]) -> PoolSpec:
        gpu = gpus.get(pool.gpu_type)
        if gpu is None:
            raise FieldError(f"pool {pool.pool_id}.gpu_type", pool.gpu_type, f"a type of the catalogue: {', '.join(sorted(gpus))}")
        pool = replace(pool, gpu_memory_bytes=pool.gpu_memory_bytes or gpu.memory_bytes)
        for index in range(pool.nodes):
            node = self._nodes[pool.node_id(index)] = TwinNode(pool=pool)
            for number in range(pool.gpus_per_node):
                ref = SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(index), index=number)
                self._slots[ref] = TwinSlot(gpu=gpu, memory_bytes=pool.gpu_memory_bytes)
                node.slots.append(self._slots[ref])
        return pool

    def _hold(self, node_id: NodeId, holding: Holding) -> None:
        self.weights.hold(node_id, holding)
        for slot, models in zip(self._nodes[node_id].slots, holding.slots, strict=False):
            for model in models:
                if slot.has_room(model):
                    slot.replicas[ReplicaKey(model_id=model.model_id)] = model

    # --- commands -------------------------------------------------------------------------------------------------------------

    def started(self) -> RuntimeStarted:
        """What is found at the start: all that is held, but for the nodes' memories, which `tell_held` tells."""
        slots = tuple(RecoveredSlot(slot=ref, replicas=slot.facts) for ref, slot in self._slots.items())
        return RuntimeStarted(slots=slots, disk_models=self.weights.on_disk, host_tier=True)

    def tell_held(self) -> None:
        """Tell what nodes hold in memory, and what room is left, where anything is held."""
        self.weights.tell_held()

    def perform(self, command: RuntimeCommand) -> None:
        """Begin a command; the outcome is told."""
        match command:
            case LoadReplica():
                self._load(self._slots[command.slot], command)
            case AdaptReplica():
                self._adapt(self._slots[command.slot], command)
            case EvictReplica():
                self._after(_EVICT_US, self._in_life(self._slots[command.slot], partial(self._evicted, command)))
            case RunAttempt():
                self._run(self._slots[command.slot], command)
            case StopAttempt():
                self._stop(command.key)
            case RenewAttempts():
                for key in command.keys:
                    if key in self._runs:
                        self._runs[key].renewed_us = self._timers.now_us()
            case _:
                self.weights.perform(command)

    def close(self) -> None:
        """Everything ends."""
        for run in self._runs.values():
            run.cancel()
        self.weights.close()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()

    def take(self, node_id: NodeId) -> None:
        """A node is taken away: what its slots do and hold is gone, and what was in its memory. Its disk keeps what it has."""
        for run in [run for run in self._runs.values() if run.command.slot.node_id == node_id]:
            self._forget(run)
            self._log(run, "the node was taken away")
        for ref, slot in self._slots.items():
            if ref.node_id == node_id:
                slot.lives += 1
                for held in (slot.replicas, slot.adapters, slot.code):
                    held.clear()
                self._tell(SlotLost(slot=ref, message="the node was taken away"))
        self.weights.lose_memory(node_id)

    def give_back(self, node_id: NodeId) -> None:
        """A node that was taken away is there again."""
        for ref in self._slots:
            if ref.node_id == node_id:
                self._slots[ref].fresh = True
                self._tell(SlotReady(slot=ref))

    def _in_life(self, slot: TwinSlot, act: Callable[[], None]) -> Callable[[], None]:
        lives = slot.lives
        return lambda: act() if slot.lives == lives else None

    # --- replicas -------------------------------------------------------------------------------------------------------------

    def _load(self, slot: TwinSlot, command: LoadReplica) -> None:
        model, node = command.model, self._nodes[command.slot.node_id]
        if not slot.has_room(model):
            held = ", ".join(key.model_id for key in slot.replicas)
            failure = Failure(kind=FailureKind.OUT_OF_MEMORY, message=f"{model.model_id} does not fit beside {held}")
            gang_size = command.gang_size
            self._tell(ReplicaLoadFailed(slot=command.slot, model_id=model.model_id, failure=failure, gang_size=gang_size))
            return
        slot.replicas[ReplicaKey(model_id=model.model_id, gang_size=command.gang_size)] = model
        slot.loads += 1
        hardware = node.pool.node
        key = f"{command.slot.node_id}.{command.slot.index}/{model.model_id}#{slot.loads}"
        h2d = hardware.h2d_bytes_per_s or slot.gpu.h2d_bytes_per_s
        from_host = self.weights.begin_load(command.slot.node_id, model)
        stage_us = self._truth.stage_us(model, hardware.disk_bytes_per_s, h2d, from_host, self._site_id, key)
        load_us = stage_us + self._truth.init_us(model, self._site_id, key)
        self._after(load_us, self._in_life(slot, partial(self._loaded, command, stage_us, load_us, from_host)))

    def _loaded(self, command: LoadReplica, stage_us: int, load_us: int, from_host: bool) -> None:
        model = command.model
        self._tell(
            ReplicaLoaded(
                slot=command.slot,
                model_id=model.model_id,
                memory_bytes=model.resident_bytes,
                elapsed_us=load_us,
                gang_size=command.gang_size,
            )
        )
        if not from_host:
            self._rates.measured(disk=model.weights_bytes * 1_000_000 // max(stage_us, 1))

    def _adapt(self, slot: TwinSlot, command: AdaptReplica) -> None:
        slot.adaptations += 1
        key = f"{command.slot.node_id}.{command.slot.index}/{command.model_id}+{slot.adaptations}"
        adapt_us = sum(self._truth.patch_us(one, self._site_id, f"{key}/{one.adapter_id}") for one in command.adapters)
        self._after(adapt_us, self._in_life(slot, partial(self._adapted, slot, command, adapt_us)))

    def _adapted(self, slot: TwinSlot, command: AdaptReplica, adapt_us: int) -> None:
        key = ReplicaKey(model_id=command.model_id, gang_size=command.gang_size)
        held = slot.adapters.setdefault(key, {})
        for gone in command.unload:
            held.pop(gone, None)
        for adapter in command.adapters:
            held[adapter.adapter_id] = adapter.weights_bytes
            self.weights.use_adapter(command.slot.node_id, adapter.adapter_id)
        self._tell(
            ReplicaAdapted(
                slot=command.slot,
                model_id=command.model_id,
                adapters=tuple(sorted(held)),
                memory_bytes=slot.replicas[key].resident_bytes + sum(held.values()),
                elapsed_us=adapt_us,
                gang_size=command.gang_size,
            )
        )

    def _evicted(self, command: EvictReplica) -> None:
        key = ReplicaKey(model_id=command.model_id, gang_size=command.gang_size)
        self._slots[command.slot].adapters.pop(key, None)
        self._slots[command.slot].code.pop(key, None)
        model = self._slots[command.slot].replicas.pop(key, None)
        self._tell(ReplicaEvicted(slot=command.slot, model_id=command.model_id, gang_size=command.gang_size))
        if model is not None:
            self.weights.left_gpu(command.slot.node_id, model)

    # --- execution ------------------------------------------------------------------------------------------------------------

    def _run(self, slot: TwinSlot, command: RunAttempt) -> None:
        spec, now_us = command.spec, self._timers.now_us()
        gang_size, key = spec.gang_size, str(command.key)
        run_us = self._truth.execution_us(command.model, spec.denoised, slot.gpu, spec.precision, self._site_id, key, gang_size=gang_size)
        if any(member.fresh for member in self._members(command)):
            run_us += self._truth.first_generation_us(self._site_id, key)
        alone_us = transfer_us(output_bytes(command.model, spec.shape), self._spec.wan_bytes_per_s, 0)
        upload_us = alone_us * self._truth.factor_milli("fetch", self._site_id) // 1_000
        compile_us = self._compile_us(slot, command)
        input_us = self._peers.input_us(self._truth, self._spec, spec)
        run = _Run(
            command=command,
            compile_us=compile_us,
            input_us=input_us,
            run_us=run_us,
            upload_us=upload_us,
            began_us=now_us,
            renewed_us=now_us,
        )
        self._runs[command.key] = run
        if self._note is not None:
            count = "one" if gang_size == 1 else str(gang_size)
            told = f"simulated on {count} {slot.gpu.gpu_type}, {run_us / 1e6:.3f} s; nothing is generated"
            self._note(command.key, f"request {command.request_id}: {told}")
        if compile_us:
            self._say(run, AttemptState.COMPILING, 0)
            run.timers.append(self._after(compile_us, partial(self._compiled, slot, run)))
        else:
            self._say(run, AttemptState.RUNNING, 0)
        steps, first_us = spec.shape.steps, compile_us + input_us
        marks = min(steps - 1, _MARKS_MAX, run_us // self.pace_us)
        for mark in range(1, marks + 1):
            done = steps * mark // (marks + 1)
            run.timers.append(self._after(first_us + run_us * done // steps, partial(self._say, run, AttemptState.RUNNING, done)))
        run.timers.append(self._after(first_us + run_us, partial(self._say, run, AttemptState.UPLOADING, steps)))
        run.timers.append(self._after(first_us + run_us + upload_us, partial(self._finished, run)))
        if self._expiry_timer is None:
            self._expiry_timer = self._after(_EXPIRY_PACES * self.pace_us, self._expire)

    def _members(self, command: RunAttempt) -> list[TwinSlot]:
        """The slots that work on an attempt, the lead first."""
        lead = command.slot
        return self._nodes[lead.node_id].slots[lead.index : lead.index + command.spec.gang_size]

    def _compile_us(self, slot: TwinSlot, command: RunAttempt) -> int:
        """Until the code that an attempt needs runs: not long where its replica ran it before, longer where only its node has it."""
        form, model = command.form, command.model
        if form is None or form in slot.code.get(ReplicaKey(model_id=model.model_id), ()):
            return 0
        held = form in self._nodes[command.slot.node_id].forms
        takes_us = self._truth.artifact_load_us if held else self._truth.compile_us
        return takes_us(model, slot.gpu, self._site_id, str(command.key))

    def _compiled(self, slot: TwinSlot, run: _Run) -> None:
        """The code runs in the replica, and lies on the disk of the node."""
        command, form = run.command, run.command.form
        assert form is not None, "only a form is compiled"
        slot.code.setdefault(ReplicaKey(model_id=command.model.model_id), set()).add(form)
        forms = self._nodes[command.slot.node_id].forms
        forms.pop(form, None)
        forms[form] = None
        while len(forms) > limits.FORMS_PER_NODE_MAX:
            del forms[next(iter(forms))]
        self._tell(CodeChanged(node_id=command.slot.node_id, forms=tuple(reversed(forms))))
        self._say(run, AttemptState.RUNNING, 0)

    def _say(self, run: _Run, state: AttemptState, steps: int) -> None:
        self._tell(AttemptAdvanced(key=run.command.key, state=state, steps_done=steps))

    def _finished(self, run: _Run) -> None:
        if self._forget(run):
            for member in self._members(run.command):
                member.fresh = False
            self._log(run, "done")
            manifest = self._result(run.command, run.run_us)
            times = PhaseTimes(compile_us=run.compile_us or -1, run_us=run.input_us + run.run_us, upload_us=run.upload_us)
            self._tell(AttemptFinished(key=run.command.key, manifest=manifest, times=times))

    def _stop(self, key: AttemptKey) -> None:
        """At the next step boundary, as a pipeline does."""
        run = self._runs.get(key)
        if run is None:
            return
        run.cancel()
        step_us = max(run.run_us // run.command.spec.shape.steps, 1)
        since_us = self._timers.now_us() - run.began_us - run.compile_us  # until the files are there no step is taken
        run.timers = []
        if since_us < 0:  # while code is being made there are no steps: it is made to the end
            run.timers.append(self._after(-since_us, partial(self._compiled, self._slots[run.command.slot], run)))
        left_us = -since_us if since_us < 0 else step_us - min(max(since_us - run.input_us, 0), run.run_us) % step_us
        run.timers.append(self._after(left_us, partial(self._halted, run)))

    def _halted(self, run: _Run) -> None:
        if self._forget(run):
            self._log(run, "stopped")
            self._tell(AttemptHalted(key=run.command.key))

    def _forget(self, run: _Run) -> bool:
        """Whether it was still going on."""
        run.cancel()
        return self._runs.pop(run.command.key, None) is run

    def _expire(self) -> None:
        """What nobody renewed within its stop_after ends: here too, whatever became of the agent's core."""
        now_us = self._timers.now_us()
        for run in list(self._runs.values()):
            allowed_ms = run.command.stop_after_ms
            if now_us - run.renewed_us > allowed_ms * 1_000:
                self._forget(run)
                failure = Failure(kind=FailureKind.LOST, message=f"not renewed for {duration(allowed_ms * 1_000)}")
                self._log(run, failure.message)
                ran_us = now_us - run.began_us
                self._tell(AttemptErrored(key=run.command.key, failure=failure, times=PhaseTimes(run_us=ran_us)))
        self._expiry_timer = self._after(_EXPIRY_PACES * self.pace_us, self._expire) if self._runs else None

    def _log(self, run: _Run, text: str) -> None:
        if self._note is not None:
            self._note(run.command.key, text)
