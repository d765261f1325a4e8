"""What is promised of waits: learned by priority and for one GPU or a gang, from arrivals that wait."""

from __future__ import annotations

import random

import pytest

from atoll.model.job import JobState, Priority
from atoll.model.learned import WAIT
from atoll.model.quote import Quote, Verdict
from atoll.wire.stored import decode_estimates, encode_estimates
from orchestrator.core import events
from orchestrator.core.learning.book import Book, restored
from orchestrator.core.learning.report import calibration
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, pool, site, spec

MINUTE = 60 * SECOND
BATCH, URGENT = (Priority.BATCH, False), (Priority.URGENT, False)


def _learned(ratio: float, sigma: float = 0.2, count: int = 200) -> Book:
    """Waits of batch jobs took so many times as long as was predicted."""
    book, chance = Book(), random.Random(3)
    for number in range(count):
        book.observe_wait(BATCH, MINUTE, int(MINUTE * ratio * chance.lognormvariate(0, sigma)))
        book.refresh(number * 6 * SECOND)
    book.refresh((count + 1) * 6 * SECOND)
    return book


def test_waits_of_a_priority_follow_how_such_waits_came_out_and_others_lean_toward_them() -> None:
    book = _learned(3.0)
    p50_us, p90_us = book.waits.quote(BATCH, MINUTE)
    assert p50_us == pytest.approx(3 * MINUTE, rel=0.1)
    assert p90_us == pytest.approx(3 * MINUTE * 2.718 ** (1.28 * 0.2), rel=0.15)
    assert 2 * MINUTE < book.waits.quote(URGENT, MINUTE)[0] < 3.2 * MINUTE, "nobody has seen one of them wait"
    assert Book().waits.quote(URGENT, MINUTE)[0] == pytest.approx(MINUTE, rel=0.05)
    short_us, _ = book.waits.quote(BATCH, 1_000)
    assert short_us < 8 * SECOND, "a wait of a millisecond is not what a minute's is"


def test_nine_of_ten_promises_hold_and_the_gate_says_so() -> None:
    book = _learned(1.7, count=600)
    (gate,) = [gate for gate in calibration(book).gates if gate.name == WAIT]
    assert gate.enough and 870 <= gate.coverage_milli <= 950 and abs(gate.median_milli) < 60


def test_waits_outlive_a_restart_and_can_be_forgotten() -> None:
    book = _learned(2.0)
    again = restored(decode_estimates(encode_estimates(book.take())))
    assert again.take() == book.take() and again.waits.quote(BATCH, MINUTE) == book.waits.quote(BATCH, MINUTE)
    book.forget(None, None)
    assert book.waits.quote(BATCH, MINUTE) == Book().waits.quote(BATCH, MINUTE)


def _crowd(jobs: int) -> Fleet:
    """One slot, and jobs that came a second after one another."""
    fleet = Fleet(site("a", pool("p", gpus=1)), policy=Policy(silent_after_ms=10**9))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    for number in range(jobs):
        fleet.submit(spec(prompt=str(number)))
        fleet.now_us += SECOND
        fleet.happen(events.TimerFired())
    return fleet


def _open(fleet: Fleet) -> int:
    return sum(len(kind.open) for kind in fleet.machine.context.promises.values())


def test_arrivals_that_wait_are_promised_a_time_and_their_end_teaches_the_next() -> None:
    fleet = _crowd(8)
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert 0 < _open(fleet) <= 8 and len(waiting) >= _open(fleet) - 1
    assert restore(fleet.machine.snapshot(), fleet.policy, GPUS).snapshot() == fleet.machine.snapshot()
    before = fleet.machine.quote_job(spec(prompt="asked"), fleet.now_us)
    assert isinstance(before, Quote) and before.verdict is Verdict.WAITS and before.eta is not None
    while any(agent.attempts for agent in fleet.agents.values()):
        for key in list(fleet.agents[site("a").site_id].attempts):
            fleet.end_attempt("a", key, after_us=60 * SECOND)  # many times as long as was thought
    assert _open(fleet) == 0
    fleet.now_us += 10 * SECOND
    fleet.machine.context.book.refresh(fleet.now_us)
    wait_us = 10 * SECOND
    assert fleet.machine.context.book.waits.quote((Priority.NORMAL, False), wait_us)[0] > 2 * wait_us


def test_who_is_placed_at_once_is_promised_nothing_and_who_gives_up_is_forgotten() -> None:
    fleet = _crowd(1)
    assert _open(fleet) == 0
    fleet = _crowd(6)
    for job in list(fleet.jobs.values()):
        fleet.ask(events.JobCancelRequested, tenant=job.spec.tenant, job_id=job.job_id, reason="")
    assert _open(fleet) == 0


def test_of_a_burst_one_is_sampled() -> None:
    fleet = _crowd(3)
    before = _open(fleet)
    fleet.submit(*(spec(prompt=f"burst {number}") for number in range(20)))
    assert _open(fleet) <= before + 1
