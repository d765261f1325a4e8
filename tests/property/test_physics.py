"""Laws of physics that hold for every model, shape and GPU: more work never takes less time, memory or money."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.gpu import GpuType
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.packaged import load_packaged
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us
from atoll.physics.flops import generation_flops
from atoll.physics.memory import peak_bytes
from atoll.physics.output import output_bytes

CATALOGUE = load_packaged()
MODELS = st.sampled_from(CATALOGUE.models)
GPUS = st.sampled_from(tuple(CATALOGUE.gpus.values()))
SHAPES = st.builds(
    Shape,
    width=st.integers(8, 4_096),
    height=st.integers(8, 4_096),
    frames=st.integers(1, 300),
    steps=st.integers(1, 100),
    cfg_passes=st.integers(1, 3),
    batch=st.integers(1, 8),
)
GROWTHS = st.sampled_from(("width", "height", "frames", "steps", "cfg_passes", "batch"))
INT64 = 2**63


def _figures(model: ModelSpec, shape: Shape) -> tuple[int, int, int]:
    film = replace(shape, frames=max(shape.frames, 2))  # one frame is a PNG, larger than a film of two
    return generation_flops(model.physics, shape), peak_bytes(model, shape), output_bytes(model, film)


@settings(max_examples=200, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES, precision=st.sampled_from(Precision), growth=GROWTHS, by=st.integers(1, 64))
def test_more_never_costs_less(model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision, growth: str, by: int) -> None:
    larger = replace(shape, **{growth: getattr(shape, growth) + by})
    for less, more in zip(_figures(model, shape), _figures(model, larger), strict=True):
        assert less <= more
    assert execution_us(model, shape, gpu, precision) <= execution_us(model, larger, gpu, precision)


@settings(max_examples=200, deadline=None)
@given(model=MODELS, gpu=GPUS, shape=SHAPES, precision=st.sampled_from(Precision))
def test_times_are_positive_and_fit_the_core(model: ModelSpec, gpu: GpuType, shape: Shape, precision: Precision) -> None:
    found = execution_us(model, shape, gpu, precision)
    assert isinstance(found, int) and 0 < found < INT64
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
