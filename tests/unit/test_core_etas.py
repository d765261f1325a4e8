"""Times of attempts that have yet to execute: they follow what happens before them, both ways."""

from __future__ import annotations

from atoll.model.job import Job
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, Fleet, pool, site, spec


def _of(fleet: Fleet, prompt: str) -> Job:
    (found,) = (job for job in fleet.jobs.values() if job.spec.prompt == prompt)
    return found


def test_what_waits_behind_work_that_is_over_early_is_told_so_and_never_that_it_began_before_now() -> None:
    """Two jobs in one slot: the first ends in half of its time, or in half as much again; the second's times follow."""
    for share, sooner in ((0.5, True), (1.5, False)):
        fleet = Fleet(site("a", pool("p", gpus=1)), policy=Policy(silent_after_ms=10**9))
        fleet.warm("a", "p-0", 0, "m")
        fleet.report("a")
        fleet.submit(spec(prompt="first"))
        first = _of(fleet, "first")
        fleet.now_us += 20_000
        fleet.submit(spec(prompt="second"))
        fleet.wait(0.1)
        second = _of(fleet, "second")
        assert second.attempts, "it stands behind the first"
        run_us = first.attempts[0].predicted_us
        told = fleet.machine.eta_of(second.job_id, fleet.now_us)
        assert told is not None
        fleet.end_attempt("a", first.attempts[0].key, after_us=int(share * run_us))
        now = fleet.machine.eta_of(second.job_id, fleet.now_us)
        assert now is not None and (now.end_p50_us < told.end_p50_us) is sooner
        by_us = told.end_p50_us - now.end_p50_us
        assert abs(by_us - (1 - share) * run_us) < 0.1 * run_us
        assert now.begin_p50_us >= fleet.now_us
        again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
        assert again.eta_of(second.job_id, fleet.now_us) == now
        fleet.now_us += run_us
        later = fleet.machine.eta_of(second.job_id, fleet.now_us)
        assert later is not None and later.begin_p50_us >= fleet.now_us, "nobody has seen it begin"
