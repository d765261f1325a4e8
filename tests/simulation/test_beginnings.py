"""Runs that do not begin with empty sites: what is held at first is used, and what is closed takes no work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from agents.twin.holdings import Holding
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId, NodeId, SiteId, TenantId
from atoll.model.modelspec import ModelSpec
from sims.play.player import Player
from sims.play.scenario import Beginning
from sims.results.rows import JobRow
from sims.traces.job import TraceJob
from tests.simulation.played import CATALOGUE, Rows, mixed, three_sites

SD = CATALOGUE[ModelId("sd")]
FRA = SiteId("fra")


def played(beginning: Beginning, count: int = 1, seed: int = 0) -> list[JobRow]:
    rows = Rows()
    jobs = [TraceJob(arrival_us=number * 1_000_000, model_id=SD.model_id, tenant=TenantId("t")) for number in range(count)]
    Player(replace(three_sites(seed=seed), beginning=beginning), jobs, rows, checked=True).play()
    return sorted(rows.jobs, key=lambda row: row.number)


def held(**where: tuple[ModelSpec, ...] | tuple[tuple[ModelSpec, ...], ...]) -> Mapping[SiteId, Mapping[NodeId, Holding]]:
    return {FRA: {NodeId("p-0"): Holding(**where)}}  # type: ignore[arg-type]  # as the field's name says


def test_what_a_slot_holds_is_warm_and_draws_the_job() -> None:
    cold = played(Beginning(models=(SD,)))[0]
    assert cold.cold and cold.fetched
    warm = played(Beginning(models=(SD,), holdings=held(slots=((), (SD,)))))[0]
    assert (warm.site_id, warm.cold, warm.fetched) == ("fra", False, False)
    assert warm.ended_us - warm.arrival_us < cold.ended_us - cold.arrival_us


def test_what_a_disk_or_a_memory_holds_is_not_fetched() -> None:
    on_disk = played(Beginning(models=(SD,), holdings=held(disk=(SD,))))[0]
    in_memory = played(Beginning(models=(SD,), holdings=held(disk=(SD,), host=(SD,))))[0]
    for row in (on_disk, in_memory):
        assert (row.site_id, row.cold, row.fetched) == ("fra", True, False)
    assert in_memory.stage_us < on_disk.stage_us


def test_what_has_no_room_is_not_held() -> None:
    many = tuple(replace(SD, model_id=ModelId(f"sd--{number}")) for number in range(100))
    rows = played(Beginning(models=(SD, *many), holdings=held(disk=(*many, SD), host=many, slots=(many,))))
    assert rows[0].state == "succeeded"


def test_closed_sites_take_no_work_and_the_others_all_of_it() -> None:
    for beginning in (Beginning(cordoned=(FRA,)), Beginning(drained=(FRA,))):
        rows = Rows()
        Player(replace(three_sites(), beginning=beginning), mixed(60), rows, checked=True).play()
        # Those without a site were too late: they are of a trace with short deadlines.
        assert {row.site_id for row in rows.jobs if row.placed_us >= 0} == {"ams", "lon"}


def test_a_site_that_there_is_not_cannot_be_closed() -> None:
    scenario = three_sites()
    with pytest.raises(FieldError, match=r"drained is 'rom': expected a site of the fleet: ams, fra, lon"):
        replace(scenario, beginning=Beginning(drained=(SiteId("rom"),))).check()
