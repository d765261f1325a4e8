"""Software stacks: what runs the denoiser's kernels, and what physics says of each before anything was measured.

Decides which stacks there are and which published spelling means which. Must not know GPUs' rates or measured times: how fast a stack
really is, is fitted (`atoll.physics.calibration`); here stands where the fit begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Stack(StrEnum):
    """A way to run the same network. Caches that skip steps are none of them: they change the result."""

    EAGER = "eager"  # diffusers as it comes, with PyTorch's fused attention
    EAGER_FA3 = "eager-fa3"  # with FlashAttention 3: on Hopper only
    EAGER_CUDNN = "eager-cudnn"  # as PyTorch 2.11 comes, which takes cuDNN's attention: on Hopper only
    XFORMERS = "xformers"  # diffusers of 2022 with xformers' fused attention
    UNFUSED = "unfused"  # attention that writes its scores to memory
    COMPILE = "compile"  # torch.compile
    COMPILE_FA3 = "compile-fa3"
    COMPILE_CUDNN = "compile-cudnn"
    STABLE_FAST = "stable-fast"
    COMFYUI = "comfyui"
    XDIT = "xdit"
    FASTVIDEO = "fastvideo"
    SGLANG = "sglang"
    LIGHTX2V = "lightx2v"
    TENSORRT = "tensorrt"


# What Atoll's own workers run a model on, as it comes and compiled. PyTorch 2.11 takes cuDNN's attention on Hopper by itself: 620 TFLOP/s
# on an H100 in the sizes of FLUX.1 and Wan 2.1, against 330 of FlashAttention 2, with which most published times of `eager` were made.
# Its matrix products and its decoding are faster than theirs as well, so it is not `eager-fa3` either (tests/gpu, docs/costs.md).
ENGINE_STACK: Final = Stack.EAGER_CUDNN
ENGINE_COMPILED: Final = Stack.COMPILE_CUDNN


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTraits:
    """Against eager kernels, in thousandths: host work per layer, activations moved, time of attention. `prior_milli`: thousandths of a
    logarithm of time that are expected on top, `spread_milli` how far off that may be. `kernels`: whose kernels they are, where products,
    attention, stream and decoding were measured so far from those of other stacks that each has an effect of its own."""

    host_milli: int = 1_000
    traffic_milli: int = 1_000
    attention_milli: int = 1_000
    prior_milli: int = 0
    spread_milli: int = 200
    kernels: str = ""


# A compiler fuses neighbouring element-wise kernels: about half the launches and half the passes over the activations are left.
_FUSED: Final = 500
# FlashAttention 3 on Hopper reaches 1.5 to 2 times FlashAttention 2 (its authors' figures); 1.6 leaves something for the rest of attention.
_FA3: Final = 625
# PyTorch 2.11 with CUDA 13: large products reach 790 TFLOP/s on an H100, and an image is decoded in half the time.
_CUDNN: Final = "cudnn"

TRAITS: Final[dict[Stack, StackTraits]] = {
    Stack.EAGER: StackTraits(),
    Stack.EAGER_FA3: StackTraits(attention_milli=_FA3),
    Stack.EAGER_CUDNN: StackTraits(attention_milli=_FA3, kernels=_CUDNN),
    Stack.XFORMERS: StackTraits(),
    # Scores of 4,096 tokens and 8 heads are a quarter of a gigabyte, written and read for the softmax and again for the product.
    Stack.UNFUSED: StackTraits(prior_milli=400, spread_milli=300),
    Stack.COMPILE: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-100),
    Stack.COMPILE_FA3: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, attention_milli=_FA3, prior_milli=-100),
    Stack.COMPILE_CUDNN: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, attention_milli=_FA3, prior_milli=-100, kernels=_CUDNN),
    Stack.STABLE_FAST: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-200, spread_milli=300),
    Stack.COMFYUI: StackTraits(),
    # Engines made to serve one family fast: fused kernels, and what each adds is its own secret.
    Stack.XDIT: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-200, spread_milli=250),
    Stack.FASTVIDEO: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-200, spread_milli=250),
    Stack.SGLANG: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-200, spread_milli=250),
    Stack.LIGHTX2V: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-200, spread_milli=250),
    # Kernels searched for on the very GPU, convolutions in their own layout.
    Stack.TENSORRT: StackTraits(host_milli=_FUSED, traffic_milli=_FUSED, prior_milli=-400, spread_milli=300),
}


# FlashAttention 3 is written for one architecture's asynchronous tensor cores; for others PyTorch does not choose cuDNN's by itself.
_FA3_ARCH: Final = "Hopper"
_FA3_OF: Final = {Stack.EAGER: Stack.EAGER_FA3, Stack.COMPILE: Stack.COMPILE_FA3}
_CUDNN_OF: Final = {Stack.EAGER: Stack.EAGER_CUDNN, Stack.COMPILE: Stack.COMPILE_CUDNN}
_ELSEWHERE: Final = {on_hopper: stack for pairs in (_FA3_OF, _CUDNN_OF) for stack, on_hopper in pairs.items()}


def used_stack(stack: Stack, arch: str) -> Stack:
    """What a stack comes down to on a GPU of this architecture: itself, or itself without what only another can run."""
    return stack if arch == _FA3_ARCH else _ELSEWHERE.get(stack, stack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a published description of an optimisation says."""

    stack: Stack
    offloaded: bool = False  # weights wait in host memory while they are not needed


_WORDS: Final[dict[str, Stack]] = {
    **{stack.value: stack for stack in Stack},
    "": Stack.EAGER,
    "diffusers": Stack.EAGER,
    "flash-attn": Stack.EAGER,
    "eager(no xformers)": Stack.UNFUSED,
    "torch.compile": Stack.COMPILE,
    "fa3+compile": Stack.COMPILE_FA3,
    "sgl-diffusion": Stack.SGLANG,
    "tensorrt/vendor engine": Stack.TENSORRT,
}
# Remarks that change nothing here: precision has a column of its own, and who measured a TensorRT engine in which scenario is no stack.
_REMARKS: Final = frozenset({"bf16", "fp16", "fp8", "fp32"})
_HOPPER_REMARKS: Final = {"fa3 on hopper": _FA3_OF, "cudnn attention on hopper": _CUDNN_OF}
_OPTIMISATION_CHARS_MAX: Final = 200


def published_stack(text: str, arch: str) -> Published | None:
    """The stack of a text such as "eager; FA3 on Hopper; offload_model" on a GPU of this architecture; None if a part of it is unknown."""
    if len(text) > _OPTIMISATION_CHARS_MAX:
        return None
    first, *rest = (part.strip().lower() for part in text.split(";"))
    stack = _WORDS.get(re.sub(r"\s*\(2nd run\)\Z", "", first))
    if stack is None:
        return None
    offloaded = False
    for remark in rest:
        if remark.startswith("offload"):
            offloaded = True
        elif stack in (on_hopper := _HOPPER_REMARKS.get(remark, {})):
            stack = used_stack(on_hopper[stack], arch)
        elif remark not in _REMARKS and stack is not Stack.TENSORRT:
            return None
    return Published(stack=stack, offloaded=offloaded)
