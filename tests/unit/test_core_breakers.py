"""Breakers: a place that fails whoever comes is left alone for a while, then tried by one; what is not the place's fault closes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import AttemptKey, SiteId, TenantId
from atoll.model.job import Constraints, JobState
from atoll.model.placement import Reason
from orchestrator.core import events
from orchestrator.core.health import BreakerTurned
from orchestrator.core.machine import restore
from orchestrator.core.outputs import AppendAudit, Done
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec

FAILED, WELL = AttemptState.FAILED, AttemptState.SUCCEEDED
BROKEN = FailureKind.RUNTIME_LOST


def _fleet(*names: str, gpus: int = 8, policy: Policy | None = None) -> Fleet:
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in names), models=(model("m"), model("x"), model("y")), policy=policy)
    for name in names:
        fleet.agents[SiteId(name)].disk |= {"m", "x", "y"}
        for gpu, model_id in enumerate(("m", "x", "y")):
            fleet.warm(name, "p-0", gpu, model_id)
        fleet.report(name)
    return fleet


def _run(fleet: Fleet, name: str, kind: FailureKind | None, *, model_id: str = "m", tenant: str = "t", number: int = 0) -> AttemptKey:
    """A job of its own runs at this site, to its end or (`kind`) not. It must be placed there."""
    there = Constraints(sites=(SiteId(name),))
    fleet.submit(spec(model_id, prompt=f"{len(fleet.recording)}-{number}", tenant=TenantId(tenant), constraints=there))
    key = max((job for job in fleet.jobs.values()), key=lambda job: job.accepted_us).attempts[-1].key
    fleet.end_attempt(name, key, WELL if kind is None else FAILED, kind)
    return key


def _turns(fleet: Fleet) -> list[str]:
    return [one.to.value for step in fleet.steps for one in step.decisions if isinstance(one, BreakerTurned)]


def _audit(fleet: Fleet) -> list[tuple[str, Severity, str]]:
    events_told = [record.event for step in fleet.steps for record in step.records if isinstance(record, AppendAudit)]
    return [(event.verb, event.severity, event.detail) for event in events_told if event.verb.startswith("breaker")]


def _closed_until_us(fleet: Fleet, name: str = "a") -> int:
    view = fleet.machine.site_view(SiteId(name))
    assert view is not None
    return view.pools[0].closed_until_us


def _break(fleet: Fleet, name: str = "a") -> None:
    """As many different jobs fail there as it takes."""
    for number in range(fleet.policy.breaker_failures):
        assert not _closed_until_us(fleet, name)
        _run(fleet, name, BROKEN, number=number)
    assert _closed_until_us(fleet, name)


def test_a_place_that_fails_whoever_comes_takes_no_new_work_and_says_so() -> None:
    fleet = _fleet("a", "b")
    _break(fleet)
    assert _audit(fleet) == [("breaker_opened", Severity.WARNING, "pool p: 4 x runtime lost; no new work for 30 s, then one attempt")]
    fleet.submit(spec(prompt="only there", constraints=Constraints(sites=(SiteId("a"),))), spec(prompt="anywhere"))
    waits, goes = (next(job for job in fleet.jobs.values() if job.spec.prompt == prompt) for prompt in ("only there", "anywhere"))
    assert goes.state is JobState.PLACED and goes.attempts[0].site_id == "b"
    assert waits.deferral is not None and Reason.BREAKER_OPEN in {one.reason for one in waits.deferral.rejections}
    (place,) = fleet.machine.places(waits.job_id, waits.spec, SiteId("a"), fleet.now_us)  # type: ignore[misc]
    assert place.reason is Reason.BREAKER_OPEN


def test_after_the_pause_one_attempt_is_let_in_and_its_success_opens_the_place_to_all() -> None:
    fleet = _fleet("a")
    _break(fleet)
    fleet.submit(*(spec(prompt=str(number), model_id="m") for number in range(3)))
    fleet.wait(29, reporting=("a",))
    assert not fleet.agents[SiteId("a")].attempts
    fleet.wait(3, reporting=("a",))
    (probe,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", probe)
    assert not _closed_until_us(fleet)
    assert len(fleet.agents[SiteId("a")].attempts) > 1
    assert _turns(fleet) == ["open", "probe", "closed"]
    assert _audit(fleet)[-1][0] == "breaker_closed"


def test_each_failed_probe_doubles_the_pause_up_to_a_bound_and_the_only_place_is_tried_for_ever() -> None:
    fleet = _fleet("a")
    _break(fleet)
    pauses = []
    for number in range(8):
        fleet.submit(spec(prompt=f"probe {number}"))
        pauses.append((_closed_until_us(fleet) - fleet.now_us) // 1_000_000 + 1)
        fleet.wait(pauses[-1] + 1, reporting=("a",))
        (probe,) = fleet.agents[SiteId("a")].attempts
        fleet.end_attempt("a", probe, FAILED, BROKEN)
        fleet.ask(events.JobCancelRequested, job_id=probe.job_id, tenant=TenantId("t"), reason="")
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_probe_that_says_nothing_of_the_place_makes_way_for_the_next() -> None:
    fleet = _fleet("a")
    _break(fleet)
    fleet.submit(spec(prompt="1"), spec(prompt="2"))
    fleet.wait(31, reporting=("a",))
    (probe,) = fleet.agents[SiteId("a")].attempts
    fleet.ask(events.JobCancelRequested, job_id=probe.job_id, tenant=TenantId("t"), reason="")
    fleet.end_attempt("a", probe, AttemptState.STOPPED)
    (second,) = fleet.agents[SiteId("a")].attempts
    assert second.job_id != probe.job_id and _closed_until_us(fleet)
    fleet.end_attempt("a", second)
    assert not _closed_until_us(fleet)


def test_one_job_that_fails_again_and_again_closes_nothing() -> None:
    fleet = _fleet("a", policy=Policy(breaker_failures=2))
    fleet.submit(spec())
    (job_id,) = fleet.jobs
    while fleet.jobs[job_id].state is not JobState.FAILED:
        for key in list(fleet.agents[SiteId("a")].attempts):
            fleet.end_attempt("a", key, FAILED, BROKEN)
        fleet.wait(5, reporting=("a",))
    assert len(fleet.jobs[job_id].attempts) > 2 and not _turns(fleet)


@pytest.mark.parametrize("kind", [FailureKind.BAD_INPUT, FailureKind.FETCH_FAILED, FailureKind.UPLOAD_FAILED, FailureKind.REFUSED])
def test_what_is_not_of_the_place_closes_nothing(kind: FailureKind) -> None:
    fleet = _fleet("a")
    for _ in range(8):
        _run(fleet, "a", kind)
    assert not _turns(fleet)


def test_a_model_that_fails_everywhere_closes_nothing_anywhere() -> None:
    fleet = _fleet("a", "b")
    for _ in range(8):
        _run(fleet, "a", FailureKind.BAD_WEIGHTS)
        _run(fleet, "b", FailureKind.BAD_WEIGHTS)
    assert not _turns(fleet)


@pytest.mark.parametrize(("model_id", "tenant"), [("x", "t"), ("m", "u")])
def test_a_model_or_a_tenant_that_fails_where_others_do_well_closes_nothing(model_id: str, tenant: str) -> None:
    fleet = _fleet("a")
    for _ in range(3):
        for _ in range(3):
            _run(fleet, "a", FailureKind.EXECUTION_FAILED)
        _run(fleet, "a", None, model_id=model_id, tenant=tenant)
    assert not _turns(fleet)


def test_a_place_that_fails_most_of_many_tenants_and_models_is_closed_though_some_do_well() -> None:
    fleet = _fleet("a")
    _run(fleet, "a", BROKEN, model_id="x", tenant="u")
    _run(fleet, "a", BROKEN, model_id="m", tenant="t")
    _run(fleet, "a", None, model_id="y", tenant="v")
    _run(fleet, "a", BROKEN, model_id="x", tenant="t")
    assert not _turns(fleet)
    _run(fleet, "a", BROKEN, model_id="m", tenant="u")
    assert _turns(fleet) == ["open"]


def test_old_failures_and_those_of_stopped_attempts_do_not_count() -> None:
    fleet = _fleet("a", policy=Policy(breaker_window_ms=60_000))
    for _ in range(8):
        _run(fleet, "a", BROKEN)
        fleet.wait(30, reporting=("a",))
    assert not _turns(fleet)
    fleet = _fleet("a")
    for number in range(8):
        fleet.submit(spec(prompt=f"cancelled {number}"))
        (key,) = fleet.agents[SiteId("a")].attempts
        fleet.ask(events.JobCancelRequested, job_id=key.job_id, tenant=TenantId("t"), reason="")
        fleet.end_attempt("a", key, FAILED, BROKEN)
    assert not _turns(fleet)


def test_a_policy_may_have_none() -> None:
    fleet = _fleet("a", policy=Policy(breaker_failures=0))
    for _ in range(12):
        _run(fleet, "a", BROKEN)
    assert not _turns(fleet) and not _closed_until_us(fleet)


def test_a_snapshot_keeps_what_is_closed_and_what_is_being_probed() -> None:
    fleet = _fleet("a", "b")
    _break(fleet)
    fleet.submit(spec(prompt="only there", constraints=Constraints(sites=(SiteId("a"),))))
    for _ in range(2):
        fleet.machine = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
        fleet.wait(16, reporting=("a", "b"))
    fleet.machine = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    (probe,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", probe, FAILED, BROKEN)
    assert _closed_until_us(fleet) - fleet.now_us > 50_000_000
    assert _turns(fleet) == ["open", "probe", "open"]


def test_a_probe_of_a_model_that_fails_elsewhere_too_does_not_double_the_pause() -> None:
    fleet = _fleet("a", "b")
    _break(fleet)
    for job_id in list(fleet.jobs):
        fleet.ask(events.JobCancelRequested, job_id=job_id, tenant=TenantId("t"), reason="none of them shall be the probe")
    _run(fleet, "b", BROKEN, model_id="x")
    there = Constraints(sites=(SiteId("a"),))
    fleet.submit(spec("x", prompt="probe", constraints=there))
    fleet.wait(31, reporting=("a", "b"))
    (probe,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", probe, FAILED, BROKEN)
    assert _turns(fleet) == ["open", "probe"], "x fails wherever it goes"
    fleet.ask(events.JobCancelRequested, job_id=probe.job_id, tenant=TenantId("t"), reason="")
    fleet.submit(spec("y", prompt="next", constraints=there))
    (following,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", following)
    assert _turns(fleet) == ["open", "probe", "closed"], "and the next attempt was let in at once"


def test_a_restored_core_knows_which_models_fail_elsewhere() -> None:
    fleet = _fleet("a", "b")
    _run(fleet, "b", BROKEN)
    fleet.machine = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    for number in range(2 * fleet.policy.breaker_failures):
        _run(fleet, "a", BROKEN, number=number)
    assert not _turns(fleet), "it is the model's fault"


def test_a_site_that_goes_takes_its_breaker_along() -> None:
    fleet = _fleet("a")
    _break(fleet)
    gone = fleet.agents[SiteId("a")].site
    assert isinstance(fleet.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id="a", force=True), Done)
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(replace(gone),), links=()))
    fleet.connect(gone, boot_id="c")
    fleet.wait(60, reporting=("a",))
    assert not _closed_until_us(fleet) and _turns(fleet) == ["open"]
