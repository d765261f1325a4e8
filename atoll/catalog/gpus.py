"""The table of GPU types -> `GpuType`s.

Decides which columns count: what a process can use and what is achieved, not what the box says.
"""

from __future__ import annotations

from typing import Final

from atoll.catalog.csv_rows import Row, read_rows
from atoll.catalog.problems import Problems
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, parse_gpu_type

_GIB: Final = 2**30
_GB: Final = 10**9
_TFLOPS: Final = 10**12
# An exaflop a second on one device: beyond it a unit is wrong.
_FLOPS_MAX: Final = 10**18
_USD: Final = 10**6
# First that is known: what a fleet of rented GPUs pays, then the list price of hyperscalers, then spot.
_PRICE_COLUMNS: Final = ("usd_h_neocloud_od", "usd_h_hyperscaler_od", "usd_h_spot")
_COLUMNS: Final = frozenset(
    {
        "gpu", "vendor", "arch", "memory_gib_usable", "mem_bw_gbs", "fp32_dense_tflops", "fp16_dense_tflops", "bf16_supported",
        "fp8_dense_tflops", "fp4_dense_tflops", "h2d_achieved_gbs_est", "gpu_link_gbs_per_dir", "tdp_w", "spec_source", "estimated_fields",
        *_PRICE_COLUMNS,
    }
)  # fmt: skip


def parse_gpus(text: str, file_name: str) -> dict[GpuTypeId, GpuType]:
    """GPU types by name, in the order of the table. Raises SourceErrors."""
    problems = Problems(file_name)
    found: dict[GpuTypeId, GpuType] = {}
    for row in read_rows(text, problems, _COLUMNS):
        try:
            gpu_type = parse_gpu_type("gpu", row.text("gpu"))
        except FieldError as error:
            problems.add_field(row.line, error)
            continue
        if gpu_type in found:
            row.wrong("gpu", "each GPU type once")
        found[gpu_type] = _gpu(row, gpu_type)
    problems.check()
    return found


def _gpu(row: Row, gpu_type: GpuTypeId) -> GpuType:
    if row.text("bf16_supported") not in {"0", "1"}:
        row.wrong("bf16_supported", "0 or 1")
    return GpuType(
        gpu_type=gpu_type,
        vendor=row.text("vendor"),
        arch=row.text("arch"),
        memory_bytes=row.figure("memory_gib_usable", _GIB, 1, limits.BYTES_MAX),
        memory_bytes_per_s=row.figure("mem_bw_gbs", _GB, 1, limits.RATE_BYTES_PER_S_MAX),
        fp32_flops=row.figure("fp32_dense_tflops", _TFLOPS, 1, _FLOPS_MAX),
        fp16_flops=row.figure("fp16_dense_tflops", _TFLOPS, 1, _FLOPS_MAX),
        fp8_flops=row.figure("fp8_dense_tflops", _TFLOPS, 0, _FLOPS_MAX, default=0),
        fp4_flops=row.figure("fp4_dense_tflops", _TFLOPS, 0, _FLOPS_MAX, default=0),
        has_bf16=row.text("bf16_supported") == "1",
        h2d_bytes_per_s=row.figure("h2d_achieved_gbs_est", _GB, 1, limits.RATE_BYTES_PER_S_MAX),
        gpu_link_bytes_per_s=row.figure("gpu_link_gbs_per_dir", _GB, 0, limits.RATE_BYTES_PER_S_MAX, default=0),
        usd_micros_per_hour=_price(row),
        board_watts=row.figure("tdp_w", 1, 0, 100_000, default=0),
        estimated_fields=tuple(name for name in row.text("estimated_fields").split(";") if name),
        source=row.text("spec_source"),
    )


def _price(row: Row) -> int:
    for column in _PRICE_COLUMNS:
        if row.text(column):
            return row.figure(column, _USD, 0, limits.PRICE_USD_MICROS_MAX)
    return 0
