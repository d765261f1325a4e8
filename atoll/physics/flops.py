"""FLOPs of a generation, from the catalogue's figures.

Formula of one transformer forward: 2 x tokenwise_params x T + 4 x layers x T^2 x hidden, T = latent + text tokens.
UNets and linear attention scale the table's reference. Pure.
"""

from __future__ import annotations

from atoll.model.modelspec import DenoiserKind, ModelPhysics
from atoll.model.shape import Shape


def latent_frames(physics: ModelPhysics, frames: int) -> int:
    """Frames of the latent: the first stands alone, the rest are compressed by the temporal factor."""
    return 1 + -(-(frames - 1) // max(physics.temporal_factor, 1))


def tokens(physics: ModelPhysics, shape: Shape) -> int:
    """Latent tokens of one forward at this shape, scaled from the reference by pixels and latent frames."""
    reference = physics.reference
    pixels = shape.width * shape.height * latent_frames(physics, shape.frames)
    base = reference.width * reference.height * latent_frames(physics, reference.frames)
    return max(physics.reference_tokens * pixels // base, 1)


def forward_flops(physics: ModelPhysics, shape: Shape) -> int:
    """FLOPs of one denoiser forward at this shape."""
    latent = tokens(physics, shape)
    if physics.kind is DenoiserKind.TRANSFORMER and physics.tokenwise_params:
        total = latent + physics.text_tokens
        return 2 * physics.tokenwise_params * total + 4 * physics.layers * total * total * physics.hidden
    rest = physics.reference_forward_flops - physics.reference_attention_flops
    ratio_num, ratio_den = latent, max(physics.reference_tokens, 1)
    if physics.kind is DenoiserKind.LINEAR:
        return physics.reference_forward_flops * ratio_num // ratio_den
    return rest * ratio_num // ratio_den + physics.reference_attention_flops * ratio_num**2 // ratio_den**2


def generation_flops(physics: ModelPhysics, shape: Shape) -> int:
    """FLOPs of a whole job: text encoding, denoising, decoding; times the batch."""
    text = 2 * physics.text_params * physics.text_tokens
    decode = physics.reference_decode_flops * tokens(physics, shape) // max(physics.reference_tokens, 1)
    denoise = forward_flops(physics, shape) * shape.steps * shape.cfg_passes
    return (text + denoise + decode) * shape.batch
