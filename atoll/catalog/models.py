"""The table of public models -> `ModelSpec`s that twins run.

Decides which rows say enough: image and video models with tokens and FLOPs of one denoiser forward. Left out are

- audio, 3D and ASR rows: their work is no denoising of pixels, so a `Shape` cannot say how it grows;
- up-scalers: only a total is known, not how it follows the input;
- models without counted FLOPs (Stable Cascade, FramePack, Step-Video, MAGI-1, LongCat): a guess would look like a figure;
- sizes of adapters: those are properties of an adapter, not models.

The rows have no weights, so `weights_digest` is empty: no real site is ever sent one.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Final

from atoll.catalog.csv_rows import Row, known, read_rows
from atoll.catalog.problems import Problems
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId, parse_name
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape

_GB: Final = 10**9
_BILLION: Final = 10**9
_TFLOP: Final = 10**12
# A thousand times the largest forward of the table.
_FLOP_MAX: Final = 10**20
_PARAMS_MAX: Final = 10**14
_MODALITIES: Final = frozenset({*Modality, "adapter"})
# Linear attention: work grows with the tokens, not with their square.
_LINEAR_FAMILIES: Final = frozenset({"Sana"})
# Frames of video per frame of latent, from the configurations of their autoencoders; 4 for all others that make video.
_TEMPORAL_FACTORS: Final = {"LTX": 8, "Mochi": 6, "Cosmos": 8, "SVD": 1, "AnimateDiff": 1}
_TEMPORAL_FACTOR: Final = 4
# Transformers that take two latent frames as one token, on top of their autoencoder's 4.
_TEMPORAL_FACTORS_OF_MODELS: Final = {"cogvideox1.5-5b": 8}
# Pipelines that take coarser sides than a token has: their autoencoder's 32 pixels at two of them a token.
_SIDES_PX: Final = {"SanaVideoPipeline": 32}
# What is resident in all less the weights, at least: a context on the device and its work space.
_ACTIVATION_BYTES_MIN: Final = 500_000_000
_COLUMNS: Final = frozenset(
    {
        "model", "family", "modality", "hf_id", "pipeline_class", "denoiser_params_b", "tokenwise_params_b", "text_params_b",
        "vae_params_b", "weights_gb_bf16", "resident_gb_est", "default_steps", "cfg_forwards", "width", "height", "frames",
        "latent_tokens", "text_tokens", "layers", "hidden", "tflop_per_forward", "attn_tflop", "vae_decode_tflop", "flops_basis",
        "params_basis",
    }
)  # fmt: skip


def parse_models_csv(text: str, file_name: str) -> tuple[ModelSpec, ...]:
    """Models whose rows say enough, in the order of the table. Raises SourceErrors."""
    problems = Problems(file_name)
    found: dict[ModelId, ModelSpec] = {}
    for row in read_rows(text, problems, _COLUMNS):
        modality = known(row, "modality", _MODALITIES, "modality")
        if modality not in {Modality.IMAGE, Modality.VIDEO} or not row.text("tflop_per_forward") or not row.text("latent_tokens"):
            continue
        try:
            model_id = ModelId(parse_name("model", slug(row.text("model"))))
        except FieldError as error:
            problems.add_field(row.line, error)
            continue
        if model_id in found:
            row.wrong("model", f"each model once; {model_id!r} was there before")
        found[model_id] = _model(row, model_id, Modality(modality))
    problems.check()
    return tuple(found.values())


def slug(title: str) -> str:
    """A title as a name: "FLUX.1 [dev]" is "flux.1-dev"."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")


def _model(row: Row, model_id: ModelId, modality: Modality) -> ModelSpec:
    shape = Shape(
        width=row.figure("width", 1, limits.SIDE_PX_MIN, limits.SIDE_PX_MAX),
        height=row.figure("height", 1, limits.SIDE_PX_MIN, limits.SIDE_PX_MAX),
        frames=row.figure("frames", 1, 1, limits.FRAMES_MAX, default=1),
        steps=row.figure("default_steps", 1, 1, limits.STEPS_MAX),
        cfg_passes=row.figure("cfg_forwards", 1, 1, limits.CFG_PASSES_MAX, default=1),
    )
    physics = _physics(row, model_id, shape, modality)
    weights_bytes = row.figure("weights_gb_bf16", _GB, 1, limits.BYTES_MAX)
    total_bytes = row.figure("resident_gb_est", _GB, 1, limits.BYTES_MAX)
    return ModelSpec(
        model_id=model_id,
        title=row.text("model"),
        family=row.text("family"),
        modality=modality,
        pipeline_class=row.text("pipeline_class"),
        weights_bytes=weights_bytes,
        resident_bytes=weights_bytes,
        activation_bytes=max(total_bytes - weights_bytes, _ACTIVATION_BYTES_MIN),
        default_shape=shape,
        precision=Precision.BF16,
        physics=physics,
        side_px=_SIDES_PX.get(row.text("pipeline_class"), _side_px(physics)),
        frame_step=_frame_step(row, shape) if modality is Modality.VIDEO else 0,
        source=f"{row.text('hf_id')}; FLOPs {row.text('flops_basis')}; parameters {row.text('params_basis')}",
    )


def _side_px(physics: ModelPhysics) -> int:
    """Pixels on the side of a token, which no pipeline divides; 0 where the figures of the row do not say.

    Models that edit a picture have its tokens beside those of the result.
    """
    shape, tokens = physics.reference, physics.reference_tokens
    latent_frames = -(-(shape.frames - 1) // physics.temporal_factor) + 1
    area_px = shape.width * shape.height * latent_frames
    for pictures in (1, 2) if shape.frames == 1 else (1,):
        side = isqrt(area_px * pictures // tokens)
        if side * side * tokens == area_px * pictures and not (shape.width % side or shape.height % side):
            return side
    return 0


def _frame_step(row: Row, shape: Shape) -> int:
    """Frames per frame of latent; 0 where the model's own number of frames is none of 1 + a multiple of it: it counts otherwise."""
    step = _TEMPORAL_FACTORS.get(row.text("family"), _TEMPORAL_FACTOR)
    return 0 if (shape.frames - 1) % step else step


def _physics(row: Row, model_id: ModelId, shape: Shape, modality: Modality) -> ModelPhysics:
    layers = row.figure("layers", 1, 0, 10_000, default=0)
    if row.text("family") in _LINEAR_FAMILIES:
        kind = DenoiserKind.LINEAR
    else:
        kind = DenoiserKind.TRANSFORMER if layers else DenoiserKind.UNET
    of_family = _TEMPORAL_FACTORS.get(row.text("family"), _TEMPORAL_FACTOR)
    temporal = _TEMPORAL_FACTORS_OF_MODELS.get(model_id, of_family) if modality is Modality.VIDEO else 1
    return ModelPhysics(
        kind=kind,
        denoiser_params=row.figure("denoiser_params_b", _BILLION, 1, _PARAMS_MAX),
        tokenwise_params=row.figure("tokenwise_params_b", _BILLION, 0, _PARAMS_MAX, default=0),
        text_params=row.figure("text_params_b", _BILLION, 0, _PARAMS_MAX, default=0),
        vae_params=row.figure("vae_params_b", _BILLION, 0, _PARAMS_MAX, default=0),
        layers=layers,
        hidden=row.figure("hidden", 1, 0, 1_000_000, default=0),
        text_tokens=row.figure("text_tokens", 1, 0, 1_000_000, default=0),
        reference=shape,
        reference_tokens=row.figure("latent_tokens", 1, 1, 10**9),
        reference_forward_flops=row.figure("tflop_per_forward", _TFLOP, 1, _FLOP_MAX),
        reference_attention_flops=row.figure("attn_tflop", _TFLOP, 0, _FLOP_MAX, default=0),
        reference_decode_flops=row.figure("vae_decode_tflop", _TFLOP, 0, _FLOP_MAX, default=0),
        temporal_factor=temporal,
        estimated="estimated" in row.text("flops_basis") or row.text("params_basis") == "published",
    )
