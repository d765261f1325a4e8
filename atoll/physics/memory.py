"""Memory of a generation on top of the resident weights.

Decides how activations grow with the shape. Must not know what else is in the GPU's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from atoll.model import limits
from atoll.model.modelspec import Modality, ModelSpec
from atoll.model.shape import Shape
from atoll.physics.flops import tokens

# Smaller pictures are no answer to somebody who asked for large ones.
_SIDE_PX_MIN: Final = 256
# Of a model whose grid is not known: what autoencoders of 8 and patches of 2 divide.
_GRID_PX: Final = 16


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


def fitting(model: ModelSpec, shape: Shape, memory_bytes: int) -> tuple[Shape, ...]:
    """The largest shapes that fit into so much memory, each with less of one figure: results, frames, or pixels in the same proportion.
    Empty where the weights alone leave no room for any of them."""
    if model.resident_bytes >= memory_bytes:
        return ()
    ways = (_fewer_results(shape), _fewer_frames(model, shape), _fewer_pixels(model, shape))
    firsts = (next((less for less in way if needed_bytes(model, less) <= memory_bytes), None) for way in ways)
    return tuple(less for less in firsts if less is not None)


def _fewer_results(shape: Shape) -> Iterator[Shape]:
    return (replace(shape, batch=batch) for batch in range(shape.batch - 1, 0, -1))


def _fewer_frames(model: ModelSpec, shape: Shape) -> Iterator[Shape]:
    """Down to the shortest film that is none of one picture."""
    step = model.frame_step or 1
    if model.modality is Modality.VIDEO:
        yield from (replace(shape, frames=frames) for frames in range(shape.frames - step, 1, -step))


def _fewer_pixels(model: ModelSpec, shape: Shape) -> Iterator[Shape]:
    grid = model.side_px or _GRID_PX
    for width in range((shape.width - 1) // grid * grid, _SIDE_PX_MIN - 1, -grid):
        height = width * shape.height // (shape.width * grid) * grid
        if height >= _SIDE_PX_MIN:
            yield replace(shape, width=width, height=height)
