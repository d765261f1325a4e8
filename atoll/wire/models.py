"""Models <-> messages. Operators add models over the wire, so sizes, paths and digests are checked."""

from __future__ import annotations

from functools import partial

from atoll.model import limits
from atoll.model.ids import ModelId, parse_name
from atoll.model.modelspec import ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import (
    DENOISER_KIND_FROM,
    DENOISER_KIND_TO,
    MODALITY_FROM,
    MODALITY_TO,
    PRECISION_FROM,
    PRECISION_TO,
    member,
)
from atoll.wire.jobs import shape_from_proto, shape_to_proto


def model_shape_from_proto(msg: pb.Shape) -> Shape:
    """A shape that describes a model: any figure up to the limits, also such as no job may ask for (sound has neither width nor height)."""
    shape = shape_from_proto(msg)
    bounds.number("width", shape.width, 0, limits.SIDE_PX_MAX)
    bounds.number("height", shape.height, 0, limits.SIDE_PX_MAX)
    bounds.number("frames", shape.frames, 0, limits.FRAMES_MAX)
    bounds.number("steps", shape.steps, 0, limits.STEPS_MAX)
    bounds.number("cfg_passes", shape.cfg_passes, 0, limits.CFG_PASSES_MAX)
    bounds.number("batch", shape.batch, 0, limits.BATCH_MAX)
    return shape


def model_physics_to_proto(physics: ModelPhysics) -> pb.ModelPhysics:
    """The figures behind a model's times."""
    return pb.ModelPhysics(
        kind=DENOISER_KIND_TO[physics.kind],
        denoiser_params=physics.denoiser_params,
        tokenwise_params=physics.tokenwise_params,
        text_params=physics.text_params,
        vae_params=physics.vae_params,
        layers=physics.layers,
        hidden=physics.hidden,
        text_tokens=physics.text_tokens,
        reference=shape_to_proto(physics.reference),
        reference_tokens=physics.reference_tokens,
        reference_forward_flops=physics.reference_forward_flops,
        reference_attention_flops=physics.reference_attention_flops,
        reference_decode_flops=physics.reference_decode_flops,
        temporal_factor=physics.temporal_factor,
        estimated=physics.estimated,
    )


def model_physics_from_proto(msg: pb.ModelPhysics) -> ModelPhysics:
    """FieldError naming the figure that cannot be."""
    count = partial(bounds.number, low=0, high=bounds.COUNT_MAX)
    return ModelPhysics(
        kind=member("kind", DENOISER_KIND_FROM, msg.kind),
        denoiser_params=count("denoiser_params", msg.denoiser_params),
        tokenwise_params=count("tokenwise_params", msg.tokenwise_params),
        text_params=count("text_params", msg.text_params),
        vae_params=count("vae_params", msg.vae_params),
        layers=count("layers", msg.layers),
        hidden=count("hidden", msg.hidden),
        text_tokens=count("text_tokens", msg.text_tokens),
        reference=bounds.part("reference", msg.reference, model_shape_from_proto),
        reference_tokens=count("reference_tokens", msg.reference_tokens),
        reference_forward_flops=count("reference_forward_flops", msg.reference_forward_flops),
        reference_attention_flops=count("reference_attention_flops", msg.reference_attention_flops),
        reference_decode_flops=count("reference_decode_flops", msg.reference_decode_flops),
        temporal_factor=bounds.number("temporal_factor", msg.temporal_factor, 1, limits.FRAMES_MAX),
        estimated=msg.estimated,
    )


def model_spec_to_proto(model: ModelSpec) -> pb.ModelSpec:
    """One model."""
    return pb.ModelSpec(
        model_id=model.model_id,
        title=model.title,
        family=model.family,
        modality=MODALITY_TO[model.modality],
        pipeline_class=model.pipeline_class,
        weights_bytes=model.weights_bytes,
        resident_bytes=model.resident_bytes,
        activation_bytes=model.activation_bytes,
        default_shape=shape_to_proto(model.default_shape),
        precision=PRECISION_TO[model.precision],
        weights_digest=model.weights_digest,
        origin_path=model.origin_path,
        physics=model_physics_to_proto(model.physics),
        source=model.source,
        compiled=model.compiled,
        side_px=model.side_px,
        frame_step=model.frame_step,
    )


def model_spec_from_proto(msg: pb.ModelSpec) -> ModelSpec:
    """FieldError naming the figure that cannot be. An unspecified precision is bf16."""
    return ModelSpec(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        title=bounds.label("title", msg.title),
        family=bounds.label("family", msg.family),
        modality=member("modality", MODALITY_FROM, msg.modality),
        pipeline_class=bounds.label("pipeline_class", msg.pipeline_class),
        weights_bytes=bounds.number("weights_bytes", msg.weights_bytes, 0, limits.BYTES_MAX),
        resident_bytes=bounds.number("resident_bytes", msg.resident_bytes, 0, limits.BYTES_MAX),
        activation_bytes=bounds.number("activation_bytes", msg.activation_bytes, 0, limits.BYTES_MAX),
        default_shape=bounds.part("default_shape", msg.default_shape, model_shape_from_proto),
        precision=Precision.BF16 if not msg.precision else member("precision", PRECISION_FROM, msg.precision),
        weights_digest=bounds.optional_digest("weights_digest", msg.weights_digest),
        origin_path=bounds.relative_path("origin_path", msg.origin_path),
        physics=bounds.part("physics", msg.physics, model_physics_from_proto),
        source=bounds.label("source", msg.source, bounds.MESSAGE_CHARS),
        compiled=msg.compiled,
        side_px=bounds.number("side_px", msg.side_px, 0, limits.SIDE_PX_MAX),
        frame_step=bounds.number("frame_step", msg.frame_step, 0, limits.FRAMES_MAX),
    )
