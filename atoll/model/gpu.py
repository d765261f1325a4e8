"""A type of GPU, as the catalogue knows it.

Decides which precisions a type has units for; else figures only. A host without a GPU is a pool of type `cpu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.ids import GpuTypeId
from atoll.model.shape import Precision

CPU: Final = GpuTypeId("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """Data-sheet figures of one type. Rates are peaks per GPU; `estimated_fields` names guesses, `source` the origin of the rest."""

    gpu_type: GpuTypeId
    vendor: str
    arch: str
    memory_bytes: int
    memory_bytes_per_s: int
    fp32_flops: int
    fp16_flops: int
    fp8_flops: int = 0  # 0: the type has no such units
    fp4_flops: int = 0
    has_bf16: bool = True
    h2d_bytes_per_s: int
    gpu_link_bytes_per_s: int = 0
    usd_micros_per_hour: int = 0
    board_watts: int = 0  # 0: unknown
    estimated_fields: tuple[str, ...] = ()
    source: str = ""

    def supports(self, precision: Precision) -> bool:
        """Whether it can run at this precision. Narrow formats need units; wide ones run everywhere, perhaps slowly."""
        match precision:
            case Precision.FP8:
                return self.fp8_flops > 0
            case Precision.FP4:
                return self.fp4_flops > 0
            case Precision.BF16 | Precision.FP16 | Precision.FP32:
                return True
