"""A model folder as a ModelSpec: the starters' own figures, a known model's, or an estimate from the files.

Decides the estimate, and marks it as one. The folder is checked as an agent would check it: safetensors only, each file as its manifest
says. Loads the part of `agents` that knows manifests, and neither torch nor diffusers.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll.cli.exits import CliError, Exit
from atoll.model.errors import FieldError
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape

if TYPE_CHECKING:
    from agents.engine.manifest import ModelManifest

# A latent of an image VAE has an eighth of the side, a patch two of its pixels.
_PX_PER_TOKEN: Final = 16
# Activations of published pipelines at their reference shape are a tenth to a half of their weights; too much only means fewer replicas.
_ACTIVATION_SHARE: Final = 0.5
_ACTIVATION_BYTES_MIN: Final = 64_000_000
_DENOISERS: Final = ("transformer", "unet", "prior")
_IMAGE_SHAPE: Final = Shape(width=512, height=512, steps=30, cfg_passes=2)
_VIDEO_SHAPE: Final = Shape(width=480, height=320, frames=25, steps=30, cfg_passes=2)
_DTYPES: Final = {"F32": Precision.FP32, "F16": Precision.FP16, "BF16": Precision.BF16, "F8_E4M3": Precision.FP8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator says of the model; 0 and "": nothing."""

    title: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    steps: int = 0
    compiled: bool = False


def read_spec(folder: Path, wishes: Wishes, known: Callable[[str], ModelSpec | None]) -> ModelSpec:
    """The model in `folder`. `known` answers a model's figures by its id, if the orchestrator has them.

    Raises CliError naming the file that is wrong.
    """
    from agents.engine.errors import BadWeightsError
    from agents.engine.manifest import verify_folder
    from agents.engine.sizes import sizes_of
    from agents.engine.starters import STARTERS

    try:
        manifest = verify_folder(folder)
    except BadWeightsError as error:
        hint = "the folder must hold atoll-manifest.json and exactly the files it lists"
        raise CliError(str(error), code=Exit.USAGE, hint=hint) from None
    starters = {spec.model_id: spec for spec in STARTERS}
    base = starters.get(manifest.model_id) or known(manifest.model_id) or _estimate(folder, manifest)
    shape, (side_px, frame_step) = base.default_shape, sizes_of(folder, manifest.pipeline_class)
    spec = replace(
        base,
        model_id=manifest.model_id,
        title=wishes.title or base.title,
        modality=manifest.modality,
        pipeline_class=manifest.pipeline_class,
        weights_bytes=manifest.total_bytes,
        default_shape=replace(
            shape,
            width=wishes.width or shape.width,
            height=wishes.height or shape.height,
            frames=wishes.frames or shape.frames,
            steps=wishes.steps or shape.steps,
        ),
        weights_digest=manifest.digest,
        origin_path=str(manifest.model_id),
        compiled=wishes.compiled,
        side_px=side_px or base.side_px,
        frame_step=frame_step or base.frame_step,
    )
    try:
        spec.check_shape(spec.default_shape, f"{spec.model_id}: default shape")
    except FieldError as error:
        raise CliError(str(error), code=Exit.USAGE, hint="what it makes when a job names no size: --size, --frames") from None
    return spec


def put_in_origin(folder: Path, spec: ModelSpec, origin: str) -> str:
    """Copy a folder below an origin store, unless it lies there; where it is then. Raises CliError."""
    if "://" in origin and not origin.startswith("file://"):
        import fsspec

        target = f"{origin.rstrip('/')}/{spec.origin_path}"
        try:
            files, root = fsspec.core.url_to_fs(target)
            files.put(f"{folder}/", root, recursive=True)
        except (OSError, ValueError, ImportError) as error:
            raise CliError(f"cannot copy to {target}: {error}") from None
        return target
    place = Path(origin.removeprefix("file://")).expanduser() / spec.origin_path
    if place.resolve() == folder.resolve():
        return str(place)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, partial)
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    except OSError as error:
        raise CliError(f"cannot copy to {place}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(place)


def _estimate(folder: Path, manifest: ModelManifest) -> ModelSpec:
    """Figures from the number of parameters; what is learned at work corrects them."""
    counts: dict[str, int] = {}
    dtypes: dict[str, int] = {}
    for file in manifest.files:
        if file.path.endswith(".safetensors"):
            component = file.path.partition("/")[0]
            for dtype, count in _tensors(folder / file.path):
                counts[component] = counts.get(component, 0) + count
                dtypes[dtype] = dtypes.get(dtype, 0) + count
    denoiser = max((counts.get(name, 0) for name in _DENOISERS), default=0) or max(counts.values(), default=1)
    text = sum(count for name, count in counts.items() if name.startswith("text_encoder"))
    vae = counts.get("vae", 0)
    shape = _VIDEO_SHAPE if manifest.modality is Modality.VIDEO else _IMAGE_SHAPE
    tokens = max(shape.width * shape.height // _PX_PER_TOKEN**2, 1) * (1 + (shape.frames - 1 + 3) // 4)
    physics = ModelPhysics(
        kind=DenoiserKind.LINEAR,
        denoiser_params=denoiser,
        tokenwise_params=0,
        text_params=text,
        vae_params=vae,
        layers=1,
        hidden=1,
        text_tokens=77,
        reference=shape,
        reference_tokens=tokens,
        reference_forward_flops=2 * denoiser * tokens,
        reference_attention_flops=0,
        reference_decode_flops=2 * vae * tokens,
        temporal_factor=4 if manifest.modality is Modality.VIDEO else 1,
        estimated=True,
    )
    weights = sum(file.bytes for file in manifest.files if file.path.endswith(".safetensors"))
    most_used = max(dtypes, key=lambda dtype: dtypes[dtype], default="BF16")
    return ModelSpec(
        model_id=manifest.model_id,
        title=str(manifest.model_id),
        family="own",
        modality=manifest.modality,
        pipeline_class=manifest.pipeline_class,
        weights_bytes=manifest.total_bytes,
        resident_bytes=weights,
        activation_bytes=max(round(weights * _ACTIVATION_SHARE), _ACTIVATION_BYTES_MIN),
        default_shape=shape,
        precision=_DTYPES.get(most_used, Precision.BF16),
        physics=physics,
        source="estimated from the number of parameters when it was added",
    )


def _tensors(path: Path) -> list[tuple[str, int]]:
    """(dtype, number of elements) of each tensor, from the header, whose form the manifest's check has seen to."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return [(str(entry["dtype"]), math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__"]
