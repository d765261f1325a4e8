"""One agent's core under test: says what an orchestrator and a runtime would say, remembers what it answers, checks every promise."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from agents.core import invariants
from agents.core.events import (
    AdapterFetched,
    AgentEvent,
    AssignmentReceived,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    FetchFailed,
    RecoveredSlot,
    ReplicaAdapted,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SessionOpened,
    TimerFired,
    WeightsFetched,
)
from agents.core.machine import AgentMachine
from agents.core.outputs import AgentCommand, AgentStep, OutboxAppended, OutboxTrimmed, SendReport
from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import AssignedAttempt, Assignment
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import (
    AdapterId,
    AttemptKey,
    EventSeq,
    FleetId,
    Generation,
    GpuTypeId,
    JobId,
    ModelId,
    NodeId,
    Ordinal,
    PoolId,
    SiteId,
    SlotRef,
    TenantId,
    Term,
)
from atoll.model.job import JobSpec
from atoll.model.modelspec import AdapterUse, DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.report import AttemptEvent, SiteReport, Welcome
from atoll.model.shape import Shape
from atoll.model.site import NodeSpec, PoolSpec, SiteRuntime

GB = 10**9
SECOND = 1_000_000
FLEET = FleetId("fleet")
SHAPE = Shape(width=512, height=512, steps=10)
POOL = PoolSpec(
    pool_id=PoolId("p"),
    gpu_type=GpuTypeId("big"),
    nodes=2,
    gpus_per_node=2,
    node=NodeSpec(host_memory_bytes=100 * GB, disk_cache_bytes=1_000 * GB, disk_bytes_per_s=GB),
    gpu_memory_bytes=24 * GB,
)
C = TypeVar("C", bound=AgentCommand)


def model(name: str, gigabytes: int = 10, version: str = "0") -> ModelSpec:
    """A model with weights."""
    physics = ModelPhysics(
        kind=DenoiserKind.UNET, denoiser_params=GB, tokenwise_params=0, text_params=GB, vae_params=GB, layers=1, hidden=1,
        text_tokens=77, reference=SHAPE, reference_tokens=4096, reference_forward_flops=10**12,
        reference_attention_flops=10**11, reference_decode_flops=10**12,
    )  # fmt: skip
    return ModelSpec(
        model_id=ModelId(name), title=name, family="f", modality=Modality.IMAGE, pipeline_class="P",
        weights_bytes=gigabytes * GB, resident_bytes=gigabytes * GB, activation_bytes=GB, default_shape=SHAPE,
        weights_digest=f"sha256:{version * 64}", origin_path=name, physics=physics,
    )  # fmt: skip


def adapter(name: str, megabytes: int = 100, version: str = "0") -> AdapterSpec:
    """An adapter of every model of the tests."""
    return AdapterSpec(
        adapter_id=AdapterId(name), family="f", rank=16, weights_bytes=megabytes * 10**6,
        weights_digest=f"sha256:{version * 64}", origin_path=f"{name}.safetensors",
    )  # fmt: skip


def slot(node: int = 0, index: int = 0) -> SlotRef:
    """A slot of POOL."""
    return SlotRef(pool_id=POOL.pool_id, node_id=POOL.node_id(node), index=index)


def key(job: str, ordinal: int = 1) -> AttemptKey:
    """An attempt's key."""
    return AttemptKey(job_id=JobId(job), ordinal=Ordinal(ordinal))


def attempt(
    job: str,
    model_id: str = "m",
    *,
    where: SlotRef | None = None,
    stop_after_ms: int = 3_600_000,
    adapters: tuple[str, ...] = (),
    **changes: object,
) -> AssignedAttempt:
    """An attempt as an orchestrator assigns it."""
    uses = tuple(AdapterUse(adapter_id=AdapterId(name)) for name in adapters)
    spec = JobSpec(tenant=TenantId("t"), model_id=ModelId(model_id), prompt="p", shape=SHAPE, adapters=uses)
    made = AssignedAttempt(key=key(job), spec=spec, slot=where or slot(), stop_after_ms=stop_after_ms, request_id=f"r-{job}")
    return replace(made, **changes)  # type: ignore[arg-type] # the caller names fields of AssignedAttempt


def manifest(of: AttemptKey) -> ResultManifest:
    """What an attempt could have made."""
    artifact = Artifact(name="0.png", media_type="image/png", bytes=3, digest="sha256:" + "a" * 64)
    return ResultManifest(key=of, artifacts=(artifact,), seed=1, simulated=False)


class AgentSite:
    """The machine, its disk, and what it said in the last step."""

    def __init__(self, *, runtime: SiteRuntime = SiteRuntime.RAY, pools: tuple[PoolSpec, ...] = (POOL,)) -> None:
        self.pools = pools
        self.runtime = runtime
        self.models: dict[str, ModelSpec] = {name: model(name) for name in ("m", "n", "o")}
        self.adapters: dict[str, AdapterSpec] = {}
        self.outbox: dict[EventSeq, AttemptEvent] = {}
        self.next_seq = EventSeq(1)
        self.history: list[AttemptEvent] = []
        self.generation = 0
        self.term = 1
        self.listed: dict[AttemptKey, AssignedAttempt] = {}
        self.now_us = 0
        self.step = AgentStep()
        self.machine = self._new()

    def _new(self) -> AgentMachine:
        return AgentMachine(
            site_id=SiteId("s"), pools=self.pools, runtime=self.runtime, fleet_id=FleetId(""), term=Term(0),
            outbox=tuple(self.outbox.values()), next_event_seq=self.next_seq,
        )  # fmt: skip

    # --- what happens ----------------------------------------------------------------------------------------------------------

    def happen(self, event: AgentEvent, *, after_us: int = 0) -> AgentStep:
        """One event; what the core answers is kept as a disk would."""
        self.now_us += after_us
        self.step = self.machine.handle(event, self.now_us)
        invariants.check(self.machine, self.now_us)
        for record in self.step.records:
            if isinstance(record, OutboxAppended):
                self.outbox[record.event.seq] = record.event
                self.next_seq = EventSeq(record.event.seq + 1)
                self.history.append(record.event)
            elif isinstance(record, OutboxTrimmed):
                self.outbox = {seq: event for seq, event in self.outbox.items() if seq > record.acked_event_seq}
        return self.step

    def start(self, *slots: RecoveredSlot, finished: tuple[ResultManifest, ...] = (), disk: tuple[str, ...] = ()) -> AgentSite:
        """The runtime is up with all slots empty, but those given."""
        told = {found.slot: found for found in slots}
        every = [told.get(ref, RecoveredSlot(slot=ref)) for ref in self.machine.state.slots]
        on_disk = tuple((node, ModelId(name), self.models[name].weights_digest) for node in self.machine.state.nodes for name in disk)
        self.happen(RuntimeStarted(slots=tuple(every), finished=finished, disk_models=on_disk))
        return self

    def restart(self) -> None:
        """The agent's process ends and begins again, with what was on its disk."""
        self.machine = self._new()

    def connect(self, **changes: object) -> AgentSite:
        """The orchestrator welcomes the agent."""
        welcome = Welcome(
            fleet_id=FLEET, term=Term(self.term), time_scale_milli=1_000, report_interval_ms=1_000, origin_url="o", artifacts_url="a"
        )
        self.happen(SessionOpened(welcome=replace(welcome, **changes)))  # type: ignore[arg-type] # the caller names fields
        return self

    def assign(self, *attempts: AssignedAttempt, full: bool = False, removed: tuple[AttemptKey, ...] = (), **changes: object) -> AgentStep:
        """The next assignment: a delta, or with `full` a snapshot of exactly these attempts."""
        for gone in removed:
            self.listed.pop(gone, None)
        if full:
            self.listed = {}
        self.listed |= {one.key: one for one in attempts}
        base, self.generation = self.generation, self.generation + 1
        names = {one.spec.model_id for one in attempts}
        message = Assignment(
            fleet_id=FLEET, term=Term(self.term), generation=Generation(self.generation),
            base_generation=Generation(0 if full else base), attempts=attempts, removed=removed,
            models=tuple(self.models[name] for name in sorted(names) if name in self.models),
            adapters=tuple(self.adapters.values()),
        )  # fmt: skip
        return self.happen(AssignmentReceived(assignment=replace(message, **changes)))  # type: ignore[arg-type] # as above

    def tick(self, us: int = SECOND) -> AgentStep:
        """Time passes up to the next deadline within `us`, and the timer fires."""
        return self.happen(TimerFired(), after_us=us)

    # --- what the runtime answers ------------------------------------------------------------------------------------------------

    def fetched(self, name: str = "m", node: NodeId = POOL.node_id(0), *, after_us: int = 0) -> AgentStep:
        """Weights are on a node's disk."""
        found = self.models[name]
        event = WeightsFetched(
            node_id=node, model_id=found.model_id, weights_digest=found.weights_digest, bytes=found.weights_bytes, elapsed_us=1
        )
        return self.happen(event, after_us=after_us)

    def fetch_failed(self, kind: FailureKind, name: str = "m", node: NodeId = POOL.node_id(0)) -> AgentStep:
        """A fetch failed."""
        failure = Failure(kind=kind, message="told by the test")
        return self.happen(FetchFailed(node_id=node, model_id=ModelId(name), failure=failure))

    def loaded(self, name: str = "m", where: SlotRef | None = None, *, after_us: int = 0) -> AgentStep:
        """A model is in a slot."""
        size = self.models[name].resident_bytes
        return self.happen(ReplicaLoaded(slot=where or slot(), model_id=ModelId(name), memory_bytes=size, elapsed_us=1), after_us=after_us)

    def adapter_fetched(self, name: str, node: NodeId = POOL.node_id(0), *, after_us: int = 0) -> AgentStep:
        """An adapter is on a node's disk."""
        found = self.adapters[name]
        event = AdapterFetched(
            node_id=node, adapter_id=found.adapter_id, weights_digest=found.weights_digest, bytes=found.weights_bytes, elapsed_us=1
        )
        return self.happen(event, after_us=after_us)

    def adapted(self, *names: str, model_id: str = "m", memory_bytes: int = 11 * GB, after_us: int = 0) -> AgentStep:
        """A replica holds exactly these adapters."""
        held = tuple(AdapterId(name) for name in names)
        event = ReplicaAdapted(slot=slot(), model_id=ModelId(model_id), adapters=held, memory_bytes=memory_bytes, elapsed_us=1)
        return self.happen(event, after_us=after_us)

    def load_failed(self, kind: FailureKind, name: str = "m") -> AgentStep:
        """A load failed."""
        return self.happen(ReplicaLoadFailed(slot=slot(), model_id=ModelId(name), failure=Failure(kind=kind, message="told by the test")))

    def evicted(self, name: str, where: SlotRef | None = None) -> AgentStep:
        """A model left a slot."""
        return self.happen(ReplicaEvicted(slot=where or slot(), model_id=ModelId(name)))

    def runs(self, job: str, steps: int = 1) -> AgentStep:
        """An attempt executes."""
        return self.happen(AttemptAdvanced(key=key(job), state=AttemptState.RUNNING, steps_done=steps))

    def finishes(self, job: str, *, after_us: int = 0) -> AgentStep:
        """An attempt has its result."""
        times = PhaseTimes(run_us=7, upload_us=3)
        return self.happen(AttemptFinished(key=key(job), manifest=manifest(key(job)), times=times), after_us=after_us)

    def errs(self, job: str, kind: FailureKind) -> AgentStep:
        """An attempt failed."""
        return self.happen(AttemptErrored(key=key(job), failure=Failure(kind=kind, message="told by the test"), times=PhaseTimes()))

    def halts(self, job: str) -> AgentStep:
        """An attempt stopped."""
        return self.happen(AttemptHalted(key=key(job)))

    def warm(self, name: str = "m", where: SlotRef | None = None) -> AgentSite:
        """Have a model loaded by an attempt that ended long ago: acknowledged and settled."""
        done = f"warm-{name}-{self.next_seq}"
        self.assign(attempt(done, name, where=where))
        if self.machine.state.works[key(done)].state is AttemptState.FETCHING:
            self.fetched(name, (where or slot()).node_id)
        if self.machine.state.works[key(done)].state is AttemptState.LOADING:
            self.loaded(name, where)
        self.finishes(done)
        self.assign(removed=(key(done),), acked_event_seq=EventSeq(self.next_seq - 1))
        return self

    # --- what the core said ------------------------------------------------------------------------------------------------------

    def said(self, kind: type[C]) -> list[C]:
        """Commands of this kind in the last step."""
        return [command for command in self.step.commands if isinstance(command, kind)]

    def report(self) -> SiteReport | None:
        """The last report of the last step."""
        sent = self.said(SendReport)
        return sent[-1].report if sent else None

    def end_of(self, job: str) -> AttemptEvent:
        """The one event that ended an attempt."""
        found = [event for event in self.history if event.key == key(job)]
        assert len(found) == 1, f"{job} ended {len(found)} times: {found}"
        return found[0]
