"""Builds the two starter pipelines: real diffusers classes, tiny configurations, weights from a formula instead of
training.

Decides what an untrained model looks like. Weights are drawn with integer-exact arithmetic (PCG64 and scaling by
powers and products, no transcendental functions), one stream per tensor, so that every machine builds the same
bytes; and they are drawn smooth (each convolution blurs a little), so that prompt and seed show as soft shapes and
not as static. Imports torch.
"""

from __future__ import annotations

import hashlib
import string
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5TokenizerFast, UMT5Config, UMT5EncoderModel

# Share of every convolution that is not the common blur: enough for edges, too little for static.
_GRAIN: Final = np.float32(0.08)
_BLUR: Final = np.array([1.0, 2.0, 1.0], dtype=np.float32) / 4
# Uniform numbers in (-1, 1) have a variance of 1/3; sqrt(3) makes it 1. Written out so that no libm is asked.
_UNIT_VARIANCE: Final = np.float32(1.7320508)
_CLIP_TOKENS: Final = 77
_Floats = np.ndarray[Any, np.dtype[np.float32]]


def build_tiny_image(folder: Path) -> None:
    """Save a Stable Diffusion pipeline of 1.4 M parameters to `folder`: 8x latents, sizes in multiples of 8 pixels."""
    tokenizer = _clip_tokenizer()
    size = len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=_CLIP_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=128,
        )
    _fill(text_encoder, "tiny-image/text", {})
    _fill(unet, "tiny-image/unet", {"attn2.to_out": 3.0, "time_emb": 0.7, "conv_out": 1.5})
    _fill(vae, "tiny-image/vae", {"decoder.conv_out": 0.8})
    # An untrained UNet predicts noise badly; what it makes of a latent, taken as the sample itself, is at least a
    # shape.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="sample",
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True)


def build_tiny_video(folder: Path) -> None:
    """Save a Wan pipeline to `folder`: sizes in multiples of 16 pixels, frames 1 + a multiple of 4."""
    tokenizer = _t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=24,
            in_channels=16,
            out_channels=16,
            text_dim=64,
            freq_dim=64,
            ffn_dim=192,
            num_layers=3,
            rope_max_seq_len=256,
        )
        vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1)
    _fill(text_encoder, "tiny-video/text", {})
    _fill(transformer, "tiny-video/transformer", {"attn2.to_out": 3.0})
    _fill(vae, "tiny-video/vae", {"decoder.conv_out": 1.0})
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.save_pretrained(str(folder), safe_serialization=True)


def _clip_tokenizer() -> Any:
    """One token a byte: any text in any script has tokens of its own."""
    # GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = sorted([chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))])
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=_CLIP_TOKENS)


def _t5_tokenizer() -> Any:
    """One token a character of printable ASCII; others share the unknown token."""
    pieces = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0)


def _fill(model: torch.nn.Module, salt: str, gains: dict[str, float]) -> None:
    """Overwrite all weights of `model`. `gains` scales tensors whose name contains the key. Scales of norms stay at
    one."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}"
            is_vector = parameter.numel() == max(parameter.shape)
            if is_vector and name != "bias":
                parameter.data.fill_(1.0)
                continue
            seed = hashlib.sha256(f"{salt}/{full_name}".encode()).digest()
            generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "big")))
            values = _draw(generator, tuple(parameter.shape), isinstance(module, torch.nn.Embedding))
            for key, gain in gains.items():
                if key in full_name:
                    values = values * np.float32(gain)
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _draw(generator: np.random.Generator, shape: tuple[int, ...], is_embedding: bool) -> _Floats:
    uniform = generator.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
    if len(shape) == 1:
        return uniform * np.float32(0.1)
    if is_embedding:
        return uniform * _UNIT_VARIANCE
    if len(shape) >= 4 and shape[-1] == shape[-2] == 3:
        one_per_pair = (*shape[:2], *([1] * (len(shape) - 2)))
        mixing = generator.random(one_per_pair, dtype=np.float32) * np.float32(2) - np.float32(1)
        blur = np.multiply.outer(_BLUR, _BLUR) / np.float32(shape[2] if len(shape) == 5 else 1)
        return np.asarray((mixing * blur + uniform * _GRAIN) * _UNIT_VARIANCE / np.sqrt(np.float32(shape[1])))
    fan_in = int(np.prod(shape[1:]))
    return np.asarray(uniform * _UNIT_VARIANCE / np.sqrt(np.float32(fan_in)))
