"""What a run takes over from a live fleet: noise of its own, the ways that messages take, the time of a commit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.errors import FieldError
from atoll.model.ids import ModelId, TenantId
from sims.play.player import Player
from sims.play.scenario import Beginning, Scenario
from sims.traces.job import TraceJob
from tests.simulation.played import CATALOGUE, AsPredicted, Rows, mixed, one_pool, three_sites


def rows_of(scenario: Scenario) -> Rows:
    rows = Rows()
    Player(scenario, mixed(60), rows).play()
    return rows


def latency_us(scenario: Scenario) -> int:
    """Of one job at a fleet that has nothing else to do."""
    rows = Rows()
    Player(scenario, [TraceJob(arrival_us=0, model_id=ModelId("sd"), tenant=TenantId("t"))], rows, truth=AsPredicted()).play()
    (row,) = rows.jobs
    return row.ended_us - row.arrival_us


def test_runs_of_one_world_with_other_noise_have_the_same_jobs_and_other_rows() -> None:
    world = three_sites(seed=4)
    own, same, other = rows_of(world), rows_of(replace(world, noise_seed=4)), rows_of(replace(world, noise_seed=5))
    assert same == own
    assert other != own
    asked = {(row.number, row.model_id, row.arrival_us) for row in own.jobs}
    assert {(row.number, row.model_id, row.arrival_us) for row in other.jobs} == asked


def test_a_job_takes_two_ways_and_a_commit_longer() -> None:
    """The assignment goes down once it is durable, the end comes up. What a commit is for at the end is nobody's wait."""
    models = (CATALOGUE[ModelId("sd")],)
    bare = replace(one_pool(2), way_us=1_000, commit_us=0, beginning=Beginning(models=models))
    without = latency_us(bare)
    assert latency_us(replace(bare, way_us=8_000)) == without + 14_000
    assert latency_us(replace(bare, way_us=8_000, commit_us=3_000)) == without + 14_000 + 3_000


def test_sites_wait_in_real_time_at_the_scale_of_the_live_fleet() -> None:
    """Progress is told once in a second of real time, and what changes is gathered for a tenth of one, however fast fleet time runs."""
    for scale_milli in (1_000, 30_000):
        player = Player(replace(one_pool(1), time_scale_milli=scale_milli), mixed(1), Rows())
        player.play()
        (site,) = player.sites
        assert site.plant.pace_us == scale_milli * 1_000
        assert site.machine.state.scale_milli == scale_milli


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (replace(one_pool(1), noise_seed=-1), "noise_seed is -1"),
        (replace(one_pool(1), way_us=0), "way_us is 0"),
        (replace(one_pool(1), way_us=61_000_000), "way_us is 61000000"),
        (replace(one_pool(1), time_scale_milli=0), "time_scale_milli is 0"),
        (replace(one_pool(1), time_scale_milli=10**10), "time_scale_milli is 10000000000"),
    ],
)
def test_what_no_fleet_has_is_refused(scenario: Scenario, said: str) -> None:
    with pytest.raises(FieldError, match=rf"^{said}: expected"):
        scenario.check()
