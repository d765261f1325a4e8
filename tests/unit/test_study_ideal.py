"""The ideal and pooling efficiency, on cases small enough to work out by hand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from atoll.model.errors import FieldError
from sims.study.ideal import IdealJob, IdealRun, Rule, ideal
from sims.study.pooling import due_us, highest_load, ideal_share, is_servable, pooling_efficiency, share_in_time

SECOND = 1_000_000


def _job(arrival_us: int = 0, *, gang_size: int = 1, due: int = 0, **execution_us: int) -> IdealJob:
    return IdealJob(arrival_us=arrival_us, execution_us=execution_us, gang_size=gang_size, due_us=due)


def _run(gpu_type: str, started_us: int, ended_us: int) -> IdealRun:
    return IdealRun(gpu_type=gpu_type, started_us=started_us, ended_us=ended_us)


def test_each_job_goes_where_it_ends_first() -> None:
    """The fast slot, until waiting for it takes longer than the slow one."""
    jobs = [_job(fast=10, slow=25) for _ in range(4)]
    assert list(ideal(jobs, {"fast": 1, "slow": 1})) == [
        _run("fast", 0, 10),
        _run("fast", 10, 20),
        _run("slow", 0, 25),
        _run("fast", 20, 30),
    ]


def test_a_slot_is_free_again_and_idles_until_somebody_comes() -> None:
    assert list(ideal([_job(5, a=10), _job(8, a=10), _job(100, a=1)], {"a": 1})) == [
        _run("a", 5, 15),
        _run("a", 15, 25),
        _run("a", 100, 101),
    ]


def test_a_gang_waits_until_so_many_slots_of_one_type_are_free() -> None:
    jobs = [_job(a=10), _job(a=30), _job(1, gang_size=2, a=5), _job(2, a=1), _job(2, a=100), _job(2, gang_size=4, a=1)]
    assert list(ideal(jobs, {"a": 3})) == [
        _run("a", 0, 10),
        _run("a", 0, 30),
        _run("a", 10, 15),  # the idle third slot and the first, which ends sooner than the second
        _run("a", 15, 16),
        _run("a", 15, 115),
        None,  # there are no four
    ]


def test_a_job_that_no_gpu_can_run_never_ends_and_blocks_nobody() -> None:
    assert list(ideal([_job(other=1), _job(), _job(a=3)], {"a": 1, "none": 0})) == [None, None, _run("a", 0, 3)]


def test_thrift_keeps_fast_slots_for_those_that_need_them() -> None:
    patient, hasty = _job(fast=10, slow=25, due=30), _job(fast=10, slow=25, due=12)
    slots = {"fast": 1, "slow": 1}
    assert list(ideal([patient, hasty], slots, Rule.EARLIEST)) == [_run("fast", 0, 10), _run("fast", 10, 20)]
    assert list(ideal([patient, hasty], slots, Rule.THRIFTY)) == [_run("slow", 0, 25), _run("fast", 0, 10)]
    # Nowhere in time: where it ends first.
    assert list(ideal([hasty, hasty], slots, Rule.THRIFTY)) == [_run("fast", 0, 10), _run("fast", 10, 20)]


def test_on_slots_all_alike_it_is_the_queue_of_many_servers() -> None:
    """Against a plain reckoning of first come, first served at five servers."""
    chance = random.Random(1)
    arrivals = sorted(chance.randrange(10_000) for _ in range(500))
    jobs = [_job(arrival, a=chance.randrange(1, 90)) for arrival in arrivals]
    servers, ends = [0] * 5, []
    for job in jobs:
        ends.append(max(heapq.heappop(servers), job.arrival_us) + job.execution_us["a"])
        heapq.heappush(servers, ends[-1])
    assert [run.ended_us for run in ideal(jobs, {"a": 5}) if run is not None] == ends


@pytest.mark.parametrize("rule", Rule)
def test_no_slot_ever_runs_two_jobs(rule: Rule) -> None:
    chance = random.Random(2)
    slots = {"a": 3, "b": 5, "c": 8}
    jobs = []
    for arrival in sorted(chance.randrange(3_000) for _ in range(800)):
        able = {gpu_type: chance.randrange(1, 60) for gpu_type in slots if chance.random() < 0.8}
        jobs.append(_job(arrival, gang_size=chance.choice([1, 1, 1, 2, 3]), due=chance.randrange(150), **able))
    busy: dict[str, list[tuple[int, int]]] = {gpu_type: [] for gpu_type in slots}
    for job, run in zip(jobs, ideal(jobs, slots, rule), strict=True):
        if run is None:
            assert not job.execution_us
            continue
        assert run.started_us >= job.arrival_us and run.ended_us - run.started_us == job.execution_us[run.gpu_type]
        busy[run.gpu_type] += [(run.started_us, job.gang_size), (run.ended_us, -job.gang_size)]
    for gpu_type, changes in busy.items():
        level = 0
        for _, change in sorted(changes):  # at one moment, ends before starts
            level += change
            assert level <= slots[gpu_type]


def test_jobs_out_of_order_are_refused_by_number() -> None:
    with pytest.raises(FieldError, match=r"jobs\[1\]\.arrival_us is 4: expected at least 5"):
        list(ideal([_job(5, a=1), _job(4, a=1)], {"a": 1}))
    with pytest.raises(FieldError, match=r"slots\[a\] is -1"):
        list(ideal([], {"a": -1}))


def test_in_time_is_twice_the_reference_and_ten_seconds() -> None:
    assert due_us(4 * SECOND) == 18 * SECOND
    job = _job(SECOND, due=due_us(4 * SECOND), a=18 * SECOND, b=18 * SECOND + 1)
    assert is_servable(job, {"a": 1}) and not is_servable(job, {"b": 9}) and not is_servable(job, {"a": 0})
    jobs = [job, job, _job(SECOND, due=5, a=6)]  # the third, no GPU has in time: it does not count
    assert share_in_time(jobs, [19 * SECOND, 19 * SECOND + 1, None], {"a": 1}) == 0.5
    assert share_in_time(jobs, [19 * SECOND, None, None], {"a": 1}) == 0.5
    assert share_in_time([], [], {"a": 1}) == 1.0


def test_what_arrives_during_the_warm_up_does_not_count() -> None:
    jobs = [_job(0, a=10, due=30) for _ in range(5)] + [_job(100, a=10, due=30)]
    assert ideal_share(jobs, {"a": 1}, Rule.EARLIEST) == 4 / 6
    assert ideal_share(jobs, {"a": 1}, Rule.EARLIEST, from_us=100) == 1.0


def test_share_of_the_ideal_by_hand() -> None:
    """One slot, five jobs of 10 at once that may take 30: three are in time."""
    assert ideal_share([_job(a=10, due=30) for _ in range(5)], {"a": 1}, Rule.EARLIEST) == 3 / 5


def _until(limit_milli: int) -> Callable[[int], float]:
    return lambda load_milli: 0.99 if load_milli <= limit_milli else 0.5


@pytest.mark.parametrize("limit_milli", [1, 333, 860, 1999])
def test_highest_load_is_found_to_the_tolerance_from_below(limit_milli: int) -> None:
    found = highest_load(_until(limit_milli), tolerance_milli=5)
    assert limit_milli - 5 <= found.load_milli <= limit_milli and not found.at_limit
    assert len(found.tried) == len(set(found.tried)) <= 11


def test_a_share_of_exactly_95_in_100_is_enough() -> None:
    assert highest_load(lambda load_milli: 0.95, high_milli=1_000).at_limit


def test_no_load_at_all_and_every_load() -> None:
    assert highest_load(lambda load_milli: 0.0).load_milli < 10
    every = highest_load(lambda load_milli: 1.0, high_milli=1_500)
    assert (every.load_milli, every.at_limit, every.tried) == (1_500, True, ((1_500, 1.0),))


def test_efficiency_is_the_policy_over_the_ideal() -> None:
    policy, bound = highest_load(_until(860), tolerance_milli=1), highest_load(_until(950), tolerance_milli=1)
    assert pooling_efficiency(policy, bound) == pytest.approx(860 / 950)
    with pytest.raises(FieldError, match="ideal_load is 0"):
        pooling_efficiency(policy, highest_load(_until(-1), tolerance_milli=1, high_milli=1))


def test_ideal_of_a_deterministic_stream_carries_all_of_its_capacity() -> None:
    """Jobs of 1 s, evenly spaced, at one slot, due after 1.5 s: all in time up to a load of 1, and hopeless beyond."""

    def share(load_milli: int) -> float:
        gap_us = SECOND * 1000 // load_milli
        return ideal_share((_job(n * gap_us, a=SECOND, due=SECOND * 3 // 2) for n in range(2_000)), {"a": 1}, Rule.EARLIEST)

    assert highest_load(share, tolerance_milli=1).load_milli == 1_000
