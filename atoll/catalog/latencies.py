"""A table of published generation times -> typed rows, names as they were published.

Decides which columns such a table has and which figures are possible. Must not know models, GPUs or stacks: whether a name is known is the
reader's question, so an unknown one is no mistake here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from atoll.catalog.csv_rows import Row, parse_rows
from atoll.model import limits

US: Final = 1_000_000
# A month: a longer generation is a mistake of units.
US_MAX: Final = 31 * 24 * 3_600 * US
GPUS_MAX: Final = 1_024
NAME_CHARS_MAX: Final = 200
_REQUIRED: Final = frozenset(
    {"model", "resolution", "frames", "steps", "cfg_forwards", "batch", "precision", "optimisation", "gpu", "n_gpus", "seconds"}
)
METRICS: Final = ("e2e_s", "denoise_s", "per_step_s", "gpu_s_per_image_throughput", "decode_s")
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRow:
    """One published time. `size` is None where the resolution is none of pixels; `steps` 0 where nothing is denoised; `cfg_passes` 0
    where the model's own guidance was used."""

    line: int
    model: str
    resolution: str
    size: tuple[int, int] | None
    frames: int
    steps: int
    cfg_passes: int
    batch: int
    precision: str
    optimisation: str
    gpu: str
    gpus: int
    parallelism: str
    seconds_us: int
    metric: str
    split: str
    source: str
    cells: dict[str, str]  # as written


def parse_latencies(text: str, file_name: str) -> tuple[LatencyRow, ...]:
    """All rows of a table with at least the columns of published times. Raises SourceErrors."""
    return parse_rows(text, file_name, _REQUIRED, _row)


def _row(row: Row) -> LatencyRow:
    for column in ("model", "gpu", "optimisation", "resolution", "precision"):
        if len(row.cells[column]) > NAME_CHARS_MAX:
            row.wrong(column, f"at most {NAME_CHARS_MAX} characters")
    for column in ("model", "gpu"):
        if not row.text(column):
            row.wrong(column, "a name")
    match = _SIZE.match(row.text("resolution"))
    return LatencyRow(
        line=row.line,
        model=row.text("model"),
        resolution=row.text("resolution"),
        size=(int(match[1]), int(match[2])) if match else None,
        frames=row.whole("frames", 1, limits.FRAMES_MAX, default=1),
        steps=row.whole("steps", 0, limits.STEPS_MAX),
        cfg_passes=row.whole("cfg_forwards", 1, limits.CFG_PASSES_MAX, default=1),
        batch=row.whole("batch", 1, limits.BATCH_MAX, default=1),
        precision=row.text("precision").lower(),
        optimisation=row.text("optimisation"),
        gpu=row.text("gpu"),
        gpus=row.whole("n_gpus", 1, GPUS_MAX, default=1),
        parallelism=_optional(row, "parallelism"),
        seconds_us=row.figure("seconds", US, 1, US_MAX),
        metric=_optional(row, "metric") or METRICS[0],
        split=_optional(row, "split"),
        source=_optional(row, "source"),
        cells=row.cells,
    )


def _optional(row: Row, column: str) -> str:
    return row.text(column) if column in row.cells else ""
