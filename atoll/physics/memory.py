"""Memory of a generation on top of the resident weights. Pure."""

from __future__ import annotations

from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Shape
from atoll.physics.flops import tokens


def peak_bytes(model: ModelSpec, shape: Shape) -> int:
    """Activations at this shape: those of the reference, scaled by tokens and batch."""
    physics = model.physics
    return model.activation_bytes * tokens(physics, shape) * shape.batch // max(physics.reference_tokens, 1)
