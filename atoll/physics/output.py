"""Bytes of a result. Pure."""

from __future__ import annotations

from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Shape


def output_bytes(model: ModelSpec, shape: Shape) -> int:
    """PNG: about 1.5 bytes a pixel; MP4: about 0.1 bytes a pixel and frame."""
    pixels = shape.width * shape.height * shape.batch
    return pixels * 3 // 2 if shape.frames == 1 else pixels * shape.frames // 10
