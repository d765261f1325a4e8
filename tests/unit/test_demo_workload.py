"""What the demo asks for exists, is legal, and is small enough for a minute of real time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agents.engine.starters import STARTERS
from atoll import data
from atoll.catalog.fleet import parse_fleet
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv
from atoll.cli.demo.board import tally
from atoll.cli.demo.workload import REHEARSALS, Rehearsed, rehearsals, wishes
from atoll.model.ids import ModelId
from atoll.physics.execution import execution_us

REPOSITORY = Path(__file__).resolve().parents[2]
GPUS = parse_gpus(data.gpus_csv(), "gpus.csv")
MODELS = {model.model_id: model for model in parse_models_csv(data.models_csv(), "models.csv")}
FLEET = parse_fleet((REPOSITORY / "clusters.yaml").read_text(encoding="utf-8"), "clusters.yaml", GPUS, data.fleet_wan_csv())


def test_real_jobs_are_of_starters_and_each_has_a_file_of_its_own() -> None:
    wanted = wishes()
    suffixes = Counter(Path(wish.name).suffix for wish in wanted)
    assert suffixes[".png"] >= 8
    assert suffixes[".mp4"] >= 2
    assert {wish.request.model for wish in wanted} == {str(spec.model_id) for spec in STARTERS}
    for unique in ([wish.name for wish in wanted], [wish.request.prompt for wish in wanted], [wish.request.seed for wish in wanted]):
        assert len(set(unique)) == len(wanted)
    assert not any(wish.request.simulated for wish in wanted)


def test_rehearsals_are_of_the_catalogue_and_say_that_they_are() -> None:
    asked = rehearsals()
    assert 60 <= len(asked) <= 120
    assert all(request.simulated and request.model in MODELS for request in asked)
    assert len({request.tenant for request in asked}) > 3
    assert len({request.priority for request in asked}) == 3
    assert Counter(request.model for request in asked) == sum((Counter({one.model: one.jobs}) for one in REHEARSALS), Counter())


@pytest.mark.parametrize("rehearsed", REHEARSALS, ids=lambda rehearsed: f"{rehearsed.model}-{rehearsed.tenant}")
def test_rehearsals_have_a_place_that_makes_them_in_seconds(rehearsed: Rehearsed) -> None:
    regions, gpu_types, model = rehearsed.regions, rehearsed.gpu_types, MODELS[ModelId(rehearsed.model)]
    assert set(regions) <= {site.region for site in FLEET.sites}
    assert set(gpu_types) <= set(GPUS)
    pools = [
        pool for site in FLEET.sites if not regions or site.region in regions
        for pool in site.pools if not gpu_types or pool.gpu_type in gpu_types
    ]  # fmt: skip
    quickest_us = min(execution_us(model, model.default_shape, GPUS[pool.gpu_type], model.precision) for pool in pools)
    assert quickest_us < 15_000_000


def test_an_empty_board_still_has_a_line_for_each_real_site() -> None:
    counted = tally([], ("harbour", "quay"))
    assert list(counted.sites) == ["harbour", "quay"]
    assert (counted.queued, counted.ended, counted.total) == (0, 0, 0)
