"""Times of attempts: of those that have yet to execute they follow what happens before them, both ways; of those that execute they pass."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, SiteId
from atoll.model.job import Job
from atoll.model.modelspec import Modality
from atoll.model.quote import Eta
from atoll.model.report import AttemptProgress
from atoll.model.shape import Shape
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec


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


def _executing(fleet: Fleet, shape: Shape | None = None) -> tuple[Job, AttemptKey]:
    """A job that has begun to execute a moment ago, in 20 steps."""
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec(prompt="one", shape=shape or spec().shape))
    job = _of(fleet, "one")
    key = job.attempts[0].key
    _step(fleet, key, 0)
    return job, key


def _step(fleet: Fleet, key: AttemptKey, steps: int) -> None:
    fleet.report("a", progress=(AttemptProgress(key=key, state=AttemptState.RUNNING, steps_done=steps),))


def _eta(fleet: Fleet, job: Job) -> Eta:
    found = fleet.machine.eta_of(job.job_id, fleet.now_us)
    assert found is not None
    return found


def test_what_is_left_of_an_execution_passes_between_two_steps_and_is_late_when_it_is_over() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), policy=Policy(silent_after_ms=10**9, hang_min_ms=10**9))
    job, key = _executing(fleet)
    _step(fleet, key, 5)
    told = _eta(fleet, job)
    step_us = job.attempts[0].predicted_us // 20
    for _ in range(3):
        # Nothing new is seen, whether the site says so or not.
        fleet.now_us += step_us // 8
        assert _eta(fleet, job) == told
        _step(fleet, key, 5)
        assert _eta(fleet, job) == told
    restored = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert restored.eta_of(job.job_id, fleet.now_us) == told
    fleet.now_us = told.end_p90_us + step_us
    assert _eta(fleet, job) == told, "and it is late by a step"
    _step(fleet, key, 6)
    later = _eta(fleet, job)
    assert fleet.now_us < later.end_p50_us < fleet.now_us + (told.end_p50_us - told.begin_p50_us), "a step was seen: the rest is to come"


def test_behind_the_last_step_a_film_is_decoded_yet() -> None:
    """That is one long step, which no report counts."""
    shape = Shape(width=512, height=512, frames=49, steps=20)
    heavy = replace(model("m"), modality=Modality.VIDEO)
    heavy = replace(heavy, physics=replace(heavy.physics, reference_decode_flops=200 * 10**12))
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(heavy,), policy=Policy(silent_after_ms=10**9, hang_min_ms=10**9))
    job, key = _executing(fleet, shape)
    run_us = fleet.machine.context.state.sites[SiteId("a")].attempts[key].exec_us
    left = []
    for steps in range(1, 21):
        _step(fleet, key, steps)
        left.append(_eta(fleet, job).end_p50_us - fleet.now_us)
    assert left == sorted(left, reverse=True)
    assert 0.1 * run_us < left[-1] < 0.5 * run_us
