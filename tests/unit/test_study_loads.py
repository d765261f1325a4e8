"""Loads by hand: what a trace brings to a fleet, and the same trace drawn together or apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, ModelId, TenantId
from atoll.packaged import load_packaged, named_fleet
from atoll.physics.execution import execution_us
from atoll.physics.hidden import HiddenWorld
from sims.study.loads import AS_TRACED, Measured, at_load, measured
from sims.study.pooling import due_us
from sims.study.reckoning import Reckoner
from sims.study.running import WarmUp
from sims.traces.generating import REFERENCE_GPU
from sims.traces.job import TraceJob

SECOND = 1_000_000
PACKAGED = load_packaged()
MODELS = {model.model_id: model for model in PACKAGED.models}
FLEET = named_fleet("fleet-small", PACKAGED.gpus)


def _jobs(count: int, model: str = "sdxl-base-1.0", gang_size: int = 1) -> list[TraceJob]:
    return [
        TraceJob(arrival_us=number * SECOND, model_id=ModelId(model), tenant=TenantId("t"), gang_size=gang_size) for number in range(count)
    ]


def _reckoner(world: HiddenWorld | None = None) -> Reckoner:
    assert FLEET is not None
    return Reckoner(FLEET.sites, PACKAGED.gpus, MODELS, world)


def _rate(pool: str, gang_size: int) -> float:
    """Jobs of this test a microsecond for each GPU that a pool has."""
    reckoner = _reckoner()
    took_us = reckoner.job(_jobs(1, "flux.1-dev", gang_size)[0]).execution_us.get(pool, 0)
    return gang_size * reckoner.slots[pool] / (took_us * gang_size) if took_us else 0.0


@pytest.mark.parametrize("gang_size", [1, 4])
def test_each_job_counts_at_its_fastest_and_once_for_each_of_its_gpus(gang_size: int) -> None:
    assert FLEET is not None
    model = MODELS[ModelId("flux.1-dev")]
    able = {
        pool.gpu_type
        for site in FLEET.sites
        for pool in site.pools
        if pool.gpus_per_node >= gang_size and (pool.gpu_memory_bytes or PACKAGED.gpus[pool.gpu_type].memory_bytes) > 50 * 10**9
    }
    fastest_us = min(execution_us(model, model.default_shape, PACKAGED.gpus[name], model.precision, gang_size=gang_size) for name in able)
    found = measured(_jobs(11, "flux.1-dev", gang_size), _reckoner())
    slots = sum(pool.slots for site in FLEET.sites for pool in site.pools)
    assert found == Measured(
        jobs=11,
        last_us=10 * SECOND,
        busy_us=found.busy_us,
        work_us=11 * fastest_us * gang_size,
        due_us=found.due_us,
        most_due_us=found.due_us,
        slots=slots,
    )
    # GPUs on which it takes longer add less than those that are fastest, and more than nothing.
    assert found.work_us / slots < found.busy_us
    assert found.busy_us == pytest.approx(11 * gang_size / sum(_rate(name, gang_size) for name in _reckoner().slots), rel=2e-3)
    assert found.fastest_milli(500) == found.work_us * 500 // (found.busy_us * slots)
    reference_us = execution_us(model, model.default_shape, PACKAGED.gpus[GpuTypeId(REFERENCE_GPU)], model.precision, gang_size=gang_size)
    assert found.due_us == due_us(reference_us)


def test_where_a_model_does_not_fit_it_is_not_run() -> None:
    assert FLEET is not None
    small = {f"{site.site_id}/{pool.pool_id}" for site in FLEET.sites for pool in site.pools if "L4" in pool.gpu_type}
    (film,) = _jobs(1, "wan2.1-t2v-14b-480p")
    able = _reckoner().job(film).execution_us
    assert able and not small & able.keys()


def test_what_nobody_makes_brings_no_work() -> None:
    (job,) = _jobs(1)
    assert not _reckoner().job(replace(job, width=17, height=9)).execution_us


def test_a_world_is_as_fast_as_its_sites_are() -> None:
    world = HiddenWorld(3)
    (job,) = _jobs(1, "sdxl-base-1.0--mine")
    prior, true = _reckoner().job(job).execution_us, _reckoner(world).job(job).execution_us
    assert prior.keys() == true.keys()
    ratios = {true[name] / prior[name] for name in prior}
    assert min(ratios) < 0.8 and max(ratios) > 1.25
    # Two pools of one site and one type are equally fast.
    assert _reckoner(HiddenWorld(4)).job(job).execution_us != true


def test_jobs_at_a_load_keep_their_order_and_all_they_ask_for() -> None:
    jobs = _jobs(100)
    trace = measured(jobs, _reckoner())
    found = list(at_load(jobs, trace, 500))
    assert measured(found, _reckoner()).load_milli == pytest.approx(500, abs=1)
    assert [replace(job, arrival_us=0) for job in found] == [replace(job, arrival_us=0) for job in jobs]
    assert [job.arrival_us for job in found] == sorted(job.arrival_us for job in found)
    assert list(at_load(jobs, trace, AS_TRACED)) == jobs


def test_a_trace_must_last_longer_than_its_jobs_may() -> None:
    """Of 100 jobs the 96th is the one that counts: one film of an hour does not make a trace of pictures too short."""
    jobs = [*_jobs(100), replace(_jobs(1, "wan2.1-t2v-14b-480p")[0], arrival_us=100 * SECOND)]
    trace = measured(jobs, _reckoner())
    assert trace.due_us > 10 * trace.most_due_us
    copies = trace.copies_for(500)
    assert copies * trace.span_us(500) >= 4 * trace.most_due_us > (copies - 1) * trace.span_us(500)
    assert replace(trace, busy_us=trace.busy_us * copies).copies_for(500) == 1


def test_no_load_is_made_of_nothing() -> None:
    trace = measured(_jobs(1), _reckoner())
    assert trace.span_us(AS_TRACED) == 0
    with pytest.raises(FieldError, match=r"load is '0.5': expected a trace whose jobs arrive one after the other"):
        trace.span_us(500)
    with pytest.raises(FieldError, match=r"load is '20': expected a share of the fleet from 0.001 to 10"):
        measured(_jobs(2), _reckoner()).span_us(20_000)


def test_a_warm_up_leaves_something() -> None:
    assert WarmUp(share_milli=200).of(10 * SECOND) == 2 * SECOND and WarmUp(us=SECOND).of(10 * SECOND) == SECOND
    with pytest.raises(FieldError, match="less than the trace"):
        WarmUp(us=11 * SECOND).of(10 * SECOND)
