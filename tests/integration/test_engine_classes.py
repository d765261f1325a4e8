"""The engine on other classes of pipelines than the starters': each builds, loads, generates, stops and knows its
sizes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import diffusers
import torch
import transformers

from agents.engine import encode
from agents.engine.errors import GenerationStoppedError
from agents.engine.manifest import write_manifest
from agents.engine.pipeline import Engine
from agents.engine.quiet import quiet_loading
from agents.engine.request import GenerationRequest
from agents.engine.sizes import sizes_of
from agents.engine.tiny import _clip_tokenizer, _t5_tokenizer
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality
from atoll.model.shape import Shape


def t5() -> dict[str, Any]:
    tokenizer = _t5_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return {"tokenizer": tokenizer, "text_encoder": transformers.T5EncoderModel(config)}


def clip(cls: Any = None) -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"tokenizer": tokenizer, "text_encoder": (cls or transformers.CLIPTextModel)(config)}


def image_vae(latents: int) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=latents,
        use_quant_conv=latents == 4,
        use_post_quant_conv=latents == 4,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def flux() -> Any:
    long = t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
        vae=image_vae(4),
        tokenizer_2=long["tokenizer"],
        text_encoder_2=long["text_encoder"],
        **clip(),
    )


def sdxl() -> Any:
    second = clip(transformers.CLIPTextModelWithProjection)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=4,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=image_vae(4),
        # Of second order: it takes 2n - 1 timesteps for n steps.
        scheduler=diffusers.HeunDiscreteScheduler(),
        tokenizer_2=second["tokenizer"],
        text_encoder_2=second["text_encoder"],
        **clip(),
    )


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.LTXPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **t5())


def image(**sizes: int) -> Shape:
    return Shape(**({"width": 32, "height": 32, "steps": 2} | sizes))


def video(**sizes: int) -> Shape:
    return Shape(**({"width": 64, "height": 64, "frames": 9, "steps": 2} | sizes))


CASES = {
    # Flux packs latents in pairs: its multiple is twice the VAE's factor of 2.
    "flux": (flux, image(), {"shape.width": image(width=34)}, 3.5),
    "sdxl": (sdxl, image(), {"shape.height": image(height=33)}, 5.0),
    "ltx": (ltx, video(), {"shape.width": video(width=80), "shape.frames": video(frames=10)}, 3.0),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Heun under numpy 2
@pytest.mark.parametrize("name", CASES)
def test_a_class_of_pipelines(name: str, tmp_path: Path) -> None:
    build: Callable[[], Any]
    build, shape, wrong, default_guidance = CASES[name]
    folder = tmp_path / name
    engine = Engine()
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(0)
        build().save_pretrained(str(folder))
    manifest = write_manifest(folder, model_id=ModelId(name), modality=Modality.VIDEO if shape.frames > 1 else Modality.IMAGE)
    told = sizes_of(folder, manifest.pipeline_class)
    model = engine.load(folder)
    assert told == (model.shape_rule.side_px, model.shape_rule.frame_step if shape.frames > 1 else 0), "known before it is loaded"

    request = GenerationRequest(prompt="p", shape=shape, seed=1)

    def digest(**changes: Any) -> str:
        made = model.generate(replace(request, **changes))
        return encode.pixel_digest(made.items[0].frames)

    first = digest()
    assert digest() == first
    assert digest(seed=2) != first
    assert digest(guidance=default_guidance) == first
    heard: list[tuple[int, int]] = []
    made = model.generate(GenerationRequest(prompt="p", shape=shape, seed=1), on_step=lambda done, steps: heard.append((done, steps)))
    assert heard[-1] == (2, 2)
    assert heard == sorted(heard)
    assert made.guidance == default_guidance
    with pytest.raises(GenerationStoppedError):
        model.generate(request, should_stop=lambda: len(heard) > 0)
    assert digest() == first
    for field, bad in wrong.items():
        with pytest.raises(FieldError, match="multiple of") as refused:
            digest(shape=bad)
        assert refused.value.field == field
    model.unload()
