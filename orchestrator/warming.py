"""Machine code before the first job: a fleet of two sites that nobody sees, and a few decisions in it.

The loops of placing are compiled when they are first called, which takes seconds where the compiler's cache is empty (a fresh install, a
new processor). A first job would wait for it, and with it every heartbeat and every other caller. So a core of its own makes the decisions
that call each of them, before anything is served. Decides which those are; must not know the fleet that will be served.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import structlog

from atoll.model.gpu import GpuType
from atoll.model.ids import (
    ChangeSeq,
    FleetId,
    Generation,
    GpuTypeId,
    JobId,
    ModelId,
    PoolId,
    SiteId,
    TenantId,
    Term,
)
from atoll.model.ids import EventSeq as FirstSeq
from atoll.model.job import JobSpec
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import PROTOCOL_VERSION, NodeFacts, SiteHello, SiteReport, SlotFacts
from atoll.model.shape import Shape
from atoll.model.site import LinkSpec, NodeSpec, PoolSpec, SiteRuntime, SiteSpec
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.events import Event, RequestRef, SessionRef, Submission
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.placement.machine_code import COMPILED
from orchestrator.core.placement.policy import Policy
from orchestrator.stale_code import forget_stale, is_kept

_log = structlog.get_logger(__name__)

_GB: Final = 10**9
_GPU: Final = GpuTypeId("warming")
_SHAPE: Final = Shape(width=1024, height=1024, steps=20)
_NODE: Final = NodeSpec(host_memory_bytes=64 * _GB, disk_cache_bytes=500 * _GB, disk_bytes_per_s=_GB)
_POOL: Final = PoolSpec(pool_id=PoolId("p"), gpu_type=_GPU, nodes=1, gpus_per_node=2, node=_NODE)
# Two models of which a GPU holds one: either makes the other leave.
_MODELS: Final = ("warm", "cold")
_ROUNDS: Final = 2
_SIZES: Final = (1, 2, 1, 1)
# Longer than jobs are collected before they are placed; all of it is over before a site counts as silent.
_STEP_US: Final = 100_000


def warm_up(policy: Policy) -> None:
    """Returns when every loop of placing is machine code, and none is kept of other versions; at once where there is no compiler."""
    if not COMPILED:
        return
    if not is_kept():
        _log.info(
            "compiling", what="the loops of placing", takes="some 10 s, once for each version", calls="are answered from 'serving' on"
        )
    forget_stale()
    machine = _fleet(policy)
    now_us = _STEP_US
    for number in range(_ROUNDS):
        # Several classes at once: which comes first is weighed too; more than fits, so that some wait; and gangs that wait for others.
        jobs = tuple(
            Submission(
                job_id=JobId(f"{name}-{number}-{copy}"), idempotency_key=f"{name}-{number}-{copy}", payload_digest="", request_id="",
                spec=JobSpec(tenant=TenantId("t"), model_id=ModelId(name), prompt="p", shape=_SHAPE, gang_size=size),
            )
            for name in _MODELS
            for copy, size in enumerate(_SIZES)
        )  # fmt: skip
        machine.handle(events.JobsSubmitted(request=RequestRef(1), submissions=jobs), now_us)
        now_us += _STEP_US
        machine.handle(events.TimerFired(), now_us)
        machine.quote_job(jobs[0].spec, now_us)


def _fleet(policy: Policy) -> Machine:
    """Two sites, one near the other's weights; the nearer has a model in its GPU's memory."""
    gpu = GpuType(
        gpu_type=_GPU, vendor="", arch="", memory_bytes=24 * _GB, memory_bytes_per_s=_GB * 1_000,
        fp32_flops=10**14, fp16_flops=10**15, h2d_bytes_per_s=50 * _GB, usd_micros_per_hour=1_000_000,
    )  # fmt: skip
    stored = Stored(fleet_id=FleetId("warming"), term=Term(1), fleet_time_us=0, last_audit_seq=ChangeSeq(0))
    machine = new_machine(stored, policy, {_GPU: gpu})
    sites = tuple(
        SiteSpec(
            site_id=SiteId(name), region=name, pools=(_POOL,), wan_bytes_per_s=_GB, origin_bytes_per_s=_GB // 10,
            weights_url=f"http://{name}:1",
        )
        for name in ("a", "b")
    )  # fmt: skip
    links = tuple(LinkSpec(src=SiteId(src), dst=SiteId(dst), rtt_us=1_000, bytes_per_s=_GB) for src, dst in (("a", "b"), ("b", "a")))
    request = RequestRef(1)
    first: list[Event] = [
        events.TookOver(fleet_id=FleetId("warming"), term=Term(1)),
        events.SitesApplied(request=request, actor="", reason="", sites=sites, links=links),
        events.ModelsAdded(request=request, actor="", models=tuple(_model(name) for name in _MODELS)),
    ]
    for number, site in enumerate(sites, 1):
        first += _come(site, SessionRef(number), held=_MODELS[:number] if number == 1 else ())
    for now_us, event in enumerate(first, 1):
        machine.handle(event, now_us)
    return machine


def _come(site: SiteSpec, session: SessionRef, held: tuple[str, ...]) -> list[Event]:
    """A site connects and reports what it holds."""
    hello = SiteHello(
        site_id=site.site_id, fleet_id=FleetId(""), term=Term(0), protocol_version=PROTOCOL_VERSION, agent_version="",
        boot_id="b", runtime=SiteRuntime.RAY, pools=site.pools, next_event_seq=FirstSeq(1),
    )  # fmt: skip
    replicas = tuple(
        ReplicaFact(model_id=ModelId(name), state=ReplicaState.WARM, memory_bytes=_model(name).resident_bytes) for name in held
    )
    facts = NodeFacts(
        pool_id=_POOL.pool_id,
        node_id=_POOL.node_id(0),
        host_free_bytes=32 * _GB,
        disk_free_bytes=400 * _GB,
        disk_models=tuple(ModelId(name) for name in held),
        slots=tuple(SlotFacts(index=index, memory_free_bytes=_GB, replicas=replicas) for index in range(_POOL.gpus_per_node)),
    )
    report = SiteReport(seq=1, full=True, generation=Generation(0), nodes=(facts,))
    return [
        events.SiteConnected(site_id=site.site_id, session=session, hello=hello),
        events.SiteReported(site_id=site.site_id, session=session, report=report),
    ]


def _model(name: str) -> ModelSpec:
    physics = ModelPhysics(
        kind=DenoiserKind.TRANSFORMER, denoiser_params=_GB, tokenwise_params=_GB, text_params=_GB, vae_params=_GB // 10,
        layers=30, hidden=3_000, text_tokens=256, reference=_SHAPE, reference_tokens=4_096,
        reference_forward_flops=10**13, reference_attention_flops=10**12, reference_decode_flops=10**13,
    )  # fmt: skip
    weights_bytes = 16 * _GB
    spec = ModelSpec(
        model_id=ModelId(name), title=name, family="", modality=Modality.IMAGE, pipeline_class="FluxPipeline",
        weights_bytes=weights_bytes, resident_bytes=weights_bytes, activation_bytes=_GB, default_shape=_SHAPE, physics=physics,
    )  # fmt: skip
    return replace(spec, weights_digest="sha256:" + "0" * 64, origin_path=name)
