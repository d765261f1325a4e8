"""A type of GPU, as the catalogue knows it.

Decides nothing; figures only. A host without a GPU is a pool of type `cpu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.ids import GpuTypeId

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
