"""Jobs that no pool can run as the fleet is: known at a glance, told why all the same, and looked at again when the fleet changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, GpuTypeId, SiteId
from atoll.model.job import Constraints, JobSpec, JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Reason
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Precision, Shape
from orchestrator.core import events
from tests.unit.fleet_of_machines import GB, GPUS, Fleet, adapter, model, pool, site, spec
from tests.unit.queue_of_jobs import calls_of

HEAVY: AdapterSpec = replace(adapter("heavy", "m"), weights_bytes=90 * GB)


def _fleet() -> Fleet:
    fleet = Fleet(site("a"), site("b", pool("p", "small")), models=(model("m"), model("huge", 100)))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(HEAVY,))
    return fleet


@pytest.mark.parametrize(
    ("asked", "reasons"),
    [
        (spec("huge"), {Reason.MEMORY_TOO_SMALL: 2}),
        (spec("m", adapters=(AdapterUse(adapter_id=AdapterId("heavy")),)), {Reason.MEMORY_TOO_SMALL: 2}),
        (spec("m", simulated=True), {Reason.REAL_SITE: 2}),
        (spec("m", precision=Precision.FP4), {Reason.PRECISION_UNSUPPORTED: 2}),
        (spec("m", gang_size=4), {Reason.GANG_TOO_LARGE: 2}),
        (spec("huge", constraints=Constraints(sites=(SiteId("b"),))), {Reason.SITE_NOT_ALLOWED: 1, Reason.MEMORY_TOO_SMALL: 1}),
        (spec("m", constraints=Constraints(gpu_types=(GpuTypeId("tiny"),))), {Reason.GPU_TYPE_NOT_ALLOWED: 2}),
    ],
)
def test_who_waits_in_vain_is_told_what_a_quote_tells(asked: JobSpec, reasons: dict[Reason, int]) -> None:
    fleet = _fleet()
    quote = fleet.machine.quote_job(asked, fleet.now_us)
    assert isinstance(quote, Quote) and quote.verdict is Verdict.NEVER
    fleet.submit(asked)
    job_id = next(reversed(fleet.jobs))
    told = fleet.machine.deferral_of(job_id)
    assert told is not None and told.waits_for is None
    assert {one.reason: one.pools for one in told.rejections} == reasons
    assert (told.rejections, told.too_small) == (quote.rejections, quote.too_small)


def test_it_is_placed_when_a_site_joins_that_can_run_it() -> None:
    fleet = Fleet(site("b", pool("p", "small")), models=(model("large", 60),))
    fleet.submit(spec("large"), spec("large", shape=Shape(width=512, height=512, steps=4)))
    assert {job.state for job in fleet.jobs.values()} == {JobState.QUEUED}
    joins = site("a", pool("p", gpus=2))
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(joins,), links=())
    fleet.connect(joins)
    assert {job.state for job in fleet.jobs.values()} == {JobState.PLACED}


def _first_looks(fleet: Fleet, model_id: str, count: int) -> float:
    """What it costs to submit and to look at so many classes of one tenant that are seen for the first time, in calls for each."""
    asked = [spec(model_id, shape=Shape(width=64 + 8 * number, height=64, steps=4)) for number in range(count)]

    def work() -> None:
        fleet.submit(*asked)
        while (due := fleet.machine.next_deadline()) is not None and due <= fleet.now_us:
            fleet.happen(events.TimerFired())

    return calls_of(work) / count


def test_thousands_that_are_in_vain_hold_up_the_one_behind_them_for_next_to_nothing() -> None:
    """A class that may run somewhere needs a prediction for each type of GPU before it is looked at; what no pool can run needs none."""
    types = [replace(gpu, gpu_type=GpuTypeId(f"g{number}")) for number, gpu in enumerate([GPUS[GpuTypeId("small")]] * 12)]
    pools = tuple(pool(f"p{number}", str(gpu.gpu_type), gpus=1) for number, gpu in enumerate(types))

    def fleet() -> Fleet:
        return Fleet(site("a", *pools), models=(model("m"), model("huge", 100)), gpus={gpu.gpu_type: gpu for gpu in types}, checked=False)

    busy = fleet()
    busy.submit(*(spec("m") for _ in range(len(pools))))
    assert _first_looks(fleet(), "huge", 200) * 8 < _first_looks(busy, "m", 200)
    behind = fleet()
    behind.submit(*(spec("huge", shape=Shape(width=64 + 8 * number, height=64, steps=4)) for number in range(200)), spec("m"))
    steps = 0
    while behind.jobs[next(reversed(behind.jobs))].state is JobState.QUEUED:
        behind.happen(events.TimerFired())
        steps += 1
    assert steps <= 4
