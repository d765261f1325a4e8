"""Which sizes the pipeline in a folder makes, read from its configurations before anything is loaded.

Decides from what the files say, and guesses nothing: what they do not say is 0, and found out by the first load (`calling.shape_rule`).
Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

# A configuration is some KB.
_FILE_BYTES_MAX: Final = 1_000_000
# What autoencoders of diffusers call pixels per latent, and frames per latent frame.
_SPATIAL: Final = ("scale_factor_spatial", "spatial_compression_ratio")
_TEMPORAL: Final = ("scale_factor_temporal", "temporal_compression_ratio")
# Those that say it by their levels only: each but the first halves the sides.
_LEVELS: Final = ("block_out_channels", "encoder_block_out_channels")
_LEVELS_MAX: Final = 16
_FACTOR_MAX: Final = 1_024
# Pipelines that pack latents in 2 x 2 and say so in code alone.
_PACKED: Final = ("Flux", "Chroma", "QwenImage", "HiDreamImage", "Lumina2", "ZImage")


def sizes_of(folder: Path, pipeline_class: str) -> tuple[int, int]:
    """(pixels of which sides are multiples, frames of which numbers are 1 + a multiple); 0 where the files do not say."""
    vae = _config(folder / "vae")
    both = _by_scaling(vae)
    side, frames = both if both is not None else (_first(vae, _SPATIAL) or _by_levels(vae), _first(vae, _TEMPORAL))
    packed = 2 if pipeline_class.startswith(_PACKED) else 1
    return side * max(_patch(folder), packed), frames


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((value for name in names if (value := _factor(config.get(name)))), 0)


def _by_scaling(config: dict[str, Any]) -> tuple[int, int] | None:
    """Of an autoencoder (LTX) that says which of its levels halve, and what its first patches are."""
    halves = config.get("spatio_temporal_scaling")
    if not isinstance(halves, list) or len(halves) > _LEVELS_MAX:
        return None
    factor = 2 ** sum(value is True for value in halves)
    return _factor(config.get("patch_size")) * factor, _factor(config.get("patch_size_t")) * factor


def _by_levels(config: dict[str, Any]) -> int:
    levels = next((value for name in _LEVELS if isinstance(value := config.get(name), list) and value), [])
    return _factor(2 ** (len(levels) - 1)) if 0 < len(levels) <= _LEVELS_MAX else 0


def _patch(folder: Path) -> int:
    size = _config(folder / "transformer").get("patch_size")
    return _factor(size[-1] if isinstance(size, list) and size else size) or 1


def _factor(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _FACTOR_MAX else 0
