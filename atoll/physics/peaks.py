"""Which peak of a GPU an arithmetic format can use.

Decides what stands in for a format that a GPU has no units for. Must not know what share of a peak is reached.
"""

from __future__ import annotations

from typing import assert_never

from atoll.model.gpu import GpuType
from atoll.model.shape import Precision


def used_precision(gpu: GpuType, precision: Precision) -> Precision:
    """The format that this type really computes in: one it has no units for falls back to a wider one."""
    match precision:
        case Precision.FP4:
            return precision if gpu.fp4_flops else used_precision(gpu, Precision.FP8)
        case Precision.FP8:
            return precision if gpu.fp8_flops else used_precision(gpu, Precision.BF16)
        case Precision.BF16:
            return precision if gpu.fp16_flops and gpu.has_bf16 else Precision.FP32
        case Precision.FP16:
            return precision if gpu.fp16_flops else Precision.FP32
        case Precision.FP32:
            return precision
    assert_never(precision)


def peak_flops(gpu: GpuType, precision: Precision) -> int:
    """Dense peak that arithmetic of this format can use on this type, FLOP/s."""
    match used_precision(gpu, precision):
        case Precision.FP4:
            return gpu.fp4_flops
        case Precision.FP8:
            return gpu.fp8_flops
        case Precision.FP16 | Precision.BF16:
            return gpu.fp16_flops
        case Precision.FP32:
            return gpu.fp32_flops or gpu.fp16_flops


def weight_bits(precision: Precision) -> int:
    """Bits of one parameter in this format."""
    match precision:
        case Precision.FP32:
            return 32
        case Precision.FP16 | Precision.BF16:
            return 16
        case Precision.FP8:
            return 8
        case Precision.FP4:
            return 4
    assert_never(precision)
