"""What went wrong once: models removed from under jobs, drains after a restart, the only place that failed, timers of ended jobs."""

from __future__ import annotations

from dataclasses import replace

from atoll.model import limits
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import FleetId, SiteId, Term
from atoll.model.job import JobState
from atoll.model.placement import Reason, Rejection
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Shape
from orchestrator.core import events
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import Refusal, RefusalCode
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec
from tests.unit.test_core_silence import stored_by


def _takeover(fleet: Fleet) -> None:
    fleet.machine = new_machine(stored_by(fleet), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))


def test_a_job_under_way_whose_model_is_removed_ends_with_its_attempt() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.ask(events.ModelRemoved, actor="t", reason="licence", model_id="m")
    assert fleet.jobs[key.job_id].state is JobState.PLACED
    fleet.end_attempt("a", key, AttemptState.FAILED, FailureKind.LOAD_FAILED)
    fleet.wait(10, reporting=("a",))
    job = fleet.jobs[key.job_id]
    assert job.state is JobState.FAILED
    assert job.failure is not None and "was removed" in job.failure.message


def test_a_job_in_back_off_fails_with_its_model() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", key, AttemptState.FAILED, FailureKind.LOAD_FAILED)
    assert fleet.jobs[key.job_id].state is JobState.QUEUED
    fleet.ask(events.ModelRemoved, actor="t", reason="licence", model_id="m")
    assert fleet.jobs[key.job_id].state is JobState.FAILED
    fleet.wait(200, reporting=("a",))


def test_a_drain_right_after_a_restart_stops_nothing_that_may_be_running() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key)
    _takeover(fleet)
    fleet.ask(events.SiteDrainRequested, actor="t", reason="power", site_id="a", deadline_ms=3_600_000)
    fleet.connect(fleet.agents[SiteId("a")].site)
    assert not fleet.agents[SiteId("a")].attempts[key].stop


def test_a_job_that_failed_at_the_only_place_there_is_is_tried_there_again_soon() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    for _ in range(3):
        keys = list(fleet.agents[SiteId("a")].attempts)
        assert len(keys) == 1
        fleet.end_attempt("a", keys[0], AttemptState.FAILED, FailureKind.BAD_WEIGHTS)
        fleet.wait(6, reporting=("a",))
    (job,) = fleet.jobs.values()
    assert job.state is JobState.FAILED
    assert job.failure is not None and job.failure.kind is FailureKind.BAD_WEIGHTS


def test_a_site_that_had_an_agent_is_not_removed_undrained_after_a_restart() -> None:
    fleet = Fleet(site("a"))
    _takeover(fleet)
    reply = fleet.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id="a", force=False)
    assert isinstance(reply, Refusal) and reply.code is RefusalCode.WRONG_STATE


def test_timers_of_ended_jobs_do_not_pile_up() -> None:
    fleet = Fleet(site("a"), models=(model("m"),), checked=False)
    for number in range(6_000):
        if number % 1_000 == 0:
            fleet.report("a")
        fleet.submit(spec(prompt=str(number), deadline_ms=600_000_000))
        (key,) = fleet.agents[SiteId("a")].attempts
        fleet.end_attempt("a", key)
    assert len(fleet.machine.context.timers) < 5_000


def test_work_that_hangs_at_a_reporting_site_is_stopped_and_tried_elsewhere() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key, steps=3)
    fleet.wait(500, reporting=("a", "b"))
    assert not fleet.agents[SiteId("a")].attempts[key].stop
    fleet.wait(150, reporting=("a", "b"))
    assert fleet.agents[SiteId("a")].attempts[key].stop
    fleet.end_attempt("a", key, AttemptState.STOPPED)
    fleet.wait(3, reporting=("a", "b"))
    job = fleet.jobs[key.job_id]
    assert job.attempts[0].failure is not None and job.attempts[0].failure.kind is FailureKind.TIMED_OUT
    assert job.attempts[1].site_id == "b"


def test_slow_work_that_shows_its_steps_is_left_alone() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    for step in range(1, 8):
        fleet.running("a", key, steps=step)
        fleet.wait(400, reporting=("a",))
    assert not fleet.agents[SiteId("a")].attempts[key].stop


def test_a_job_that_would_take_years_waits_for_another_fleet_and_harms_nobody() -> None:
    roomy = replace(pool("big"), gpu_memory_bytes=limits.BYTES_MAX)
    fleet = Fleet(site("a", roomy))
    endless = spec(shape=Shape(width=8_192, height=8_192, frames=7_200, steps=1_000, cfg_passes=3, batch=32).check())
    offered = fleet.machine.quote_job(endless, fleet.now_us)
    assert isinstance(offered, Quote)
    assert (offered.verdict, offered.rejections) == (Verdict.NEVER, (Rejection(reason=Reason.TOO_SLOW, pools=1),))
    fleet.submit(endless, spec())
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", key)
    assert [job.state for job in fleet.jobs.values()] == [JobState.QUEUED, JobState.SUCCEEDED]
    _takeover(fleet)
    fleet.connect(fleet.agents[SiteId("a")].site)
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(site("b", pool("slow", gpu="small")),), links=())
    fleet.submit(spec(prompt="after"))
    assert len(fleet.agents[SiteId("a")].attempts) == 1
