"""Files of jobs in runs: they travel to the site where the job runs, and the time for it is told apart. By hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import AgentEvent, AttemptAdvanced, AttemptHalted
from agents.core.outputs import RunAttempt, StopAttempt
from agents.twin.plant import Plant
from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, JobId, ModelId, Ordinal, PoolId, SiteId, SlotRef, TenantId
from atoll.model.job import IMAGE_INPUT, InputRef, JobState
from sims.play.player import Player
from sims.play.scenario import Beginning, Scenario
from sims.play.timeline import Timeline
from sims.results.rows import TERMS, JobRow
from sims.traces.job import TraceJob
from tests.simulation.played import CATALOGUE, AsPredicted, Rows, mixed, three_sites
from tests.unit.fleet_of_machines import GB, GPUS, pool, site, spec

SIZE = 50_000_000


class SlowWays(AsPredicted):
    """Everything as physics says, but that all transfers of files of jobs take twice as long."""

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        del site_id
        return 2_000 if component == "fetch" else 1_000


def _one_job(scenario: Scenario, origin: str, input_bytes: int) -> JobRow:
    rows = Rows()
    job = TraceJob(arrival_us=0, model_id=ModelId("sd"), tenant=TenantId("t"), origin=origin, input_bytes=input_bytes)
    Player(scenario, [job], rows, truth=SlowWays(), checked=True).play()
    assert rows.jobs[0].state == JobState.SUCCEEDED
    return rows.jobs[0]


# Sites of this fleet have 1 GB/s to the world; its links are as fast where nothing else is said, 12 ms there and back.
@pytest.mark.parametrize(
    ("origin", "link_bytes_per_s", "input_us"),
    [
        ("", GB, 100_000),
        ("ams", GB, 100_000),
        ("fra", GB, 124_000),
        ("fra", GB // 10, 1_024_000),
        ("fra", 10 * GB, 124_000),
    ],
)
def test_an_input_takes_the_way_from_its_origin(origin: str, link_bytes_per_s: int, input_us: int) -> None:
    whole = three_sites()
    links = tuple(replace(link, bytes_per_s=link_bytes_per_s if link.dst == "ams" else 1_000) for link in whole.links)
    only_ams = replace(whole, links=links, beginning=Beginning(cordoned=(SiteId("fra"), SiteId("lon"))))
    with_input, without = _one_job(only_ams, origin, SIZE), _one_job(only_ams, origin, 0)
    assert with_input.site_id == without.site_id == "ams" and without.input_us == 0
    assert with_input.input_us == input_us == with_input.ended_us - without.ended_us
    assert with_input.execution_us == without.execution_us and with_input.started_us == without.started_us


def test_a_job_goes_where_its_input_is_soon() -> None:
    """Alike but for links: from lon all is near to fra, and ams is behind a link on which the image takes longer than anything else."""
    whole = three_sites()
    links = tuple(replace(link, bytes_per_s=GB // 1_000 if "ams" in {link.src, link.dst} else GB) for link in whole.links)
    scenario = replace(whole, links=links, beginning=Beginning(cordoned=(SiteId("lon"),)))
    assert _one_job(scenario, "lon", SIZE).site_id == "fra"
    swapped = tuple(replace(link, bytes_per_s=GB // 1_000 if "fra" in {link.src, link.dst} else GB) for link in whole.links)
    assert _one_job(replace(scenario, links=swapped), "lon", SIZE).site_id == "ams"


def test_who_is_stopped_while_an_image_comes_has_taken_no_step() -> None:
    timeline, told = Timeline(), list[AgentEvent]()
    plant = Plant(site("s", pool("p")), gpus=GPUS, truth=SlowWays(), timers=timeline, tell=told.append)
    slot = SlotRef(pool_id=PoolId("p"), node_id=pool("p").node_id(0), index=0)
    key = AttemptKey(job_id=JobId("j"), ordinal=Ordinal(1))
    image = InputRef(name=IMAGE_INPUT, digest="", bytes=SIZE)
    wanted = replace(spec("sd", simulated=True), inputs=(image,), strength_milli=1_000)
    step_us = SlowWays().execution_us(CATALOGUE[ModelId("sd")], wanted.shape, GPUS[pool("p").gpu_type], wanted.precision, SiteId("s"), "")
    step_us //= wanted.shape.steps
    plant.perform(RunAttempt(slot=slot, key=key, spec=wanted, model=CATALOGUE[ModelId("sd")], stop_after_ms=10**9, request_id=""))
    timeline.run(90_000)
    plant.perform(StopAttempt(slot=slot, key=key))
    timeline.run(90_000 + step_us - 1)
    assert told == [AttemptAdvanced(key=key, state=AttemptState.RUNNING, steps_done=0)]
    timeline.run(90_000 + step_us)
    assert told[-1] == AttemptHalted(key=key)


def test_a_model_that_begins_with_no_image_goes_without() -> None:
    whole = three_sites()
    films = {name: replace(model, pipeline_class="WanPipeline") for name, model in whole.catalogue.items()}
    assert _one_job(replace(whole, catalogue=films), "fra", SIZE).input_us == 0


def test_books_balance_and_seconds_add_up_where_jobs_bring_files() -> None:
    rows = Rows()
    jobs = [replace(job, input_bytes=job.arrival_us % 7 * 10_000_000) for job in mixed(120)]
    Player(three_sites(), jobs, rows, checked=True).play()
    done = [row for row in rows.jobs if row.state == JobState.SUCCEEDED]
    assert len(done) > 90
    for row in done:
        assert sum(getattr(row, f"{term}_us") for term in TERMS) == row.ended_us - row.arrival_us
        assert (row.input_us > 0) == (jobs[row.number].input_bytes > 0) and row.execution_us > 0
