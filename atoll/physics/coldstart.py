"""Times of a cold start: transfer, staging, initialisation. Pure."""

from __future__ import annotations

from atoll.model.modelspec import ModelSpec

# Building a pipeline's modules around its weights, once per load.
_INIT_US = 500_000


def transfer_us(size_bytes: int, bytes_per_s: int, rtt_us: int) -> int:
    """Microseconds to move bytes over a link."""
    return rtt_us + size_bytes * 1_000_000 // max(bytes_per_s, 1)


def stage_us(model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool) -> int:
    """Microseconds from disk (or host memory) into the GPU, pipelined: the slower leg counts."""
    h2d = model.weights_bytes * 1_000_000 // max(h2d_bytes_per_s, 1)
    return h2d if from_host else max(h2d, model.weights_bytes * 1_000_000 // max(disk_bytes_per_s, 1))


def init_us(model: ModelSpec) -> int:
    """Microseconds to build the pipeline in a warm process."""
    return _INIT_US if model.weights_bytes else 0
