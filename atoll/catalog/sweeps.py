"""Tables of measured sweeps over batches and gangs, in the columns of the ml-energy benchmark -> the same typed rows as published times.

Decides which columns such a table has, and what its software was where they do not say: xDiT without a compiler and without a cache, which
runs the eager modules of diffusers, with each pipeline's own guidance. `atoll/data/README.md` tells how that is known. Must not know models
or GPUs: a name that nobody knows is kept as it stands.
"""

from __future__ import annotations

from typing import Final

from atoll.catalog.csv_rows import Row, parse_rows
from atoll.catalog.latencies import GPUS_MAX, METRICS, NAME_CHARS_MAX, US, US_MAX, LatencyRow, parse_latencies
from atoll.model import limits

# What of the benchmark's columns a time hangs on.
COLUMNS: Final = frozenset(
    {"model_id", "gpu", "num_gpus", "ulysses", "ring", "batch", "steps", "width", "height", "frames", "batch_latency_s", "precision"}
)
# No table of latencies has it, each of the benchmark does.
_MARK: Final = "batch_latency_s"
SOURCE: Final = "ml-energy leaderboard (0cd52da): xDiT sweep"
_PRECISIONS: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# The benchmark names chips; its H100 are those of 80 GB HBM3 on a board with NVSwitch.
_BOARDS: Final = {"H100": "H100-SXM"}
# What the benchmark runs diffusers' modules with: no compiler, no cache.
_STACK: Final = "eager"


def parse_times(text: str, file_name: str) -> tuple[LatencyRow, ...]:
    """All rows of a table of times, whichever of the two layouts its header has. Raises SourceErrors."""
    header = {name.strip(' "\r') for name in text.partition("\n")[0].split(",")}
    return parse_sweep(text, file_name) if _MARK in header else parse_latencies(text, file_name)


def parse_sweep(text: str, file_name: str) -> tuple[LatencyRow, ...]:
    """All rows of a table with at least the columns of a sweep. Raises SourceErrors."""
    return parse_rows(text, file_name, COLUMNS, _row)


def _row(row: Row) -> LatencyRow:
    for column in ("model_id", "gpu", "precision"):
        if len(row.cells[column]) > NAME_CHARS_MAX:
            row.wrong(column, f"at most {NAME_CHARS_MAX} characters")
        if not row.text(column):
            row.wrong(column, "a name")
    width, height = (row.whole(column, 1, limits.SIDE_PX_MAX) for column in ("width", "height"))
    gpus, ulysses, ring = (row.whole(column, 1, GPUS_MAX, default=1) for column in ("num_gpus", "ulysses", "ring"))
    precision = row.text("precision").lower()
    return LatencyRow(
        line=row.line,
        model=row.text("model_id"),
        resolution=f"{width}x{height}",
        size=(width, height),
        frames=row.whole("frames", 1, limits.FRAMES_MAX, default=1),
        steps=row.whole("steps", 0, limits.STEPS_MAX),
        cfg_passes=0,
        batch=row.whole("batch", 1, limits.BATCH_MAX),
        precision=_PRECISIONS.get(precision, precision),
        # GPUs that split neither heads nor tokens are a gang that nobody here knows.
        optimisation=_STACK if ulysses * ring == gpus else f"{_STACK}; {gpus} GPUs as ulysses {ulysses} x ring {ring}",
        gpu=_BOARDS.get(row.text("gpu"), row.text("gpu")),
        gpus=gpus,
        parallelism=f"ulysses-{ulysses} ring-{ring}",
        seconds_us=row.figure(_MARK, US, 1, US_MAX),
        metric=METRICS[0],
        split="",
        source=SOURCE,
        # What the answer calls `model_id` is ours; the name as it was measured stays beside it.
        cells=row.cells | {"model": row.text("model_id")},
    )
