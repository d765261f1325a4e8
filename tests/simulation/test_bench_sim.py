"""The simulators that `python -m tests.bench sim` compares play the same thing: else their speeds are of different work."""

from __future__ import annotations

from tests.bench.sim import WAYS, setting, with_ciw, with_simpy

JOBS = 40


def test_all_three_do_every_job_of_a_trace() -> None:
    given = setting(JOBS)
    assert {name: len(play(given).latency_us) for name, play in WAYS.items()} == dict.fromkeys(WAYS, JOBS)


def test_the_two_that_see_the_same_agree_on_every_job() -> None:
    given = setting(1_000)
    one, other = with_simpy(given), with_ciw(given)
    assert sorted(one.latency_us) == sorted(other.latency_us) and sorted(one.execution_us) == sorted(other.execution_us)
    assert one.latency_us != one.execution_us, "some jobs wait, so that the queues are compared too"
