"""What comes with the program: its catalogue, and fleets by name.

Decides that a program without a catalogue of its own uses the packaged figures, and which fleets have a name. Reads them once per call;
opens nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from atoll import data
from atoll.catalog.fleet import FleetSpec, parse_fleet, scaled
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec

# Wherever a fleet's file is named, one of these may be: the reference fleet with this share of the nodes of each pool, at least one. All 36
# sites at a 32nd are a fleet of some 650 GPUs, which a study can play for hours of fleet time.
FLEETS: Final = {"fleet-small": (1, 32)}


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


def named_fleet(name: str, gpus: Iterable[GpuTypeId]) -> FleetSpec | None:
    """The fleet that Atoll calls so; None where a file is meant."""
    share = FLEETS.get(name)
    if share is None:
        return None
    fleet = parse_fleet(data.clusters_yaml(), "clusters.yaml", gpus, data.fleet_wan_csv())
    return replace(fleet, sites=scaled(fleet.sites, *share))
