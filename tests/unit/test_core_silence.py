"""Silence, loss, drains, removal and takeover in the core."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.attempt import AttemptState
from atoll.model.ids import ChangeSeq, EventSeq, FleetId, SiteId, Term
from atoll.model.job import JobState
from atoll.model.report import PROTOCOL_VERSION
from atoll.model.site import SiteAdmin, SiteConnection, SiteRuntime
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.events import SessionRef
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import AppendAudit, CloseSession, Done, PutJob, PutModel, PutSite, Refusal, RefusalCode
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, pool, site, spec


def _only_key(fleet: Fleet, name: str):  # type: ignore[no-untyped-def]  # an AttemptKey, or the test fails
    (key,) = fleet.agents[SiteId(name)].attempts
    return key


def _verbs(fleet: Fleet) -> list[str]:
    return [record.event.verb for step in fleet.steps for record in step.records if isinstance(record, AppendAudit)]


def test_a_silent_site_is_suspected_first_and_its_work_goes_elsewhere_only_after_a_minute() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.wait(10, reporting=("b",))
    assert fleet.machine.site_view(SiteId("a")).connection is SiteConnection.SILENT  # type: ignore[union-attr]
    assert fleet.jobs[key.job_id].state is JobState.PLACED
    fleet.wait(60, reporting=("b",))
    job = fleet.jobs[key.job_id]
    assert [attempt.state for attempt in job.attempts] == [AttemptState.LOST, AttemptState.LEASED]
    assert job.attempts[1].site_id == "b"
    assert _verbs(fleet)[-2:] == ["site_silent", "site_lost"]


def test_the_late_result_of_a_lost_attempt_is_refused_and_its_slot_freed() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b"))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.wait(75, reporting=("b",))
    fleet.connect(fleet.agents[SiteId("a")].site)
    assert fleet.agents[SiteId("a")].attempts[key].stop
    view = fleet.machine.site_view(SiteId("a"))
    assert view is not None and view.pools[0].slots_used == 1
    fleet.end_attempt("a", key)
    job = fleet.jobs[key.job_id]
    assert job.state is not JobState.SUCCEEDED
    view = fleet.machine.site_view(SiteId("a"))
    assert view is not None and view.pools[0].slots_used == 0


def test_reports_renew_leases_for_as_long_as_they_come() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    fleet.wait(900, reporting=("a", "b"))
    assert len(fleet.jobs[job.job_id].attempts) == 1


def test_when_most_sites_fall_silent_at_once_no_loss_is_declared_and_an_alarm_is_raised() -> None:
    names = ("a", "b", "c", "d", "e")
    fleet = Fleet(*(site(name) for name in names))
    fleet.submit(*(spec(prompt=str(number)) for number in range(5)))
    fleet.wait(300, reporting=("e",))
    assert all(len(job.attempts) == 1 for job in fleet.jobs.values())
    assert "losses_braked" in _verbs(fleet)
    for name in names[1:]:
        fleet.connect(fleet.agents[SiteId(name)].site)
    fleet.wait(100, reporting=names[1:])
    assert "losses_released" in _verbs(fleet)
    assert fleet.machine.site_view(SiteId("a")).connection is SiteConnection.LOST  # type: ignore[union-attr]


def test_a_drain_moves_what_has_not_begun_and_lets_the_rest_end() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", origin_gbs=1))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec(), spec(prompt="2"))
    first, second = fleet.agents[SiteId("a")].attempts
    fleet.running("a", first)
    reply = fleet.ask(events.SiteDrainRequested, actor="t", reason="power", site_id="a", deadline_ms=600_000)
    assert isinstance(reply, Done)
    told = fleet.agents[SiteId("a")].attempts
    assert not told[first].stop and told[second].stop
    fleet.end_attempt("a", second, AttemptState.STOPPED)
    assert fleet.jobs[second.job_id].attempts[-1].site_id == "b"
    assert fleet.machine.site_view(SiteId("a")).admin is SiteAdmin.DRAINING  # type: ignore[union-attr]
    fleet.end_attempt("a", first)
    assert fleet.jobs[first.job_id].state is JobState.SUCCEEDED
    assert fleet.machine.site_view(SiteId("a")).admin is SiteAdmin.DRAINED  # type: ignore[union-attr]
    assert "site_drained" in _verbs(fleet)


def test_a_drain_never_stops_running_work_before_its_stored_deadline_and_does_then() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.running("a", key)
    fleet.ask(events.SiteDrainRequested, actor="t", reason="power", site_id="a", deadline_ms=30_000)
    fleet.wait(29, reporting=("a", "b"))
    assert not fleet.agents[SiteId("a")].attempts[key].stop
    fleet.wait(2, reporting=("a", "b"))
    assert fleet.agents[SiteId("a")].attempts[key].stop
    fleet.end_attempt("a", key, AttemptState.STOPPED)
    job = fleet.jobs[key.job_id]
    assert job.attempts[-1].site_id == "b"
    assert fleet.machine.site_view(SiteId("a")).admin is SiteAdmin.DRAINED  # type: ignore[union-attr]


def test_a_drain_plan_says_what_waits_what_moves_and_when_it_ends() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b"))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec(), spec(prompt="2"))
    first, second = fleet.agents[SiteId("a")].attempts
    fleet.running("a", first)
    plan = fleet.machine.plan_drain(SiteId("a"), 600_000, fleet.now_us)
    assert not isinstance(plan, Refusal)
    actions = {move.job_id: (move.action, move.to_site) for move in plan.moves}
    assert actions == {first.job_id: ("wait", None), second.job_id: ("move", SiteId("b"))}
    assert plan.predicted_end_us > fleet.now_us
    assert plan.last_warm == ("m",)


def test_what_a_gang_shares_elsewhere_is_no_warm_replica_for_single_jobs() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=2)))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.warm_gang("b", "p-0", 0, 2, "m")
    fleet.report("b")

    def lost() -> tuple[str, ...]:
        plan = fleet.machine.plan_drain(SiteId("a"), 600_000, fleet.now_us)
        assert not isinstance(plan, Refusal)
        return plan.last_warm

    assert lost() == ("m",)
    fleet.agents[SiteId("b")].gangs.clear()
    fleet.warm("b", "p-0", 0, "m")
    fleet.report("b")
    assert lost() == ()


def test_remove_wants_an_empty_drained_site_and_force_settles_every_orphan_first() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    reply = fleet.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id="a", force=False)
    assert isinstance(reply, Refusal) and reply.code is RefusalCode.WRONG_STATE
    assert "drain" in reply.message
    fleet.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id="a", force=True)
    assert fleet.jobs[key.job_id].attempts[-1].key.ordinal == 2 or fleet.jobs[key.job_id].state is JobState.QUEUED
    assert fleet.machine.site_view(SiteId("a")) is None
    fleet.wait(15, reporting=("b",))
    assert fleet.jobs[key.job_id].attempts[-1].site_id == "b"


def test_cordon_touches_nothing_that_runs_and_takes_nothing_new() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.ask(events.SiteCordoned, actor="t", reason="look", site_id="a")
    fleet.submit(spec(prompt="2"))
    assert not fleet.agents[SiteId("a")].attempts[key].stop
    assert len(fleet.agents[SiteId("a")].attempts) == 1
    fleet.ask(events.SiteUncordoned, actor="t", reason="", site_id="a")
    assert len(fleet.agents[SiteId("a")].attempts) == 2


def test_a_second_agent_under_the_same_name_another_protocol_and_another_fleet_are_refused() -> None:
    fleet = Fleet(site("a"))
    hello = fleet.machine.context.state.sites[SiteId("a")].hello
    assert hello is not None

    def refusal(**changes: object) -> Refusal:
        step = fleet.happen(
            events.SiteConnected(site_id=SiteId("a"), session=SessionRef(99), hello=replace(hello, **changes))  # type: ignore[arg-type]
        )
        (closed,) = [command for command in step.commands if isinstance(command, CloseSession)]
        assert closed.session == 99
        return closed.refusal

    assert refusal(boot_id="other").code is RefusalCode.CONFLICT
    assert str(PROTOCOL_VERSION) in refusal(protocol_version=7).message and "7" in refusal(protocol_version=7).message
    assert "another-fleet" in refusal(fleet_id="another-fleet").message
    assert fleet.machine.context.state.sites[SiteId("a")].session != 99


def test_twins_take_rehearsals_only_and_real_sites_never_do() -> None:
    fleet = Fleet(site("real"))
    twin = site("twin")
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(twin,), links=())
    fleet.connect(twin, runtime=SiteRuntime.TWIN)
    fleet.submit(spec(), spec(prompt="2", simulated=True))
    places = {job.spec.simulated: job.attempts[-1].site_id for job in fleet.jobs.values()}
    assert places == {False: "real", True: "twin"}


def stored_by(fleet: Fleet) -> Stored:
    """What a store would hold after all steps of this fleet."""
    jobs, sites, models, seq = {}, {}, {}, 0
    for step in fleet.steps:
        for record in step.records:
            match record:
                case PutJob():
                    jobs[record.job.job_id] = record.job
                case PutSite():
                    sites[record.site.spec.site_id] = record.site
                case PutModel():
                    models[record.model.model_id] = record.model
                case AppendAudit():
                    seq = record.event.seq
                case _:
                    pass
    live = tuple(job for job in jobs.values() if job.state in (JobState.QUEUED, JobState.PLACED, JobState.RUNNING))
    return Stored(
        fleet_id=FleetId("f"), term=Term(2), fleet_time_us=fleet.now_us, last_audit_seq=ChangeSeq(seq),
        jobs=live, sites=tuple(sites.values()), models=tuple(models.values()),
    )  # fmt: skip


def test_after_a_takeover_running_work_goes_on_and_waiting_work_is_placed() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec(), spec(prompt="2"), spec(prompt="3"))
    first = next(iter(fleet.agents[SiteId("a")].attempts))
    fleet.running("a", first)
    fleet.machine = new_machine(stored_by(fleet), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)), 50 * SECOND)
    fleet.wait(4)
    agent = fleet.agents[SiteId("a")]
    fleet.connect(agent.site, boot_id="b")
    told = fleet.agents[SiteId("a")].told[-1]
    assert told.full and told.term == 2
    assert first in fleet.agents[SiteId("a")].attempts and not fleet.agents[SiteId("a")].attempts[first].stop
    fleet.running("a", first)
    fleet.end_attempt("a", first)
    assert fleet.jobs[first.job_id].state is JobState.SUCCEEDED
    while fleet.agents[SiteId("a")].attempts:
        fleet.end_attempt("a", next(iter(fleet.agents[SiteId("a")].attempts)))
    assert {job.state for job in fleet.jobs.values()} == {JobState.SUCCEEDED}


def test_a_drain_survives_a_takeover_with_its_deadline() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.warm("a", "big-0", 0, "m")
    fleet.report("a")
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.running("a", key)
    fleet.ask(events.SiteDrainRequested, actor="t", reason="power", site_id="a", deadline_ms=60_000)
    fleet.machine = new_machine(stored_by(fleet), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))
    for name in ("a", "b"):
        fleet.connect(fleet.agents[SiteId(name)].site)
    fleet.wait(50, reporting=("a", "b"))
    assert not fleet.agents[SiteId("a")].attempts[key].stop
    fleet.wait(15, reporting=("a", "b"))
    assert fleet.agents[SiteId("a")].attempts[key].stop


def test_delivered_again_an_end_counts_once() -> None:
    fleet = Fleet(site("a"))
    fleet.submit(spec())
    key = _only_key(fleet, "a")
    fleet.end_attempt("a", key)
    records_before = sum(len(step.records) for step in fleet.steps)
    agent = fleet.agents[SiteId("a")]
    agent.event_seq -= 1
    fleet.end_attempt("a", key)
    assert sum(len(step.records) for step in fleet.steps) == records_before
    assert EventSeq(1) == agent.told[-1].acked_event_seq
