"""Seconds of execution on a GPU: the larger of arithmetic and memory traffic, plus the launch of each step. Pure."""

from __future__ import annotations

from atoll.model.gpu import CPU, GpuType
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics.flops import generation_flops

# Achieved share of the dense peak, in thousandths: medians of published generation times are near a half on data-centre GPUs in eager mode.
_ETA_MILLI = 450
# Achieved share of the memory bandwidth.
_BETA_MILLI = 700
# Host work per denoising step that the GPU waits for.
_LAUNCH_US = 5_000
# A tiny pipeline on a CPU slot spends its time in Python, not in arithmetic: about 40 ms a step were measured on two shared cores.
_CPU_LAUNCH_US = 40_000


def peak_flops(gpu: GpuType, precision: Precision) -> int:
    """Dense peak of the units that this precision uses; wide formats fall back to what the type has."""
    match precision:
        case Precision.FP32:
            return gpu.fp32_flops
        case Precision.FP8:
            return gpu.fp8_flops or gpu.fp16_flops
        case Precision.FP4:
            return gpu.fp4_flops or gpu.fp8_flops or gpu.fp16_flops
        case Precision.BF16 | Precision.FP16:
            return gpu.fp16_flops


def execution_us(model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision) -> int:
    """Microseconds to execute a job on one GPU."""
    flops = generation_flops(model.physics, shape)
    peak = max(peak_flops(gpu, precision), 1)
    compute_us = flops * 1_000_000 * 1_000 // (peak * _ETA_MILLI)
    forwards = shape.steps * shape.cfg_passes
    traffic_us = model.weights_bytes * forwards * 1_000_000 * 1_000 // (max(gpu.memory_bytes_per_s, 1) * _BETA_MILLI)
    launch_us = _CPU_LAUNCH_US if gpu.gpu_type == CPU else _LAUNCH_US
    return max(compute_us, traffic_us) + shape.steps * launch_us
