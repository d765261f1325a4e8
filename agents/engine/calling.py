"""Fits a request to one pipeline: which arguments its call takes, and which sizes it can make.

Decides everything that differs between pipeline classes, from their signatures and configurations alone. Imports no
torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agents.engine.request import GenerationRequest
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.shape import check_grid

# What a pipeline class calls the factor between a latent and a pixel, and between a latent frame and a frame.
_SPATIAL: Final = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
_TEMPORAL: Final = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_FRAMES: Final = ("num_frames", "video_length")
_BATCH: Final = ("num_images_per_prompt", "num_videos_per_prompt")
_RATE: Final = ("frame_rate", "fps")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRule:
    """Sizes a pipeline makes exactly: sides in multiples of `side_px`, frames 1 + a multiple of `frame_step`.

    `video`: the call takes a number of frames at all.
    """

    side_px: int
    frame_step: int
    video: bool

    def check(self, request: GenerationRequest) -> None:
        """FieldError naming the nearest sizes that are right."""
        if not self.video and request.shape.frames != 1:
            raise FieldError("shape.frames", request.shape.frames, "1: this model makes images")
        check_grid(request.shape, self.side_px, self.frame_step if self.video else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Arguments of one call, without generators and callbacks, and the guidance that applies (None: the pipeline has
    none)."""

    arguments: Mapping[str, Any]
    guidance: float | None


def parameters_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters that calling the pipeline takes."""
    return inspect.signature(type(pipeline).__call__).parameters


def shape_rule(pipeline: Any) -> ShapeRule:
    """The sizes `pipeline` makes without rounding them."""
    side = _factor(pipeline, _SPATIAL)
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "transformer_2", None)
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None)
    if isinstance(patch, (tuple, list)) and patch:
        patch = patch[-1]
    sides = [side * patch if isinstance(patch, int) and patch > 0 else side]
    # Pipelines that pack latents in 2 x 2 (Flux, Qwen-Image) say so only to their processor.
    for name in ("image_processor", "video_processor"):
        packed = getattr(getattr(getattr(pipeline, name, None), "config", None), "vae_scale_factor", None)
        if isinstance(packed, int) and packed > 0:
            sides.append(packed)
    video = any(name in parameters_of(pipeline) for name in _FRAMES)
    return ShapeRule(side_px=math.lcm(*sides), frame_step=_factor(pipeline, _TEMPORAL) if video else 1, video=video)


def plan_call(pipeline: Any, request: GenerationRequest) -> Call:
    """Arguments that make `request` on `pipeline`; FieldError for what it cannot make."""
    shape_rule(pipeline).check(request)
    takes = parameters_of(pipeline)
    shape = request.shape
    most = _steps_max(pipeline)
    if shape.steps > most:
        raise FieldError("shape.steps", shape.steps, f"at most {most}: this pipeline's schedule has no more")
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "num_inference_steps": shape.steps,
        "output_type": "pil",
        "return_dict": True,
    }
    if request.image is not None:
        arguments["strength"] = request.strength
    for name, value in (("width", shape.width), ("height", shape.height)):
        if name not in takes and request.image is not None:
            continue  # the image's size counts, and that is the shape's by then
        if name not in takes:
            raise FieldError(f"shape.{name}", value, "a pipeline that takes a size: this one makes one size only")
        arguments[name] = value
    if frames := _first(takes, _FRAMES):
        arguments[frames] = shape.frames
        if rate := _first(takes, _RATE):
            arguments[rate] = request.fps
    if batch := _first(takes, _BATCH):
        arguments[batch] = shape.batch
    elif shape.batch != 1:
        raise FieldError("shape.batch", shape.batch, "1: this pipeline makes one result per call")
    if request.negative_prompt:
        if "negative_prompt" not in takes:
            raise FieldError("negative_prompt", request.negative_prompt, "none: this pipeline takes no negative prompt")
        arguments["negative_prompt"] = request.negative_prompt
    guidance = _guidance(pipeline, request, takes, arguments)
    return Call(arguments={name: value for name, value in arguments.items() if name in takes}, guidance=guidance)


def _steps_max(pipeline: Any) -> int:
    """How many steps the scheduler can take. One whose noise is a table of steps begins `steps_offset` into it, and would look beyond its
    end for more; others make any number."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    table = config.get("num_train_timesteps")
    if "beta_schedule" not in config or not isinstance(table, int):
        return limits.STEPS_MAX
    return max(table - int(config.get("steps_offset", 0)), 1)


def _guidance(pipeline: Any, request: GenerationRequest, takes: Mapping[str, inspect.Parameter], arguments: dict[str, Any]) -> float | None:
    """Set the guidance argument in `arguments`; the value that will apply."""
    name = "guidance_scale"
    if "true_cfg_scale" in takes:
        # Where guidance is distilled into the weights, guidance_scale is their input and true_cfg_scale is off unless a
        # negative prompt asks for it; elsewhere true_cfg_scale is the guidance.
        config = getattr(getattr(pipeline, "transformer", None), "config", None)
        if not getattr(config, "guidance_embeds", False):
            name = "true_cfg_scale"
    if name not in takes:
        if request.guidance is not None:
            raise FieldError("guidance", request.guidance, "none: this pipeline takes no guidance")
        return None
    if request.guidance is not None:
        arguments[name] = request.guidance
        return request.guidance
    default = takes[name].default
    return float(default) if isinstance(default, (int, float)) else None


def _first(takes: Mapping[str, inspect.Parameter], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in takes), None)


def _factor(pipeline: Any, names: tuple[str, ...]) -> int:
    for name in names:
        value = getattr(pipeline, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1
