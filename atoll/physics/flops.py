"""FLOPs and traffic of a generation, from the catalogue's figures.

Decides how work grows with the shape. Must not know GPUs or time.

One forward of a transformer: `2 x tokenwise_params x T + 4 x layers x T^2 x hidden`, T = latent + text tokens. The second
part gives way to the table's own count of attention, scaled by T^2, where it has one: some models attend twice in a layer
(Stable Diffusion 3.5 Medium: 12 % of the whole), others only across to the text. Where the table does not know the tokenwise
parameters, its count without attention is scaled by T. UNets and linear attention scale the table.
"""

from __future__ import annotations

from typing import Final, assert_never

from atoll.model.modelspec import DenoiserKind, ModelPhysics
from atoll.model.shape import Shape

# Where the table has no count of the decoder: per pixel of output, the autoencoder of Stable Diffusion takes 10 MFLOP (10.5 TFLOP at 1024 x
# 1024), those of video 8.5 (Wan) to 25 (HunyuanVideo), in the middle 17.
_DECODE_FLOPS_PER_IMAGE_PX: Final = 10_000_000
_DECODE_FLOPS_PER_VIDEO_PX: Final = 17_000_000


def latent_frames(physics: ModelPhysics, frames: int) -> int:
    """Frames of the latent: the first stands alone, the others are packed by the temporal factor (a rest fills one more)."""
    factor = max(physics.temporal_factor, 1)
    return 1 + (max(frames, 1) - 1 + factor - 1) // factor


def tokens(physics: ModelPhysics, shape: Shape) -> int:
    """Latent tokens that one forward sees at this shape: those of the reference, scaled by pixels and latent frames."""
    reference = physics.reference
    volume = shape.width * shape.height * latent_frames(physics, shape.frames)
    unit = reference.width * reference.height * latent_frames(physics, reference.frames)
    return max(physics.reference_tokens * volume // unit, 1)


def forward_flops(physics: ModelPhysics, shape: Shape) -> int:
    """FLOPs of one forward of the denoiser, for one result."""
    match physics.kind:
        case DenoiserKind.TRANSFORMER:
            return _transformer_flops(physics, shape)
        case DenoiserKind.UNET:
            return _unet_flops(physics, shape)
        case DenoiserKind.LINEAR:
            return physics.reference_forward_flops * tokens(physics, shape) // max(physics.reference_tokens, 1)
    assert_never(physics.kind)


def attention_flops(physics: ModelPhysics, shape: Shape) -> int:
    """The part of `forward_flops` that is attention of tokens to each other; 0 where it is not told apart (UNets, linear attention)."""
    if physics.kind is not DenoiserKind.TRANSFORMER:
        return 0
    seen = tokens(physics, shape) + physics.text_tokens
    if physics.reference_attention_flops:
        reference = max(physics.reference_tokens + physics.text_tokens, 1)
        return physics.reference_attention_flops * seen * seen // (reference * reference)
    return 4 * physics.layers * seen * seen * physics.hidden


def attentions_milli(physics: ModelPhysics) -> int:
    """How often a layer attends, in thousandths: more than once where the table counts more than one attention of all tokens per layer."""
    seen = physics.reference_tokens + physics.text_tokens
    once = 4 * physics.layers * seen * seen * physics.hidden
    if physics.kind is not DenoiserKind.TRANSFORMER or not once:
        return 1_000
    return max(1_000 * physics.reference_attention_flops // once, 1_000)


def stream_elements(physics: ModelPhysics, shape: Shape) -> int:
    """Numbers in the stream of tokens of one forward, once per layer: what element-wise kernels touch. 0 where layers are unknown."""
    if physics.kind is DenoiserKind.UNET:
        return 0
    return physics.layers * physics.hidden * (tokens(physics, shape) + physics.text_tokens)


def text_flops(physics: ModelPhysics) -> int:
    """FLOPs of encoding one prompt."""
    return 2 * physics.text_params * physics.text_tokens


def decode_flops(physics: ModelPhysics, shape: Shape) -> int:
    """FLOPs of decoding one result's latent: convolutions, so in proportion to it."""
    if not physics.reference_decode_flops and physics.vae_params:
        per_px = _DECODE_FLOPS_PER_VIDEO_PX if physics.reference.frames > 1 else _DECODE_FLOPS_PER_IMAGE_PX
        return per_px * shape.width * shape.height * shape.frames
    return physics.reference_decode_flops * tokens(physics, shape) // max(physics.reference_tokens, 1)


def generation_flops(physics: ModelPhysics, shape: Shape) -> int:
    """FLOPs of a whole job: text encoding, every forward of every step, decoding; times the batch."""
    denoise = forward_flops(physics, shape) * shape.steps * shape.cfg_passes
    return (text_flops(physics) + denoise + decode_flops(physics, shape)) * shape.batch


def _transformer_flops(physics: ModelPhysics, shape: Shape) -> int:
    seen = tokens(physics, shape) + physics.text_tokens
    reference = max(physics.reference_tokens + physics.text_tokens, 1)
    if physics.tokenwise_params:
        tokenwise = 2 * physics.tokenwise_params * seen
    else:
        tokenwise = max(physics.reference_forward_flops - physics.reference_attention_flops, 0) * seen // reference
    return tokenwise + attention_flops(physics, shape)


def _unet_flops(physics: ModelPhysics, shape: Shape) -> int:
    """Convolutions grow with the latent; attention with the square of a frame's part of it, and with the frames."""
    reference = physics.reference
    attention = physics.reference_attention_flops
    rest = max(physics.reference_forward_flops - attention, 0)
    pixels, reference_pixels = shape.width * shape.height, reference.width * reference.height
    frames, reference_frames = latent_frames(physics, shape.frames), latent_frames(physics, reference.frames)
    convolved = rest * pixels * frames // (reference_pixels * reference_frames)
    return convolved + attention * pixels * pixels * frames // (reference_pixels * reference_pixels * reference_frames)
