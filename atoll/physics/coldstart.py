"""Times of a cold start: moving weights, staging them into a GPU, building the pipeline.

Decides how the legs of a cold start combine. Must not know where weights are or which rates a site has.
"""

from __future__ import annotations

from typing import Final

from atoll.model.adapter import AdapterSpec
from atoll.model.modelspec import ModelSpec

_US: Final = 1_000_000

# Modules, tokenizers and schedulers of a pipeline in a warm process: tiny pipelines, which have nothing else, load in 0.1-0.3 s.
_INIT_BASE_US: Final = 200_000
# Handling tensors one by one as diffusers and Accelerate do, beyond what the bytes need: 4.4 s against 1.3 s for FLUX.1's
# 22 GB, 8.9 s against 1.5 s for Wan's 27 GB, 2.9 s against 1.0 s for an encoder of 14 GB; 130-275 ms per GB, median 185.
_INIT_US_PER_GB: Final = 185_000
# Layers are wrapped one by one: adapters of a few KB take 15-130 ms on tiny pipelines.
_PATCH_BASE_US: Final = 70_000
# Read, cast and copied tensor by tensor, which is far from what a disk can do.
_PATCH_BYTES_PER_S: Final = 400_000_000


def transfer_us(size_bytes: int, bytes_per_s: int, rtt_us: int) -> int:
    """Microseconds until the last of `size_bytes` has come over a link: one round trip to ask, then the bytes."""
    return rtt_us + max(size_bytes, 0) * _US // max(bytes_per_s, 1)


def stage_us(model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool) -> int:
    """Microseconds to bring the weights from disk (`from_host`: from host memory) into the GPU; pipelined, so the slower leg counts."""
    rate = h2d_bytes_per_s if from_host else min(h2d_bytes_per_s, disk_bytes_per_s)
    return model.weights_bytes * _US // max(rate, 1)


def init_us(model: ModelSpec) -> int:
    """Microseconds to build the pipeline around its weights in a warm process, on top of `stage_us`; 0 without weights."""
    if not model.weights_bytes:
        return 0
    return _INIT_BASE_US + model.weights_bytes * _INIT_US_PER_GB // 10**9


def patch_us(adapter: AdapterSpec) -> int:
    """Microseconds to put an adapter that lies on the node's disk onto a resident replica."""
    return _PATCH_BASE_US + adapter.weights_bytes * _US // _PATCH_BYTES_PER_S
