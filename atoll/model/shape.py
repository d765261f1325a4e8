"""The shape of a generation: what decides its FLOPs, its memory and its bytes.

Decides which shapes are possible at all; which a model can make is the catalogue's and the engine's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.words import count


class Precision(StrEnum):
    """Number format of the denoiser's arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    FP4 = "fp4"


def parse_int(field: str, value: object, low: int, high: int) -> int:
    """`value` if it is a whole number in low..high; else FieldError (bool, NaN, text and fractions are refused)."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FieldError(field, value, f"a whole number from {low} to {high}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shape:
    """width and height in pixels, frames (1 = an image), denoising steps, passes of the denoiser per step, results per job."""

    width: int
    height: int
    frames: int = 1
    steps: int
    cfg_passes: int = 1
    batch: int = 1

    def check(self, field: str = "shape") -> Shape:
        """Self, if every figure is possible; else FieldError naming the figure."""
        parse_int(f"{field}.width", self.width, limits.SIDE_PX_MIN, limits.SIDE_PX_MAX)
        parse_int(f"{field}.height", self.height, limits.SIDE_PX_MIN, limits.SIDE_PX_MAX)
        parse_int(f"{field}.frames", self.frames, 1, limits.FRAMES_MAX)
        parse_int(f"{field}.steps", self.steps, 1, limits.STEPS_MAX)
        parse_int(f"{field}.cfg_passes", self.cfg_passes, 1, limits.CFG_PASSES_MAX)
        parse_int(f"{field}.batch", self.batch, 1, limits.BATCH_MAX)
        pixels = self.width * self.height
        if pixels > limits.FRAME_PX_MAX:
            raise FieldError(field, f"{self.width}x{self.height}", f"at most {limits.FRAME_PX_MAX} pixels a frame")
        return self

    def __str__(self) -> str:
        frames = f"x{self.frames}" if self.frames > 1 else ""
        return f"{self.width}x{self.height}{frames}/{self.steps}"


def check_volume(shape: Shape, field: str = "shape") -> None:
    """FieldError for more pixels in all than anybody can mean, each figure being possible for itself."""
    pixels = shape.width * shape.height * shape.frames * shape.batch
    if pixels > limits.JOB_PX_MAX:
        said = f"{shape.batch} of {shape.width}x{shape.height} with {count(shape.frames, 'frame')}"
        raise FieldError(field, said, f"at most {limits.JOB_PX_MAX} pixels in all frames of all results")


def check_grid(shape: Shape, side_px: int, frame_step: int, field: str = "shape") -> None:
    """FieldError, with the nearest that are right, unless sides are multiples of `side_px` and frames 1 + a multiple of `frame_step`.

    0: any side, any number of frames.
    """
    odd = [(name, value) for name, value in (("width", shape.width), ("height", shape.height)) if side_px and value % side_px]
    if len(odd) == 1:
        name, value = odd[0]
        raise FieldError(f"{field}.{name}", value, f"a multiple of {side_px}, such as {_neighbours(value, side_px, 0)}")
    if odd:
        near = "x".join(str(max(round(value / side_px), 1) * side_px) for _, value in odd)
        raise FieldError(field, f"{shape.width}x{shape.height}", f"sides that are multiples of {side_px}, such as {near}")
    if frame_step and (shape.frames - 1) % frame_step:
        near = _neighbours(shape.frames, frame_step, 1)
        raise FieldError(f"{field}.frames", shape.frames, f"1 + a multiple of {frame_step}, such as {near}")


def _neighbours(value: int, step: int, first: int) -> str:
    """The steps from `first` on below and above `value`; a side of 0 is none."""
    low = (value - first) // step * step + first
    return f"{low} or {low + step}" if low else str(low + step)
