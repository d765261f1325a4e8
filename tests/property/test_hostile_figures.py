"""Figures at the ends of what is admitted, all together: nothing that physics says, or that is computed from it, leaves int64.

Whatever is drawn passes the checks that clients, operators and agents pass, so the bounds are those of the code and not of this test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model import limits
from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import AdapterId, GpuTypeId, ModelId, PoolId, SiteId
from atoll.model.job import Constraints, JobSpec, Priority
from atoll.model.modelspec import AdapterUse, DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.quote import Quote
from atoll.model.report import FetchFact, RateFacts
from atoll.model.shape import Precision, Shape
from atoll.model.site import LinkSpec, NodeSpec, PoolSpec, SiteSpec
from atoll.packaged import load_packaged
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us
from atoll.physics.memory import peak_bytes
from atoll.physics.output import output_bytes
from atoll.physics.stack import Stack
from atoll.wire import bounds
from atoll.wire.jobs import job_from_proto, job_spec_from_proto, job_spec_to_proto, job_to_proto
from atoll.wire.models import model_spec_from_proto, model_spec_to_proto
from atoll.wire.quotes import quote_from_proto, quote_to_proto
from atoll.wire.reports import report_from_proto, report_to_proto
from atoll.wire.sites import link_spec_from_proto, link_spec_to_proto, site_spec_from_proto, site_spec_to_proto
from atoll.wire.stored import decode_job_progress, decode_job_spec, encode_job_progress, encode_job_spec
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.outputs import SubmitReply
from orchestrator.core.placement import kernel, vectors
from orchestrator.core.placement.policy import BOUNDS, PRIORITY_WEIGHT_MILLI, Policy
from orchestrator.core.placement.rows import (
    UNREACHABLE,
    Ints,
    Out,
    State,
)
from tests.property.exact_decisions import exactly, reckoned_exactly, worst_tables
from tests.unit.fleet_of_machines import GB, GPUS, Fleet, adapter, model, pool, site, spec

CATALOGUE = load_packaged()
INT64 = 2**63
PRECISIONS, STACKS, GANGS = st.sampled_from(Precision), st.sampled_from(Stack), st.sampled_from(limits.GANG_SIZES)


def between(low: int, high: int, *usual: int) -> st.SearchStrategy[int]:
    """Mostly an end or what is usual, else anything."""
    return st.one_of(st.sampled_from((low, high, *usual)), st.integers(low, high))


@st.composite
def shapes(draw: st.DrawFn, *, modest: bool = False) -> Shape:
    """Any that is possible at all; `modest`: that a submission may name."""
    width = draw(between(limits.SIDE_PX_MIN, limits.SIDE_PX_MAX, 1_024))
    height = draw(between(limits.SIDE_PX_MIN, min(limits.SIDE_PX_MAX, limits.FRAME_PX_MAX // width), 1_024))
    frames, batch = draw(between(1, limits.FRAMES_MAX, 81)), draw(between(1, limits.BATCH_MAX))
    if modest:
        frames = min(frames, limits.JOB_PX_MAX // (width * height))
        batch = min(batch, limits.JOB_PX_MAX // (width * height * frames))
    passes = draw(st.integers(1, limits.CFG_PASSES_MAX))
    return Shape(
        width=width, height=height, frames=frames, steps=draw(between(1, limits.STEPS_MAX, 50)), cfg_passes=passes, batch=batch
    ).check()


_RATES, _FLOPS = between(1, limits.RATE_BYTES_PER_S_MAX, 10**9), between(1, 10**18, 10**14)
_BYTES, _COUNTS = between(0, limits.BYTES_MAX, 10**10), between(0, bounds.COUNT_MAX, 0, 10**9)


@st.composite
def gpus(draw: st.DrawFn, name: str = "odd") -> GpuType:
    """A type as somebody's own table may declare it; "cpu" has a formula of its own."""
    return GpuType(
        gpu_type=draw(st.sampled_from((GpuTypeId(name), CPU))),
        vendor="t",
        arch=draw(st.sampled_from(("Hopper", "none yet"))),
        memory_bytes=draw(between(1, limits.BYTES_MAX, 80 * GB)),
        memory_bytes_per_s=draw(_RATES),
        fp32_flops=draw(_FLOPS),
        fp16_flops=draw(_FLOPS),
        fp8_flops=draw(st.one_of(st.just(0), _FLOPS)),
        fp4_flops=draw(st.one_of(st.just(0), _FLOPS)),
        has_bf16=draw(st.booleans()),
        h2d_bytes_per_s=draw(_RATES),
        gpu_link_bytes_per_s=draw(st.one_of(st.just(0), _RATES)),
        usd_micros_per_hour=draw(between(0, limits.PRICE_USD_MICROS_MAX, 4_000_000)),
    )


@st.composite
def models(draw: st.DrawFn, name: str = "odd") -> ModelSpec:
    """A model as somebody may add it."""
    counts: dict[str, Any] = {field: draw(_COUNTS) for field in (
        "denoiser_params", "tokenwise_params", "text_params", "vae_params", "layers", "hidden", "text_tokens", "reference_tokens",
        "reference_forward_flops", "reference_attention_flops", "reference_decode_flops",
    )}  # fmt: skip
    shape = draw(shapes())
    physics = ModelPhysics(
        kind=draw(st.sampled_from(DenoiserKind)), reference=shape, temporal_factor=draw(between(1, limits.FRAMES_MAX, 4)), **counts
    )
    made = replace(
        model(name),
        modality=draw(st.sampled_from((Modality.IMAGE, Modality.VIDEO))),
        weights_bytes=draw(_BYTES),
        resident_bytes=draw(_BYTES),
        activation_bytes=draw(_BYTES),
        default_shape=shape,
        physics=physics,
        compiled=draw(st.booleans()),
    )
    return model_spec_from_proto(model_spec_to_proto(made))


MODELS = st.one_of(st.sampled_from(CATALOGUE.models), models())
GPU_TYPES = st.one_of(st.sampled_from(tuple(CATALOGUE.gpus.values())), gpus())


@settings(max_examples=300, deadline=None)
@given(model=MODELS, gpu=GPU_TYPES, shape=shapes(), precision=PRECISIONS, gang=GANGS, stack=st.one_of(st.none(), STACKS))
def test_physics_says_a_year_at_most(
    model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, gang: int, stack: Stack | None
) -> None:
    assert 0 < execution_us(model, shape, gpu, precision, gang_size=gang, stack=stack) <= limits.PREDICTED_US_MAX
    assert 0 <= peak_bytes(model, shape) <= limits.NEEDED_BYTES_MAX
    assert 0 < output_bytes(model, shape) < INT64


@settings(max_examples=100, deadline=None)
@given(model=MODELS, disk=between(0, limits.RATE_BYTES_PER_S_MAX), h2d=between(0, limits.RATE_BYTES_PER_S_MAX), size=_BYTES)
def test_so_do_the_legs_of_a_cold_start(model: ModelSpec, disk: int, h2d: int, size: int) -> None:
    for found in (stage_us(model, disk, h2d, False), stage_us(model, disk, h2d, True), init_us(model), transfer_us(size, disk, 10**17)):
        assert 0 <= found <= limits.PREDICTED_US_MAX


# --- a whole fleet of such figures ----------------------------------------------------------------------------------------------


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Each exchange rate at an end of its bounds, or as it is by default."""
    rates = (
        "seconds_per_dollar", "k_e_milli", "tardy_milli", "spread_milli", "hazard_per_million_hours", "load_failure_ppm", "link_milli",
        "link_used_milli", "fragmentation_milli", "residence_ms", "last_copy_milli", "tie_us", "tie_milli", "launch_prior_per_hour_milli",
    )  # fmt: skip
    usual = Policy()
    changes: dict[str, Any] = {name: draw(st.sampled_from((getattr(usual, name), *BOUNDS[name]))) for name in rates}
    weights = sorted((draw(st.sampled_from((1_000, *PRIORITY_WEIGHT_MILLI))) for _ in Priority), reverse=True)
    return replace(usual, priority_weight_milli=dict(zip(Priority, weights, strict=True)), **changes).check()


@st.composite
def sites(draw: st.DrawFn, name: str, gpu_types: tuple[GpuTypeId, ...]) -> SiteSpec:
    """A site as an operator may declare it."""
    node = NodeSpec(
        host_memory_bytes=draw(_BYTES),
        disk_cache_bytes=draw(between(0, limits.BYTES_MAX, limits.BYTES_MAX)),
        disk_bytes_per_s=draw(_RATES),
        h2d_bytes_per_s=draw(st.one_of(st.just(0), _RATES)),
    )
    made = replace(
        site(name),
        pools=(
            PoolSpec(
                pool_id=PoolId("p"),
                gpu_type=draw(st.sampled_from(gpu_types)),
                nodes=2,
                gpus_per_node=2,
                node=node,
                usd_micros_per_gpu_hour=draw(between(0, limits.PRICE_USD_MICROS_MAX)),
                gpu_memory_bytes=draw(between(0, limits.BYTES_MAX, 0, limits.BYTES_MAX)),
            ),
            pool("usual"),
        ),
        wan_bytes_per_s=draw(_RATES),
        origin_bytes_per_s=draw(_RATES),
        lan_bytes_per_s=draw(_RATES),
        egress_usd_micros_per_gb=draw(between(0, limits.PRICE_USD_MICROS_MAX)),
        preemptions_per_million_gpu_hours=draw(_COUNTS),
        weights_url="http://peer:1",
    )
    return site_spec_from_proto(site_spec_to_proto(made))


@st.composite
def jobs(draw: st.DrawFn, model_id: ModelId) -> JobSpec:
    """A job as a client may submit it, but for what the catalogue says of a model's sizes."""
    made = spec(
        model_id,
        shape=draw(shapes()),
        precision=draw(PRECISIONS),
        priority=draw(st.sampled_from(Priority)),
        gang_size=draw(st.sampled_from((1, 1, 2))),
        deadline_ms=draw(st.sampled_from((0, 1_000, limits.DEADLINE_MS_MAX))),
        adapters=draw(st.sampled_from(((), (AdapterUse(adapter_id=AdapterId("heavy")),)))),
        constraints=Constraints(max_price_usd_micros=draw(st.sampled_from((0, 1, limits.PRICE_USD_MICROS_MAX)))),
        origin_site=draw(st.sampled_from((None, SiteId("a")))),
    )
    return job_spec_from_proto(job_spec_to_proto(made))


@settings(max_examples=300, deadline=None)
@given(tables=worst_tables())
def test_a_decision_over_the_largest_figures_is_exact(tables: tuple[Any, ...]) -> None:
    compiled, vectored = (np.zeros((len(tables[0]), len(Out)), dtype=np.int64) for _ in range(2))
    chosen, exact = exactly(*tables, compiled)
    assert tuple(map(int, kernel.decide_rows(*[*tables, compiled]))) == chosen
    assert tuple(map(int, vectors.decide(*[*tables, vectored]))) == chosen
    assert np.array_equal(compiled.astype(object), exact) and np.array_equal(vectored.astype(object), exact)
    assert (exact[exact[:, Out.STATE] != State.IMPOSSIBLE, Out.TOTAL] < UNREACHABLE).all()


def _reported(fleet: Fleet, name: str, data: st.DataObject, held: tuple[ModelId, ...]) -> None:
    """The agent of a site says that its slots hold these, as large as a report may say, that it fetches, and how fast it is."""
    agent = fleet.agents[SiteId(name)]
    size = data.draw(between(0, limits.BYTES_MAX, GB), label="held_bytes")
    for gpu in range(2):
        agent.warm[("p-0", gpu)] = dict.fromkeys(held, size)
    agent.disk_of["p-1"] = set(held)
    fleet.report(name)
    told = fleet.recording[-1][1]
    assert isinstance(told, events.SiteReported)
    flow = FetchFact(model_id=ModelId("m"), bytes_done=0, bytes_total=data.draw(_BYTES, label="flow_bytes"))
    rates = RateFacts(
        disk_bytes_per_s=data.draw(_RATES, label="disk"),
        h2d_bytes_per_s=data.draw(_RATES, label="h2d"),
        origin_bytes_per_s=data.draw(_RATES, label="origin"),
    )
    agent.report_seq += 1
    nodes = tuple(replace(node, fetching=(flow,)) if node.node_id == "p-0" else node for node in told.report.nodes)
    report = replace(told.report, seq=agent.report_seq, nodes=nodes, rates=rates)
    report = report_from_proto(report_to_proto(report))
    fleet.happen(events.SiteReported(site_id=agent.site.site_id, session=agent.session, report=report))


def _through(there: Callable[[Any], Any], back: Callable[[Any], Any], value: Any) -> None:
    """Whoever reads it is told the same."""
    assert back(there(value)) == value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(data=st.data())
def test_a_fleet_of_extremes_goes_on_deciding(data: st.DataObject) -> None:
    """What it cannot run it rejects; what it tells, stores and takes up again is read without an objection."""
    types = {**GPUS, **{gpu.gpu_type: gpu for gpu in data.draw(st.lists(gpus(), max_size=2), label="gpus")}}
    one, other = (data.draw(sites(name, tuple(types)), label=name) for name in ("a", "b"))
    odd = data.draw(models(), label="model")
    seen: list[Ints] = []
    with reckoned_exactly(seen):
        fleet = Fleet(one, other, models=(model("m"), odd, model("n", 3)), policy=data.draw(policies(), label="policy"), gpus=types)
        heavy = replace(adapter("heavy", "m", "odd", "n"), weights_bytes=data.draw(between(1, limits.BYTES_MAX), label="adapter")).check()
        fleet.ask(events.AdaptersAdded, actor="t", adapters=(heavy,))
        link = LinkSpec(
            src=SiteId("a"), dst=SiteId("b"), rtt_us=data.draw(between(0, bounds.TIME_US_MAX), label="rtt"),
            bytes_per_s=data.draw(_RATES, label="link"), egress_usd_micros_per_gb=data.draw(between(0, limits.PRICE_USD_MICROS_MAX)),
        )  # fmt: skip
        links = (link_spec_from_proto(link_spec_to_proto(link)),)
        fleet.ask(events.SitesApplied, actor="t", reason="", sites=(one, other), links=links)
        for name in ("a", "b"):
            _reported(fleet, name, data, (ModelId("n"), ModelId("odd")))
        for number in range(4):
            asked = data.draw(jobs(data.draw(st.sampled_from((ModelId("m"), ModelId("n"), ModelId("odd"))))), label="job")
            quote = fleet.machine.quote_job(asked, fleet.now_us)
            if isinstance(quote, Quote):
                _through(quote_to_proto, quote_from_proto, quote)
            reply = fleet.submit(asked, replace(asked, prompt=str(number)))
            assert isinstance(reply, SubmitReply)
        fleet.wait(3, reporting=("a",))
    for out in seen:
        assert (out[out[:, Out.STATE] != State.IMPOSSIBLE, Out.TOTAL] < UNREACHABLE).all()
    for job in fleet.jobs.values():
        _through(job_to_proto, job_from_proto, replace(job, payload_digest="digest"))
        kept = decode_job_progress(encode_job_progress(job), decode_job_spec(encode_job_spec(job.spec)))
        assert kept.attempts == job.attempts
    again = restore(fleet.machine.snapshot(), fleet.policy, types)
    assert again.snapshot() == fleet.machine.snapshot()
