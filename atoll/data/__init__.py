"""The figures that come with the program: GPU types, models, published times, and the links of the reference fleet.

Decides where packaged text lies. What it means is `atoll.catalog`'s; sources, licences and what is estimated stand in README.md beside it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def gpus_csv() -> str:
    """Data-sheet figures of GPU types, one a row."""
    return _text("gpus.csv")


def models_csv() -> str:
    """Figures of public models, one a row."""
    return _text("models.csv")


def clusters_yaml() -> str:
    """The reference fleet: 36 sites; its figures are invented. A checkout has the file beside the package, an installed one within."""
    within = files(__name__) / "clusters.yaml"
    return (within if within.is_file() else Path(__file__).parents[2] / "clusters.yaml").read_text(encoding="utf-8")


def fleet_wan_csv() -> str:
    """Round trips and throughput between the sites of the reference fleet: synthetic."""
    return _text("fleet_wan.csv")


def latencies_csv() -> str:
    """Published generation times, one a row, each with its source."""
    return _text("latencies.csv")


def mlenergy_latency_csv() -> str:
    """A measured sweep of 8 models over batches and gangs, one setting a row."""
    return _text("mlenergy_latency.csv")


def gpu_check_csv() -> str:
    """Times that Atoll's own check measured on single GPUs, one a row."""
    return _text("gpu_check.csv")


def published_names_csv() -> str:
    """Names under which models of models.csv are published, one a row."""
    return _text("published_names.csv")


def _text(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
