"""Memory of a generation on top of the resident weights.

Decides how activations grow with the shape. Must not know what else is in the GPU's memory.
"""

from __future__ import annotations

from atoll.model import limits
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Shape
from atoll.physics.flops import tokens


def needed_bytes(model: ModelSpec, shape: Shape) -> int:
    """What one GPU holds while it makes this shape: the whole model and the activations, on each GPU of a gang too."""
    return model.resident_bytes + peak_bytes(model, shape)


def peak_bytes(model: ModelSpec, shape: Shape) -> int:
    """Bytes of activations at their peak, on top of `model.resident_bytes`: those of the reference, by latent tokens and batch.

    Attention holds no T x T matrix (all runtimes of the catalogue tile it), so the growth is linear. Guidance passes that a
    pipeline runs as one batch are in the reference's figure. `NEEDED_BYTES_MAX` at most, which no GPU has.
    """
    physics = model.physics
    found = model.activation_bytes * tokens(physics, shape) * shape.batch // max(physics.reference_tokens, 1)
    return min(found, limits.NEEDED_BYTES_MAX)
