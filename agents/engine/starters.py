"""The starter models: two real diffusers pipelines of a few MB, built on this machine in seconds, without any download.

Decides their names, shapes and figures, and when a built folder is used again. Imports torch only when something
must be built.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agents.engine.errors import BadWeightsError, EngineError
from agents.engine.manifest import ModelManifest, verify_folder, write_manifest
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape

_SOURCE: Final = "built from a configuration, weights from a formula: untrained, for demonstrations and tests"
_IMAGE_SHAPE: Final = Shape(width=128, height=128, steps=8, cfg_passes=2)
_VIDEO_SHAPE: Final = Shape(width=96, height=96, frames=9, steps=6, cfg_passes=2)

# Parameters and FLOPs counted on the built pipelines (torch's FlopCounterMode, batch 1; attention by formula).
# Bytes and digest are filled in from the folder.
TINY_IMAGE: Final = ModelSpec(
    model_id=ModelId("tiny-image"),
    title="Tiny image (Stable Diffusion class, untrained)",
    family="starter",
    modality=Modality.IMAGE,
    pipeline_class="StableDiffusionPipeline",
    weights_bytes=8_300_000,
    resident_bytes=8_215_124,
    activation_bytes=64_000_000,
    default_shape=_IMAGE_SHAPE,
    precision=Precision.FP32,
    physics=ModelPhysics(
        kind=DenoiserKind.UNET,
        denoiser_params=1_687_652,
        tokenwise_params=0,
        text_params=104_896,
        vae_params=261_079,
        layers=7,
        hidden=64,
        text_tokens=77,
        reference=_IMAGE_SHAPE,
        reference_tokens=333,
        reference_forward_flops=173_000_000,
        reference_attention_flops=5_000_000,
        reference_decode_flops=700_514_304,
    ),
    source=_SOURCE,
    side_px=8,
)
TINY_VIDEO: Final = ModelSpec(
    model_id=ModelId("tiny-video"),
    title="Tiny video (Wan class, untrained)",
    family="starter",
    modality=Modality.VIDEO,
    pipeline_class="WanPipeline",
    weights_bytes=4_800_000,
    resident_bytes=4_828_460,
    activation_bytes=128_000_000,
    default_shape=_VIDEO_SHAPE,
    precision=Precision.FP32,
    physics=ModelPhysics(
        kind=DenoiserKind.TRANSFORMER,
        denoiser_params=438_016,
        tokenwise_params=338_400,
        text_params=88_768,
        vae_params=668_043,
        layers=3,
        hidden=96,
        text_tokens=512,
        reference=_VIDEO_SHAPE,
        reference_tokens=620,
        reference_forward_flops=212_000_000,
        reference_attention_flops=77_000_000,
        reference_decode_flops=3_608_248_320,
        temporal_factor=4,
    ),
    source=_SOURCE,
    side_px=16,
    frame_step=4,
)
STARTERS: Final = (TINY_IMAGE, TINY_VIDEO)


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterModel:
    """A starter on disk. `spec` carries the digest and bytes of `folder`; `reused`: it was there already, verified."""

    spec: ModelSpec
    folder: Path
    manifest: ModelManifest
    reused: bool


def build_starters(root: Path, *, only: tuple[str, ...] = (), on_progress: Callable[[str], None] | None = None) -> tuple[StarterModel, ...]:
    """The starter models below `root` (all, or those named in `only`), built where they are missing or damaged.

    A model is stored as `root/<model id>`, which appears complete or not at all. `on_progress` hears one line per
    event. FieldError for an unknown name; EngineError(DISK_FULL or LOAD_FAILED) if a build cannot be written or done.
    """
    known = {str(spec.model_id): spec for spec in STARTERS}
    for name in only:
        if name not in known:
            raise FieldError("model", name, f"one of {', '.join(known)}")
    say = on_progress if on_progress is not None else _silent
    root.mkdir(parents=True, exist_ok=True)
    return tuple(_starter(root, known[name], say) for name in (only or known))


def _starter(root: Path, spec: ModelSpec, say: Callable[[str], None]) -> StarterModel:
    folder = root / spec.model_id
    if folder.exists():
        try:
            manifest = verify_folder(folder)
            say(f"{spec.model_id}: already built")
            return _model(spec, folder, manifest, reused=True)
        except BadWeightsError as error:
            say(f"{spec.model_id}: building again ({error})")
    else:
        say(f"{spec.model_id}: building")
    partial = root / f".{spec.model_id}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        manifest = _build(partial, spec)
        _settle(partial, folder, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{spec.model_id}: built, {manifest.total_bytes / 1e6:.1f} MB, {manifest.digest}")
    return _model(spec, folder, manifest, reused=False)


def _build(partial: Path, spec: ModelSpec) -> ModelManifest:
    try:
        from agents.engine.quiet import quiet_loading

        with quiet_loading():
            from agents.engine import tiny  # which imports pipelines, and those give advice

            if spec.modality is Modality.IMAGE:
                tiny.build_tiny_image(partial)
            else:
                tiny.build_tiny_video(partial)
        for path in sorted(partial.rglob("*")):
            # safetensors writes its files for the owner alone; another account may serve them.
            path.chmod(0o755 if path.is_dir() else 0o644)
        return write_manifest(partial, model_id=spec.model_id, modality=spec.modality)
    except ImportError as error:
        need = f"building {spec.model_id} needs torch and diffusers (install atoll[worker]): {error}"
        raise EngineError(FailureKind.LOAD_FAILED, need) from None
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        kind = FailureKind.DISK_FULL if full else FailureKind.LOAD_FAILED
        raise EngineError(kind, f"cannot write {spec.model_id} below {partial.parent}: {error}") from error


def _settle(partial: Path, folder: Path, manifest: ModelManifest) -> None:
    """Put the built folder in place of a damaged one; another builder may have been quicker with the same bytes."""
    try:
        partial.rename(folder)
    except OSError:
        try:
            if verify_folder(folder).digest == manifest.digest:
                return
        except BadWeightsError:
            pass  # damaged: replaced below
        shutil.rmtree(folder)
        partial.rename(folder)


def _model(spec: ModelSpec, folder: Path, manifest: ModelManifest, *, reused: bool) -> StarterModel:
    full = replace(
        spec,
        weights_bytes=manifest.total_bytes,
        weights_digest=manifest.digest,
        origin_path=str(spec.model_id),
    )
    return StarterModel(spec=full, folder=folder, manifest=manifest, reused=reused)


def _silent(_line: str) -> None:
    return None
