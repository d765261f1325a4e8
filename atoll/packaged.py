"""The catalogue that comes with the program.

Decides that a program without a catalogue of its own uses the packaged figures. Reads them once per call; opens nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll import data
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedCatalogue:
    """GPU types by name, and models known by their figures: twins run those."""

    gpus: dict[GpuTypeId, GpuType]
    models: tuple[ModelSpec, ...]


def load_packaged() -> PackagedCatalogue:
    """GPU types and models of `atoll.data`."""
    return PackagedCatalogue(
        gpus=parse_gpus(data.gpus_csv(), "atoll/data/gpus.csv"),
        models=parse_models_csv(data.models_csv(), "atoll/data/models.csv"),
    )
