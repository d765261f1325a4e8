"""One row of a trace: a job as it arrives. Its fields, in this order, are the columns of the files.

Decides what a trace may say about a job and within which bounds; knows neither files nor how a job is run. A figure that is 0, and a text
that is empty, is not given: the model's own is meant.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from atoll.model import limits
from atoll.model.ids import ModelId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision, Shape

# Ten years. What begins later counts from 1970, or not in microseconds.
ARRIVAL_US_MAX: Final = 10 * 366 * 86_400 * 1_000_000
# Regions are names of cities, sessions whatever their source numbers them by.
TEXT_CHARS_MAX: Final = 63
# 3840 x 2160, the least that is called 4K.
PIXELS_4K: Final = 3_840 * 2_160


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceJob:
    """A job that arrives `arrival_us` after the trace began."""

    arrival_us: int
    model_id: ModelId
    tenant: TenantId
    width: int = 0
    height: int = 0
    frames: int = 0
    steps: int = 0
    cfg_passes: int = 0
    batch: int = 0
    precision: Precision | None = None
    gang_size: int = 1
    adapters: tuple[AdapterUse, ...] = ()
    origin: str = ""  # a site or a region
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    start_timeout_ms: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    session: str = ""
    measured_us: int = 0  # how long it took where it was recorded

    def shape_with(self, default: Shape) -> Shape:
        """What it makes, where `default` is what its model makes when nothing is said."""
        return Shape(
            width=self.width or default.width,
            height=self.height or default.height,
            frames=self.frames or default.frames,
            steps=self.steps or default.steps,
            cfg_passes=self.cfg_passes or default.cfg_passes,
            batch=self.batch or default.batch,
        )


COLUMNS: Final = tuple(field.name for field in fields(TraceJob))
REQUIRED: Final = ("arrival_us", "model_id", "tenant")
# The bounds of what is a whole number; 0 is "not given" where the least is 0.
WHOLE: Final = {
    "arrival_us": (0, ARRIVAL_US_MAX),
    "width": (0, limits.SIDE_PX_MAX),
    "height": (0, limits.SIDE_PX_MAX),
    "frames": (0, limits.FRAMES_MAX),
    "steps": (0, limits.STEPS_MAX),
    "cfg_passes": (0, limits.CFG_PASSES_MAX),
    "batch": (0, limits.BATCH_MAX),
    "gang_size": (1, max(limits.GANG_SIZES)),
    "deadline_ms": (0, limits.DEADLINE_MS_MAX),
    "start_timeout_ms": (0, limits.DEADLINE_MS_MAX),
    "input_bytes": (0, limits.INPUT_BYTES_MAX),
    "output_bytes": (0, limits.BYTES_MAX),
    "measured_us": (0, limits.PREDICTED_US_MAX),
}


def kind_of(shape: Shape) -> str:
    """Which of the kinds of results it counts as: "image", "image-4k" or "video"."""
    if shape.frames > 1:
        return "video"
    return "image-4k" if shape.width * shape.height >= PIXELS_4K else "image"
