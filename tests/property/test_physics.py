"""Laws of physics that hold for every model, shape and GPU: more work never takes less time, memory or money."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model import limits
from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.packaged import load_packaged
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us, gang_speedup_milli
from atoll.physics.flops import generation_flops
from atoll.physics.memory import peak_bytes
from atoll.physics.output import output_bytes
from atoll.physics.stack import Stack
from atoll.physics.terms import Run, Stage, terms

CATALOGUE = load_packaged()
MODELS = st.sampled_from(CATALOGUE.models)
GPUS = st.sampled_from(tuple(CATALOGUE.gpus.values()))
USUAL_SHAPES = st.builds(
    Shape,
    width=st.integers(8, 4_096),
    height=st.integers(8, 4_096),
    frames=st.integers(1, 300),
    steps=st.integers(1, 100),
    cfg_passes=st.integers(1, 3),
    batch=st.integers(1, 8),
)
# Any that is possible at all. Where physics says "never" for both of two that are compared, they are equal.
POSSIBLE_SHAPES = st.builds(
    Shape,
    width=st.integers(limits.SIDE_PX_MIN, limits.SIDE_PX_MAX),
    height=st.integers(limits.SIDE_PX_MIN, limits.FRAME_PX_MAX // limits.SIDE_PX_MAX),
    frames=st.integers(1, limits.FRAMES_MAX),
    steps=st.integers(1, limits.STEPS_MAX),
    cfg_passes=st.integers(1, limits.CFG_PASSES_MAX),
    batch=st.integers(1, limits.BATCH_MAX),
)
SHAPES = st.one_of(USUAL_SHAPES, POSSIBLE_SHAPES)
GANGS = st.sampled_from((1, 2, 4, 8))
STACKS = st.sampled_from(Stack)
RATES = ("memory_bytes_per_s", "fp32_flops", "fp16_flops", "fp8_flops", "fp4_flops", "h2d_bytes_per_s", "gpu_link_bytes_per_s")
GROWTHS = st.sampled_from(("width", "height", "frames", "steps", "cfg_passes", "batch"))


def _figures(model: ModelSpec, shape: Shape) -> tuple[int, int, int]:
    film = replace(shape, frames=max(shape.frames, 2))  # one frame is a PNG, larger than a film of two
    return generation_flops(model.physics, shape), peak_bytes(model, shape), output_bytes(model, film)


@settings(max_examples=200, deadline=None)
@given(
    model=MODELS,
    gpu=GPUS,
    shape=SHAPES,
    precision=st.sampled_from(Precision),
    growth=GROWTHS,
    by=st.integers(1, 64),
    gang=GANGS,
    stack=STACKS,
)
def test_more_never_costs_less(
    model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, growth: str, by: int, gang: int, stack: Stack
) -> None:
    larger = replace(shape, **{growth: getattr(shape, growth) + by})
    for one, other in zip(_figures(model, shape), _figures(model, larger), strict=True):
        assert one <= other
    less, more = (execution_us(model, one, gpu, precision, gang_size=gang, stack=stack) for one in (shape, larger))
    assert less <= more


def scaled(gpu: GpuType, factor: int) -> GpuType:
    """The same type with every rate so many times as high."""
    return replace(gpu, **{rate: getattr(gpu, rate) * factor for rate in RATES})


@settings(max_examples=200, deadline=None)
@given(
    model=MODELS,
    gpu=st.one_of(GPUS, GPUS.map(lambda gpu: replace(gpu, gpu_type=GpuTypeId("X1"), arch="none yet"))),
    shape=SHAPES,
    precision=st.sampled_from(Precision),
    factor=st.integers(2, 16),
    gang=GANGS,
    stack=STACKS,
)
def test_scaled_rates_scale_all_that_hangs_on_them(
    model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, factor: int, gang: int, stack: Stack
) -> None:
    """Every part of work is as many times shorter; launches and the latency of exchanges are the host's, and stay."""
    slow = Run(model=model, shape=shape, gpu=gpu, precision=precision, stack=stack, gang_size=gang)
    fast = replace(slow, gpu=scaled(gpu, factor))
    hosts = {Stage.OVERHEAD, Stage.HOST}
    of_rates = {term.effects: term.base_ns for term in terms(slow) if term.stage not in hosts and "exchange" not in term.effects}
    for term in terms(fast):
        if term.effects in of_rates and gpu.gpu_type != CPU:
            assert abs(term.base_ns * factor - of_rates[term.effects]) <= 2 * factor
    before, after = (execution_us(model, shape, one, precision, gang_size=gang, stack=stack) for one in (gpu, fast.gpu))
    assert before / factor - 8 <= after <= before


@settings(max_examples=200, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES, precision=st.sampled_from(Precision), rate=st.sampled_from(RATES), by=st.integers(2, 9))
def test_a_gpu_with_one_higher_rate_never_takes_longer(
    model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, rate: str, by: int
) -> None:
    faster = replace(gpu, **{rate: getattr(gpu, rate) * by})
    for gang in (1, 8):
        assert execution_us(model, shape, faster, precision, gang_size=gang) <= execution_us(model, shape, gpu, precision, gang_size=gang)


@settings(max_examples=200, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES, precision=st.sampled_from(Precision), gang=GANGS, stack=STACKS)
def test_a_gang_is_never_faster_than_its_size(
    model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, gang: int, stack: Stack
) -> None:
    assert 0 < gang_speedup_milli(model, shape, gpu, precision, gang, stack=stack) <= 1_000 * gang * 1.001
    assert gang_speedup_milli(model, shape, gpu, precision, 1, stack=stack) == 1_000


@settings(max_examples=200, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES, precision=st.sampled_from(Precision))
def test_times_are_positive_and_fit_the_core(model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision) -> None:
    found = execution_us(model, shape, gpu, precision)
    assert isinstance(found, int) and 0 < found <= limits.PREDICTED_US_MAX
    assert found == execution_us(model, shape, gpu, precision)


@settings(max_examples=100, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES)
def test_narrow_formats_never_slow_a_gpu_down(model: ModelSpec, gpu: GpuType, shape: Shape) -> None:
    half = execution_us(model, shape, gpu, Precision.BF16)
    assert execution_us(model, shape, gpu, Precision.FP8) <= half * 1.001 + 1


@settings(max_examples=100, deadline=None)
@given(
    model=MODELS,
    disk=st.integers(0, 10**12),
    h2d=st.integers(0, 10**12),
    faster=st.integers(0, 10**12),
)
def test_faster_legs_never_delay_a_cold_start(model: ModelSpec, disk: int, h2d: int, faster: int) -> None:
    assert stage_us(model, disk + faster, h2d, False) <= stage_us(model, disk, h2d, False)
    assert stage_us(model, disk, h2d + faster, False) <= stage_us(model, disk, h2d, False)
    assert stage_us(model, disk, h2d, True) <= stage_us(model, disk, h2d, False)
    assert transfer_us(model.weights_bytes, disk + faster, 0) <= transfer_us(model.weights_bytes, disk, 0)
    assert init_us(model) > 0
