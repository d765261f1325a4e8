"""Published models at their real size, built from their configurations with random weights: they compute as long as the real ones do.

Decides which models are measured, at which shape, and what stands for their prompts: text encoders are left out, random embeddings of
the size that they give go into the pipeline instead. Must not know how time is taken, nor what was predicted. Imports torch and diffusers
when something is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]

_IMAGE_VAE: Final[Config] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
}
_WIDE_VAE: Final[Config] = {**_IMAGE_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SDXL_UNET: Final[Config] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE: Final[Config] = {**_IMAGE_VAE, "scaling_factor": 0.13025}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component: a class of diffusers and its configuration."""

    kind: str
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model of the catalogue. `embeds`: arguments of the call by name, with their sizes after the batch; a `mask` is all ones. `call`:
    what else the call takes. `steps`: how many of the model's steps are timed; the rest are alike. `decodes`: whether decoding is timed."""

    model_id: str
    pipeline: str
    parts: Mapping[str, Part]
    absent: tuple[str, ...]
    embeds: Mapping[str, tuple[int, ...]]
    call: Config
    steps: int
    decodes: bool = True
    tiny: Config | None = None  # what makes the denoiser small, for a try without a GPU


def _guided(embeds: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {**embeds, **{f"negative_{name}": size for name, size in embeds.items()}}


_CLIP_T5: Final = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_T5: Final = ("text_encoder", "tokenizer")
_FLOW: Final = Part(kind="FlowMatchEulerDiscreteScheduler", config={})
_WAN_EMBEDS: Final = _guided({"prompt_embeds": (512, 4096)})
_WAN_SCHEDULER: Final = Part(
    kind="UniPCMultistepScheduler", config={"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
)
_WAN_VAE: Final = Part(kind="AutoencoderKLWan", config={})


def _wan(model_id: str, config: Config, steps: int) -> Subject:
    return Subject(
        model_id=model_id,
        pipeline="WanPipeline",
        parts={"transformer": Part(kind="WanTransformer3DModel", config=config), "vae": _WAN_VAE, "scheduler": _WAN_SCHEDULER},
        absent=_T5,
        embeds=_WAN_EMBEDS,
        call={"guidance_scale": 5.0},
        steps=steps,
        tiny={"num_layers": 1, "num_attention_heads": 2, "ffn_dim": 64},
    )


def _cogvideo(model_id: str, config: Config, steps: int) -> Subject:
    return Subject(
        model_id=model_id,
        pipeline="CogVideoXPipeline",
        parts={
            "transformer": Part(kind="CogVideoXTransformer3DModel", config=config),
            "vae": Part(
                kind="AutoencoderKLCogVideoX",
                config={
                    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
                    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
                    "block_out_channels": (128, 256, 256, 512),
                },
            ),
            "scheduler": Part(kind="CogVideoXDDIMScheduler", config={}),
        },
        absent=_T5,
        embeds=_guided({"prompt_embeds": (226, 4096)}),
        call={"guidance_scale": 6.0},
        steps=steps,
        tiny={"num_layers": 1, "num_attention_heads": 2},
    )


_SDXL: Final = Subject(
    model_id="sdxl-base-1.0",
    pipeline="StableDiffusionXLPipeline",
    parts={
        "unet": Part(kind="UNet2DConditionModel", config=SDXL_UNET),
        "vae": Part(kind="AutoencoderKL", config=SDXL_VAE),
        "scheduler": Part(kind="EulerDiscreteScheduler", config={}),
    },
    absent=_CLIP_T5,
    embeds=_guided({"prompt_embeds": (77, 2048), "pooled_prompt_embeds": (1280,)}),
    call={"guidance_scale": 5.0},
    steps=50,
    tiny={"transformer_layers_per_block": (1, 1, 1), "layers_per_block": 1},
)
_SD15: Final = Subject(
    model_id="sd-1.5",
    pipeline="StableDiffusionPipeline",
    parts={
        "unet": Part(kind="UNet2DConditionModel", config={"sample_size": 64, "cross_attention_dim": 768}),
        "vae": Part(kind="AutoencoderKL", config={**_IMAGE_VAE, "sample_size": 512}),
        "scheduler": Part(kind="DDIMScheduler", config={"steps_offset": 1, "clip_sample": False}),
    },
    absent=("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    embeds=_guided({"prompt_embeds": (77, 768)}),
    call={"guidance_scale": 7.5},
    steps=50,
    tiny={"layers_per_block": 1},
)
_SD35_MEDIUM: Final = Subject(
    model_id="sd3.5-medium",
    pipeline="StableDiffusion3Pipeline",
    parts={
        "transformer": Part(
            kind="SD3Transformer2DModel",
            config={
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "vae": Part(kind="AutoencoderKL", config={**_WIDE_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "scheduler": Part(kind="FlowMatchEulerDiscreteScheduler", config={"shift": 3.0}),
    },
    absent=(*_CLIP_T5, "text_encoder_3", "tokenizer_3"),
    embeds=_guided({"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)}),
    call={"guidance_scale": 4.5},
    steps=20,
    tiny={"num_layers": 2, "dual_attention_layers": (0,)},
)
_PIXART: Final = Subject(
    model_id="pixart-sigma-xl-2",
    pipeline="PixArtSigmaPipeline",
    parts={
        "transformer": Part(
            kind="PixArtTransformer2DModel",
            config={"sample_size": 128, "interpolation_scale": 2, "caption_channels": 4096, "use_additional_conditions": False},
        ),
        "vae": Part(kind="AutoencoderKL", config=SDXL_VAE),
        "scheduler": Part(kind="DPMSolverMultistepScheduler", config={}),
    },
    absent=_T5,
    embeds=_guided({"prompt_embeds": (300, 4096), "prompt_attention_mask": (300,)}),
    call={"guidance_scale": 4.5, "use_resolution_binning": False, "negative_prompt": None},
    steps=20,
    tiny={"num_layers": 1},
)
_FLUX: Final = Subject(
    model_id="flux.1-dev",
    pipeline="FluxPipeline",
    parts={
        "transformer": Part(kind="FluxTransformer2DModel", config={"guidance_embeds": True}),
        "vae": Part(kind="AutoencoderKL", config={**_WIDE_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
        "scheduler": _FLOW,
    },
    absent=_CLIP_T5,
    embeds={"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
    call={"guidance_scale": 3.5},
    steps=28,
    tiny={"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
)
_QWEN: Final = Subject(
    model_id="qwen-image",
    pipeline="QwenImagePipeline",
    parts={
        "transformer": Part(kind="QwenImageTransformer2DModel", config={}),
        "vae": Part(kind="AutoencoderKLQwenImage", config={}),
        "scheduler": _FLOW,
    },
    absent=_T5,
    embeds=_guided({"prompt_embeds": (64, 3584), "prompt_embeds_mask": (64,)}),
    call={"true_cfg_scale": 4.0},
    steps=8,
    tiny={"num_layers": 1, "num_attention_heads": 2},
)
_LTX: Final = Subject(
    model_id="ltx-video-2b-0.9.x",
    pipeline="LTXPipeline",
    parts={
        "transformer": Part(kind="LTXVideoTransformer3DModel", config={}),
        "vae": Part(kind="AutoencoderKLLTXVideo", config={}),
        "scheduler": Part(
            kind="FlowMatchEulerDiscreteScheduler",
            config={
                "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096,
            },
        ),
    },
    absent=_T5,
    embeds=_guided({"prompt_embeds": (128, 4096), "prompt_attention_mask": (128,)}),
    call={"guidance_scale": 3.0},
    steps=20,
    tiny={"num_layers": 1},
)  # fmt: skip
_HUNYUAN: Final = Subject(
    model_id="hunyuanvideo-t2v-540p",
    pipeline="HunyuanVideoPipeline",
    parts={
        "transformer": Part(kind="HunyuanVideoTransformer3DModel", config={}),
        "vae": Part(kind="AutoencoderKLHunyuanVideo", config={}),
        "scheduler": Part(kind="FlowMatchEulerDiscreteScheduler", config={"shift": 7.0}),
    },
    absent=_CLIP_T5,
    embeds={"prompt_embeds": (256, 4096), "pooled_prompt_embeds": (768,), "prompt_attention_mask": (256,)},
    call={"guidance_scale": 6.0},
    steps=2,
    decodes=False,  # in one piece it takes more memory than a GPU has; in tiles it is another computation
    tiny={"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2},
)

# From those that say most in the least time. Guidance as the catalogue counts its passes.
SUBJECTS: Final = (
    _SDXL,
    _FLUX,
    _wan("wan2.1-t2v-1.3b-480p", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 4),
    _cogvideo(
        "cogvideox-5b",
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        3,
    ),
    _SD35_MEDIUM,
    _PIXART,
    _QWEN,
    _LTX,
    _SD15,
    _wan("wan2.1-t2v-14b-480p", {}, 2),
    _HUNYUAN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A pipeline on its device, and the arguments that stand for a prompt."""

    pipeline: Any
    arguments: dict[str, Any]
    denoiser_params: int


def build(subject: Subject, device: str, *, tiny: bool = False) -> Built:
    """The pipeline in bf16. `tiny`: with as little of the denoiser as shows that everything fits together."""
    import diffusers
    import torch

    made: dict[str, Any] = dict.fromkeys(subject.absent)
    for name, part in subject.parts.items():
        kind, config = getattr(diffusers, part.kind), dict(part.config)
        if name == "scheduler":
            made[name] = kind(**config)
            continue
        if tiny and name != "vae":
            config |= subject.tiny or {}
        made[name] = in_bf16(device, kind, config)
    pipeline = getattr(diffusers, subject.pipeline)(**made)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {name: _embedding(torch, name, (1, *size), device) for name, size in subject.embeds.items()}
    denoiser = made.get("transformer") or made["unet"]
    params = sum(parameter.numel() for parameter in denoiser.parameters())
    return Built(pipeline=pipeline, arguments={**arguments, **subject.call}, denoiser_params=params)


def in_bf16(device: str, kind: Callable[..., Any], config: Config) -> Any:
    """Made where it will be, in the format that it will have: 20 billion parameters in fp32 fit nowhere, and take minutes on a CPU."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            module = kind(**config)
    finally:
        torch.set_default_dtype(before)
    return module.to(device=device, dtype=torch.bfloat16).eval().requires_grad_(False)


def _embedding(torch: Any, name: str, size: tuple[int, ...], device: str) -> Any:
    if name.endswith("mask"):
        return torch.ones(size, dtype=torch.long, device=device)
    generator = torch.Generator("cpu").manual_seed(len(name))
    return torch.randn(size, generator=generator, dtype=torch.float32).to(device=device, dtype=torch.bfloat16)
