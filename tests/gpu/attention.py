"""Which attention PyTorch takes on this GPU, and how fast each of its ways is: most of what tells one version's denoising from another's.

Decides the sizes: a head of FLUX.1's and of Wan 2.1's at their reference shapes. Must not know pipelines.
"""

from __future__ import annotations

import time
from typing import Any

# (heads, tokens, width of a head)
_SIZES = {"flux.1-dev": (24, 4_608, 128), "wan2.1-t2v-1.3b-480p": (12, 32_760, 128), "sdxl-base-1.0": (20, 1_024, 64)}
_TRIES = 5


def measure() -> dict[str, Any]:
    """FLOP/s of each backend by size, and the name of the kernel that runs when nobody chooses."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    found: dict[str, Any] = {}
    for name, (heads, tokens, width) in _SIZES.items():
        q, k, v = (torch.randn(1, heads, tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        flops = 4 * heads * tokens * tokens * width
        rates: dict[str, Any] = {"default": flops / _fastest_s(torch, lambda q=q, k=k, v=v: attend(q, k, v))}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                with sdpa_kernel(backend):
                    rates[backend.name.lower()] = flops / _fastest_s(torch, lambda q=q, k=k, v=v: attend(q, k, v))
            except RuntimeError as error:
                rates[backend.name.lower()] = str(error)[:100]
        rates["kernels"] = _kernels(torch, lambda q=q, k=k, v=v: attend(q, k, v))
        found[name] = rates
    return found


def _fastest_s(torch: Any, work: Any) -> float:
    work()
    best_s = float("inf")
    for _ in range(_TRIES):
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return best_s


def _kernels(torch: Any, work: Any) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        work()
        torch.cuda.synchronize()
    return sorted({event.key[:120] for event in watched.key_averages()})
