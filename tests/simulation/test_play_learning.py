"""A fleet of twins whose sites are twice and half as fast as declared: what is learned comes to what the hidden factors are."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import mean

import pytest

from atoll.model.ids import GpuTypeId, ModelId, SiteId, TenantId
from atoll.model.learned import Component
from atoll.physics.hidden import HiddenWorld
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.logs import ONE
from sims.play.player import Player
from sims.results.rows import JobRow
from sims.traces.job import TraceJob
from tests.simulation.played import Rows, three_sites

JOBS = 300
FACTORS = {"ams": 500, "fra": 1_000, "lon": 2_000}


class Uneven(HiddenWorld):
    """At each site everything lasts by one factor longer; attempts, models and modes differ as in any hidden world."""

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        del component
        return FACTORS.get(site_id, 1_000)  # the way between two sites is as declared


def _jobs(seed: int) -> Iterator[TraceJob]:
    """Jobs of six models, of some ten to twenty seconds as declared, for more than half of the slots."""
    chance, at_us = random.Random(seed), 0
    for _ in range(JOBS):
        at_us += round(chance.expovariate(1 / 1.6) * 1e6)
        name = ModelId(f"flux--{chance.randrange(6)}")
        yield TraceJob(arrival_us=at_us, model_id=name, tenant=TenantId("t"), steps=chance.randrange(80, 160))


@pytest.mark.parametrize("seed", [1, 2])
def test_executions_at_twins_are_predicted_as_the_hidden_factors_have_them(seed: int) -> None:
    rows, truth = Rows(), Uneven(seed)
    player = Player(three_sites(seed=seed), _jobs(seed), rows, truth=truth)
    player.play()
    ctx = player.brain.machine.context
    learned = ctx.book.components[Component.EXECUTION]

    def bias(row: JobRow, *, corrected: bool) -> float:
        """By how much the middle of the truth lies above what is predicted by now, as a log."""
        gpu = ctx.state.gpus[GpuTypeId(row.gpu_type)]
        place = Place(model_id=ModelId(row.model_id), gpu_type=gpu.gpu_type, site_id=SiteId(row.site_id))
        hidden = FACTORS[row.site_id] / 1_000 * truth.fit_milli(ctx.state.models[place.model_id], gpu) / 1_000
        return math.log(hidden) - (learned.published_log(place) * math.log(2) / ONE if corrected else 0.0)

    jobs = [row for row in rows.jobs if row.state == "succeeded"]
    assert len(jobs) == JOBS and {row.site_id for row in jobs} == set(FACTORS)
    declared, found = (mean(abs(bias(row, corrected=corrected)) for row in jobs) for corrected in (False, True))
    assert declared > 0.4
    assert found < 0.1, "a tenth where it was a half"
