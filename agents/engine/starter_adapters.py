"""The starter adapters: three LoRAs of a few KB for the starter models, built on this machine without a download.

Decides which layers they change and by what numbers: drawn as the starters' own weights are, so that every machine builds the same
bytes. Shapes are read from the built model; neither torch nor diffusers is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agents.engine.errors import BadWeightsError, EngineError
from agents.engine.manifest import check_safetensors, hash_file
from agents.engine.starters import TINY_IMAGE, TINY_VIDEO, StarterModel
from atoll.model.adapter import SUFFIX, AdapterSpec
from atoll.model.attempt import FailureKind
from atoll.model.ids import AdapterId, ModelId

FOLDER: Final = "adapters"
_SOURCE: Final = "built from a formula: untrained, for demonstrations and tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """What an adapter changes: layers of a component whose names match, by a low-rank product of this gain."""

    spec: AdapterSpec
    layers: tuple[tuple[str, str], ...]  # component, pattern of layer names
    gain: float


def _recipe(adapter_id: str, title: str, model_id: ModelId, rank: int, gain: float, *layers: tuple[str, str]) -> _Recipe:
    spec = AdapterSpec(
        adapter_id=AdapterId(adapter_id),
        title=title,
        model_ids=(model_id,),
        rank=rank,
        weights_bytes=1,  # until it is built
        origin_path=f"{FOLDER}/{adapter_id}{SUFFIX}",
        source=_SOURCE,
    )
    return _Recipe(spec=spec, layers=layers, gain=gain)


_ATTENTION: Final = r"attn[12]\.to_(q|k|v|out\.0)"
_RECIPES: Final = (
    _recipe("tiny-ink", "Tiny ink (attention of the UNet, untrained)", TINY_IMAGE.model_id, 4, 1.0, ("unet", _ATTENTION)),
    _recipe(
        "tiny-wash",
        "Tiny wash (attention of UNet and text encoder, untrained)",
        TINY_IMAGE.model_id,
        8,
        0.6,
        ("unet", r"attn2\.to_(k|v)"),
        ("text_encoder", r"self_attn\.(q|v)_proj"),
    ),
    _recipe("tiny-drift", "Tiny drift (attention of the transformer, untrained)", TINY_VIDEO.model_id, 4, 1.0, ("transformer", _ATTENTION)),
)
STARTER_ADAPTERS: Final = tuple(recipe.spec for recipe in _RECIPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterAdapter:
    """A starter adapter on disk. `spec` carries the digest and bytes of `path`."""

    spec: AdapterSpec
    path: Path


def build_starter_adapters(
    root: Path, models: tuple[StarterModel, ...], *, on_progress: Callable[[str], None] | None = None
) -> tuple[StarterAdapter, ...]:
    """The adapters of these built models, as `root/adapters/NAME.safetensors`, each complete or not at all.

    EngineError(DISK_FULL or LOAD_FAILED) if one cannot be written.
    """
    folders = {model.spec.model_id: model.folder for model in models}
    built = []
    for recipe in _RECIPES:
        folder = folders.get(recipe.spec.model_ids[0])
        if folder is None:
            continue
        path = root / recipe.spec.origin_path
        content = _content(recipe, folder)
        if not path.is_file() or path.read_bytes() != content:
            _write(path, content)
            if on_progress is not None:
                on_progress(f"{recipe.spec.adapter_id}: built, {len(content) / 1e3:.0f} kB")
        built.append(StarterAdapter(spec=_measured(recipe.spec, path), path=path))
    return tuple(built)


def _measured(spec: AdapterSpec, path: Path) -> AdapterSpec:
    check_safetensors(path, path.name)
    digest, size = hash_file(path)
    return replace(spec, weights_bytes=size, weights_digest=f"sha256:{digest}")


def _content(recipe: _Recipe, folder: Path) -> bytes:
    import safetensors.numpy

    tensors: dict[str, Any] = {}
    for component, pattern in recipe.layers:
        for layer, (outputs, inputs) in _layers(folder / component, pattern):
            name = f"{component}.{layer}"
            seed = f"{recipe.spec.adapter_id}/{name}"
            tensors[f"{name}.lora_A.weight"] = _draw(f"{seed}/A", (recipe.spec.rank, inputs), 1.0)
            tensors[f"{name}.lora_B.weight"] = _draw(f"{seed}/B", (outputs, recipe.spec.rank), recipe.gain)
    saved: bytes = safetensors.numpy.save(tensors)
    return saved


def _draw(seed: str, shape: tuple[int, int], gain: float) -> Any:
    """Uniform numbers whose product over a rank changes a layer about as much as the layer itself does; exact on every machine."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")))
    uniform = generator.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
    return uniform * np.float32(gain) / np.float32(shape[1]) ** np.float32(0.5)


def _layers(component: Path, pattern: str) -> list[tuple[str, tuple[int, int]]]:
    """(name, (outputs, inputs)) of the matching matrices of a component, by name."""
    wanted = re.compile(rf"(.*\.)?{pattern}\.weight\Z")
    found = []
    for path in sorted(component.glob(f"*{SUFFIX}")):
        with path.open("rb") as source:
            header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and wanted.match(name) and len(entry["shape"]) == 2:
                found.append((name.removesuffix(".weight"), (int(entry["shape"][0]), int(entry["shape"][1]))))
    if not found:
        raise BadWeightsError(str(component), f"no layer matches {pattern}", "a starter model as this version builds it")
    return sorted(found)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise EngineError(FailureKind.LOAD_FAILED, f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
