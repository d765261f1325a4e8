"""Times of a cold start: moving weights, staging them into a GPU, building the pipeline.

Decides how the legs of a cold start combine; each takes a year at most (`PREDICTED_US_MAX`), which is never. Must not know where weights
are or which rates a site has.
"""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.adapter import AdapterSpec
from atoll.model.gpu import CPU, GpuType
from atoll.model.modelspec import DenoiserKind, ModelSpec

_US: Final = 1_000_000

# Modules, tokenizers and schedulers of a pipeline in a warm process: tiny pipelines, which have nothing else, load in 0.1-0.3 s.
_INIT_BASE_US: Final = 200_000
# Handling tensors one by one as diffusers and Accelerate do, beyond what the bytes need: 4.4 s against 1.3 s for FLUX.1's
# 22 GB, 8.9 s against 1.5 s for Wan's 27 GB, 2.9 s against 1.0 s for an encoder of 14 GB; 130-275 ms per GB, median 185.
_INIT_US_PER_GB: Final = 185_000
# Kernels are loaded when they are first called, and modules imported that only a generation needs: 1 to 2 s on an H200's host (tests/gpu).
# Without a GPU, on two cores, 1.6 s for the first picture of a tiny pipeline; the first of another pipeline in that process then took no
# longer than its next, so it is the process that counts and not the model.
_FIRST_US: Final = 1_500_000
# Layers are wrapped one by one: adapters of a few KB take 15-130 ms on tiny pipelines.
_PATCH_BASE_US: Final = 70_000
# Read, cast and copied tensor by tensor, which is far from what a disk can do.
_PATCH_BYTES_PER_S: Final = 400_000_000
# Compiling the blocks that repeat, once each: FLUX.1-dev 9.6 s on an H100's host (67.4 s for its whole transformer; PyTorch's devlog of
# 2026-05-11) and 12.1 s on another (tests/gpu), Qwen-Image 7 s on an A100's (diffusers' docs). 19 or 60 blocks alike, so neither depth nor
# width of the model counts.
_COMPILE_US: Final = 9_000_000
# A UNet's transformer blocks are plainer, and come in the widths of its levels: SDXL 4.5 s, in a slot 6.5 s, on an H200's host (tests/gpu).
_COMPILE_UNET_US: Final = 6_000_000
# Where the compiler's cache is there, the model is traced again all the same: FLUX.1-dev 2.9 of 12.1 s, SDXL 1.4 to 1.6 of 4.5 to 6.5 s (as
# above).
_CACHED_PARTS: Final = 4
# C++ through g++, on two cores: 33 s for a tiny pipeline, 4 s once the cache is there.
_COMPILE_CPU_US: Final = 33_000_000
_CACHED_CPU_PARTS: Final = 8


def transfer_us(size_bytes: int, bytes_per_s: int, rtt_us: int) -> int:
    """Microseconds until the last of `size_bytes` has come over a link: one round trip to ask, then the bytes."""
    return min(rtt_us + max(size_bytes, 0) * _US // max(bytes_per_s, 1), limits.PREDICTED_US_MAX)


def stage_us(model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool) -> int:
    """Microseconds to bring the weights from disk (`from_host`: from host memory) into the GPU; pipelined, so the slower leg counts."""
    rate = h2d_bytes_per_s if from_host else min(h2d_bytes_per_s, disk_bytes_per_s)
    return min(model.weights_bytes * _US // max(rate, 1), limits.PREDICTED_US_MAX)


def init_us(model: ModelSpec) -> int:
    """Microseconds to build the pipeline around its weights in a warm process, on top of `stage_us`; 0 without weights."""
    if not model.weights_bytes:
        return 0
    return min(_INIT_BASE_US + model.weights_bytes * _INIT_US_PER_GB // 10**9, limits.PREDICTED_US_MAX)


def first_generation_us() -> int:
    """Microseconds that the first generation of a process takes beyond the next, whatever the model and the device."""
    return _FIRST_US


def patch_us(adapter: AdapterSpec) -> int:
    """Microseconds to put an adapter that lies on the node's disk onto a resident replica."""
    return min(_PATCH_BASE_US + adapter.weights_bytes * _US // _PATCH_BYTES_PER_S, limits.PREDICTED_US_MAX)


def compile_us(model: ModelSpec, gpu: GpuType) -> int:
    """Microseconds to compile a model's denoiser for one shape. The host compiles: of the GPU it matters only whether there is one."""
    if gpu.gpu_type == CPU:
        return _COMPILE_CPU_US
    return _COMPILE_UNET_US if model.physics.kind is DenoiserKind.UNET else _COMPILE_US


def artifact_load_us(model: ModelSpec, gpu: GpuType) -> int:
    """Microseconds until a fresh replica runs code for this shape that its node holds: the model is traced again, the code is not made."""
    return compile_us(model, gpu) // (_CACHED_CPU_PARTS if gpu.gpu_type == CPU else _CACHED_PARTS)
