"""A small fleet around one orchestrator machine, for tests of the core: says what agents would say, remembers what they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import AssignedAttempt, Assignment, CopyKey, DesiredReplica
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
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
    TenantId,
    Term,
)
from atoll.model.job import Constraints, Job, JobSpec, Priority
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState, Tier
from atoll.model.report import PROTOCOL_VERSION, AttemptEvent, AttemptProgress, NodeFacts, SiteHello, SiteReport, SlotFacts
from atoll.model.shape import Shape
from atoll.model.site import NodeSpec, PoolSpec, SiteRuntime, SiteSpec
from orchestrator.core import events, invariants
from orchestrator.core.durable import Stored
from orchestrator.core.events import Event, RequestRef, SessionRef, Submission
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import Answer, PublishJob, Reply, SendAssignment, Step
from orchestrator.core.placement.policy import Policy

GB = 10**9
SECOND = 1_000_000

GPUS = {
    GpuTypeId("big"): GpuType(
        gpu_type=GpuTypeId("big"), vendor="t", arch="t", memory_bytes=80 * GB, memory_bytes_per_s=3_000 * GB,
        fp32_flops=60 * 10**12, fp16_flops=900 * 10**12, h2d_bytes_per_s=50 * GB, usd_micros_per_hour=4_000_000,
    ),
    GpuTypeId("small"): GpuType(
        gpu_type=GpuTypeId("small"), vendor="t", arch="t", memory_bytes=24 * GB, memory_bytes_per_s=600 * GB,
        fp32_flops=30 * 10**12, fp16_flops=150 * 10**12, h2d_bytes_per_s=12 * GB, usd_micros_per_hour=500_000,
    ),
}  # fmt: skip


def model(name: str, weights_gb: int = 10) -> ModelSpec:
    """A transformer with weights, so that real sites can serve it."""
    shape = Shape(width=1024, height=1024, steps=20)
    physics = ModelPhysics(
        kind=DenoiserKind.TRANSFORMER, denoiser_params=5 * GB, tokenwise_params=4 * GB, text_params=GB, vae_params=GB // 10,
        layers=30, hidden=3_000, text_tokens=256, reference=shape, reference_tokens=4_096,
        reference_forward_flops=40 * 10**12, reference_attention_flops=4 * 10**12, reference_decode_flops=10 * 10**12,
    )  # fmt: skip
    return ModelSpec(
        model_id=ModelId(name), title=name, family="t", modality=Modality.IMAGE, pipeline_class="FluxPipeline",
        weights_bytes=weights_gb * GB, resident_bytes=weights_gb * GB, activation_bytes=2 * GB, default_shape=shape,
        weights_digest="sha256:" + "0" * 64, origin_path=name, physics=physics,
    )  # fmt: skip


def adapter(name: str, *model_ids: str, family: str = "") -> AdapterSpec:
    """An adapter with weights."""
    return AdapterSpec(
        adapter_id=AdapterId(name), model_ids=tuple(ModelId(one) for one in model_ids), family=family, rank=16,
        weights_bytes=GB // 10, weights_digest="sha256:" + "2" * 64, origin_path=f"{name}.safetensors",
    )  # fmt: skip


def pool(name: str, gpu: str = "big", nodes: int = 1, gpus: int = 2) -> PoolSpec:
    """A pool with plenty of disk."""
    node = NodeSpec(host_memory_bytes=512 * GB, disk_cache_bytes=2_000 * GB, disk_bytes_per_s=5 * GB)
    return PoolSpec(pool_id=PoolId(name), gpu_type=GpuTypeId(gpu), nodes=nodes, gpus_per_node=gpus, node=node)


def site(name: str, *pools: PoolSpec, origin_gbs: int = 1) -> SiteSpec:
    """A site of these pools."""
    return SiteSpec(
        site_id=SiteId(name), region=f"region-{name}", pools=pools or (pool("big"),),
        wan_bytes_per_s=GB, origin_bytes_per_s=origin_gbs * GB,
    )  # fmt: skip


def spec(model_id: str = "m", **changes: object) -> JobSpec:
    """A job of the default shape."""
    base = JobSpec(tenant=TenantId("t"), model_id=ModelId(model_id), prompt="p", shape=Shape(width=1024, height=1024, steps=20))
    return replace(base, **changes)  # type: ignore[arg-type]  # the caller names fields of JobSpec


@dataclass(slots=True)
class Agent:
    """What one site's agent knows and says."""

    site: SiteSpec
    session: SessionRef
    event_seq: int = 0
    report_seq: int = 0
    attempts: dict[AttemptKey, AssignedAttempt] = field(default_factory=dict)
    told: list[Assignment] = field(default_factory=list)
    warm: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    gangs: dict[tuple[str, int], dict[tuple[str, int], int]] = field(default_factory=dict)  # shares of gangs: model and gang size
    disk: set[str] = field(default_factory=set)
    disk_of: dict[str, set[str]] = field(default_factory=dict)  # what single nodes have besides
    host: dict[str, set[str]] = field(default_factory=dict)
    disk_free_gb: int = 1_000
    wanted: dict[CopyKey, DesiredReplica] = field(default_factory=dict)
    loaded: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)  # adapters on whatever is warm there
    disk_adapters: set[str] = field(default_factory=set)
    compiled: dict[str, set[FormId]] = field(default_factory=dict)  # by node: forms for which it holds code
    shares_compiled: bool = False
    loading: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)  # of what is held in a slot: what loads yet, since when
    starting: set[tuple[str, int]] = field(default_factory=set)  # slots whose process is not up
    fresh: set[tuple[str, int]] = field(default_factory=set)  # slots whose process has generated nothing yet


class Fleet:
    """The machine, its agents, and everything it answered. Invariants are checked after every event, unless `checked` is false."""

    def __init__(
        self,
        *sites: SiteSpec,
        models: tuple[ModelSpec, ...] = (),
        policy: Policy | None = None,
        gpus: Mapping[GpuTypeId, GpuType] = GPUS,
        runtime: SiteRuntime = SiteRuntime.RAY,
        checked: bool = True,
        arrival_window_ms: int = 0,
    ) -> None:
        # Tests submit one after the other at one instant, and mean that each is placed before the next comes.
        self.policy = replace(policy or Policy(), arrival_window_ms=arrival_window_ms)
        self._checked = checked
        stored = Stored(fleet_id=FleetId("f"), term=Term(1), fleet_time_us=0, last_audit_seq=ChangeSeq(0))
        self.machine: Machine = new_machine(stored, self.policy, gpus)
        self.now_us = SECOND
        self.steps: list[Step] = []
        self.recording: list[tuple[int, Event]] = []
        self.replies: dict[int, Reply] = {}
        self.jobs: dict[JobId, Job] = {}
        self.agents: dict[SiteId, Agent] = {}
        self._request = 0
        self._session = 0
        self.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(1)))
        self.happen(events.SitesApplied(request=self.request(), actor="t", reason="", sites=sites, links=()))
        self.happen(events.ModelsAdded(request=self.request(), actor="t", models=models or (model("m"),)))
        for one in sites:
            self.connect(one, runtime)

    def request(self) -> RequestRef:
        """A new caller."""
        self._request += 1
        return RequestRef(self._request)

    def happen(self, event: Event, after_us: int = 1_000) -> Step:
        """Let an event happen a moment later."""
        self.now_us += after_us
        self.recording.append((self.now_us, event))
        step = self.machine.handle(event, self.now_us)
        if self._checked:
            invariants.check(self.machine)
        self.steps.append(step)
        for command in step.commands:
            match command:
                case Answer():
                    self.replies[command.request] = command.reply
                case PublishJob():
                    self.jobs[command.job.job_id] = command.job
                case SendAssignment():
                    self._told(self.agents[command.site_id], command.assignment)
                case _:
                    pass
        return step

    def ask(self, event_of: type[Event], **fields: object) -> Reply:
        """Let an event with a caller happen; its answer."""
        request = self.request()
        self.happen(event_of(request=request, **fields))  # type: ignore[call-arg, arg-type]  # the caller names the event's fields
        return self.replies[request]

    def _told(self, agent: Agent, assignment: Assignment) -> None:
        agent.told.append(assignment)
        if assignment.full:
            agent.attempts, agent.wanted = {}, {}
        agent.wanted |= {one.key: one for one in assignment.replicas}
        for gone in assignment.unwanted:
            agent.wanted.pop(gone.key, None)
        for one in assignment.attempts:
            agent.attempts[one.key] = one
        for key in assignment.removed:
            agent.attempts.pop(key, None)

    def connect(self, one: SiteSpec, runtime: SiteRuntime = SiteRuntime.RAY, boot_id: str = "b", *, report: bool = True) -> Agent:
        """An agent of this site says hello and sends its first report (which is lost unless `report`)."""
        self._session += 1
        agent = Agent(site=one, session=SessionRef(self._session))
        old = self.agents.get(one.site_id)
        if old is not None:
            agent.event_seq, agent.warm, agent.disk, agent.host = old.event_seq, old.warm, old.disk, old.host
            agent.disk_of = old.disk_of
            agent.loaded, agent.disk_adapters, agent.gangs = old.loaded, old.disk_adapters, old.gangs
            agent.compiled, agent.shares_compiled, agent.loading = old.compiled, old.shares_compiled, old.loading
        self.agents[one.site_id] = agent
        hello = SiteHello(
            site_id=one.site_id, fleet_id=FleetId(""), term=Term(0), protocol_version=PROTOCOL_VERSION, agent_version="t",
            boot_id=boot_id, runtime=runtime, pools=one.pools, next_event_seq=EventSeq(1),
        )  # fmt: skip
        self.happen(events.SiteConnected(site_id=one.site_id, session=agent.session, hello=hello))
        if report:
            self.report(one.site_id, full=True)
        else:
            agent.report_seq += 1
        return agent

    def report(self, name: str, *, full: bool = False, progress: tuple[AttemptProgress, ...] = (), after_us: int = 1_000) -> Step:
        """The site's agent reports all of its nodes."""
        agent = self.agents[SiteId(name)]
        agent.report_seq += 1
        generation = agent.told[-1].generation if agent.told else Generation(0)
        facts = tuple(self._node(agent, one, index, self.now_us + after_us) for one in agent.site.pools for index in range(one.nodes))
        report = SiteReport(seq=agent.report_seq, full=full, generation=generation, nodes=facts, progress=progress)
        return self.happen(events.SiteReported(site_id=agent.site.site_id, session=agent.session, report=report), after_us)

    def _node(self, agent: Agent, one: PoolSpec, index: int, at_us: int) -> NodeFacts:
        node_id = one.node_id(index)
        slots = tuple(
            SlotFacts(
                index=gpu,
                memory_free_bytes=0,
                ready=(node_id, gpu) not in agent.starting,
                fresh=(node_id, gpu) in agent.fresh,
                replicas=tuple(
                    ReplicaFact(
                        model_id=ModelId(name),
                        memory_bytes=size,
                        **_state(agent, (node_id, gpu), name, at_us),
                        adapters=tuple(AdapterId(adapter) for adapter in agent.loaded.get((node_id, gpu), ())),
                    )
                    for name, size in sorted(agent.warm.get((node_id, gpu), {}).items())
                )
                + tuple(
                    ReplicaFact(
                        model_id=ModelId(name), memory_bytes=size, gang_size=gang_size, **_state(agent, (node_id, gpu), name, at_us)
                    )
                    for (name, gang_size), size in sorted(agent.gangs.get((node_id, gpu), {}).items())
                ),
            )
            for gpu in range(one.gpus_per_node)
        )
        disk = tuple(ModelId(name) for name in sorted(agent.disk | agent.disk_of.get(node_id, set())))
        return NodeFacts(
            pool_id=one.pool_id, node_id=NodeId(node_id), host_free_bytes=GB, disk_free_bytes=agent.disk_free_gb * GB,
            disk_models=disk, slots=slots, host_models=tuple(ModelId(name) for name in sorted(agent.host.get(node_id, ()))), host_tier=True,
            disk_adapters=tuple(AdapterId(name) for name in sorted(agent.disk_adapters)),
            compiled=tuple(sorted(agent.compiled.get(node_id, ()))), shares_compiled=agent.shares_compiled,
        )  # fmt: skip

    def load(self, name: str, pool_node: str, gpu: int, model_id: str, size_gb: int = 10) -> None:
        """This slot begins to load this model; the site's agent says so."""
        self.warm(name, pool_node, gpu, model_id, size_gb)
        self.agents[SiteId(name)].loading[(pool_node, gpu)] = (model_id, self.now_us)
        self.report(name, after_us=0)

    def loaded(self, name: str) -> None:
        """All that loaded at a site is there; its agent says so."""
        self.agents[SiteId(name)].loading.clear()
        self.report(name)

    def bring(self, name: str) -> None:
        """The site's agent has all the copies that it was told to hold ahead of demand, and reports."""
        agent = self.agents[SiteId(name)]
        for one in agent.wanted.values():
            model = self.machine.context.state.models[one.model_id]
            agent.disk.add(one.model_id)
            if one.tier is Tier.GPU:
                held = agent.warm.setdefault((one.node_id, one.index or 0), {})
                for victim in one.evict:
                    held.pop(victim, None)
                held[one.model_id] = model.resident_bytes
            elif one.tier is Tier.HOST:
                agent.host.setdefault(one.node_id, set()).add(one.model_id)
        self.report(name)

    def submit(self, *specs: JobSpec, keys: tuple[str, ...] = ()) -> Reply:
        """A client submits these jobs in one message; ids are j1, j2, ... over the fleet's life."""
        request = self.request()
        submissions = tuple(
            Submission(
                job_id=JobId(f"j{len(self.recording)}-{index}"), spec=one,
                idempotency_key=keys[index] if keys else f"k{len(self.recording)}-{index}",
                payload_digest=repr(one), request_id="r",
            )
            for index, one in enumerate(specs)
        )  # fmt: skip
        self.happen(events.JobsSubmitted(request=request, submissions=submissions))
        return self.replies[request]

    def end_attempt(
        self, name: str, key: AttemptKey, state: AttemptState = AttemptState.SUCCEEDED,
        kind: FailureKind | None = None, after_us: int = 1_000, times: PhaseTimes = PhaseTimes(),
    ) -> Step:  # fmt: skip
        """The site's agent delivers the end of an attempt."""
        agent = self.agents[SiteId(name)]
        agent.event_seq += 1
        manifest = None
        if state is AttemptState.SUCCEEDED:
            artifact = Artifact(name="0.png", media_type="image/png", bytes=1, digest="sha256:" + "1" * 64)
            manifest = ResultManifest(key=key, artifacts=(artifact,), seed=0, simulated=False)
        failure = Failure(kind=kind, message="because") if kind is not None else None
        event = AttemptEvent(seq=EventSeq(agent.event_seq), key=key, state=state, manifest=manifest, failure=failure, times=times)
        return self.happen(events.AttemptsEnded(site_id=agent.site.site_id, session=agent.session, events=(event,)), after_us)

    def lose(self, name: str, pool_node: str, gpu: int) -> None:
        """The process of a slot died, and with it what it held; the next one starts. The site's agent says so."""
        agent = self.agents[SiteId(name)]
        agent.warm.pop((pool_node, gpu), None)
        agent.starting.add((pool_node, gpu))
        self.report(name)

    def started(self, name: str) -> None:
        """All processes of a site's slots are up; its agent says so."""
        self.agents[SiteId(name)].starting.clear()
        self.report(name)

    def running(self, name: str, key: AttemptKey, steps: int = 1) -> Step:
        """The site's agent reports that an attempt executes."""
        return self.report(name, progress=(AttemptProgress(key=key, state=AttemptState.RUNNING, steps_done=steps),))

    def wait(self, seconds: float, *, reporting: tuple[str, ...] = ()) -> None:
        """Let time pass in seconds, with timers firing when asked for; the named sites keep reporting."""
        end_us = self.now_us + int(seconds * SECOND)
        while self.now_us < end_us:
            deadline = self.machine.next_deadline()
            next_us = min(end_us, max(deadline, self.now_us + 1) if deadline is not None else end_us, self.now_us + SECOND)
            self.happen(events.TimerFired(), next_us - self.now_us)
            for name in reporting:
                self.report(name, after_us=0)

    def job(self, job_id: str) -> Job:
        """The job as last published."""
        return self.jobs[JobId(job_id)]

    def warm(self, name: str, pool_node: str, gpu: int, model_id: str, size_gb: int = 10) -> None:
        """From the next report on, this slot holds this model."""
        self.agents[SiteId(name)].warm.setdefault((pool_node, gpu), {})[model_id] = size_gb * GB

    def warm_gang(self, name: str, pool_node: str, lead: int, gang_size: int, model_id: str, size_gb: int = 10) -> None:
        """From the next report on, the block that begins at this slot holds this model for gangs."""
        for gpu in range(lead, lead + gang_size):
            self.agents[SiteId(name)].gangs.setdefault((pool_node, gpu), {})[model_id, gang_size] = size_gb * GB


def _state(agent: Agent, where: tuple[str, int], name: str, at_us: int) -> dict[str, Any]:
    loads, since_us = agent.loading.get(where, ("", 0))
    if loads != name:
        return {"state": ReplicaState.WARM}
    return {"state": ReplicaState.LOADING, "loading_us": at_us - since_us}


def in_regions(*regions: str) -> Constraints:
    """Only these regions."""
    return Constraints(regions=regions)


URGENT, BATCH = Priority.URGENT, Priority.BATCH
