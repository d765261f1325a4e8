"""Bytes of a result.

Decides an estimate for the transfer only; what was really written is in the result's manifest.
"""

from __future__ import annotations

from typing import Final

from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Shape

# Deflate takes photographs from three bytes a pixel to about a half of that.
_PNG_MILLI_BYTES_PER_PX: Final = 1_500
# H.264 at its default quality: about 5 Mbit/s for 1280 x 720 at 24 frames a second.
_MP4_MILLI_BYTES_PER_PX: Final = 30
# Headers, metadata (prompt, seed, model) and a key frame's tables.
_CONTAINER_BYTES: Final = 4_096


def output_bytes(model: ModelSpec, shape: Shape) -> int:
    """Bytes of all results of a job: a PNG each for one frame, an MP4 each for more. No model of the catalogue writes anything else yet."""
    milli = _PNG_MILLI_BYTES_PER_PX if shape.frames == 1 else _MP4_MILLI_BYTES_PER_PX
    return (shape.width * shape.height * shape.frames * milli // 1_000 + _CONTAINER_BYTES) * shape.batch
