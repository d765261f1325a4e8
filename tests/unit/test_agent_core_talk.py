"""The agent's core and its orchestrator: generations, terms, acknowledgements, reports, silence and restarts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from agents.core.events import RecoveredSlot, SessionClosed
from agents.core.machine import restore
from agents.core.outbox import RESEND_US, WINDOW
from agents.core.outputs import (
    IdentityChanged,
    RefuseOrchestrator,
    RenewAttempts,
    RequestResync,
    RunAttempt,
    SendEvents,
    SendReport,
    StopAttempt,
)
from atoll.model.attempt import AttemptState
from atoll.model.ids import EventSeq, FleetId, ModelId, Term
from atoll.model.replica import ReplicaFact, ReplicaState
from tests.unit.agent_core_site import FLEET, GB, POOL, SECOND, AgentSite, attempt, key, manifest, slot


@pytest.fixture
def site() -> AgentSite:
    made = AgentSite().start().connect()
    made.assign(full=True)
    return made


def _busy(site: AgentSite, jobs: int) -> None:
    """`jobs` attempts execute, each in a slot of its own."""
    where = [slot(0, 0), slot(0, 1), slot(1, 0), slot(1, 1)][:jobs]
    for number, ref in enumerate(where):
        site.warm("m", ref)
        site.assign(attempt(f"j{number}", where=ref))


# --- assignments ----------------------------------------------------------------------------------------------------------------


def test_a_doubled_assignment_changes_nothing(site: AgentSite) -> None:
    site.assign(attempt("a"))
    site.generation -= 1
    site.assign(attempt("a"))
    assert site.step.commands == ()


def test_an_old_assignment_is_ignored_but_its_acknowledgement_counts(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.finishes("a")
    assert site.outbox
    site.generation -= 2
    site.assign(attempt("b"), acked_event_seq=EventSeq(site.next_seq - 1))
    assert not site.outbox
    assert key("b") not in site.machine.state.works


def test_a_gap_asks_for_a_snapshot_once(site: AgentSite) -> None:
    held = site.generation
    site.generation += 1
    site.assign(attempt("a"))
    assert [command.generation for command in site.said(RequestResync)] == [held]
    site.assign(attempt("b"))
    assert not site.said(RequestResync)
    site.assign(attempt("a"), attempt("b"), full=True)
    assert set(site.machine.state.works) == {key("a"), key("b")}


def test_a_snapshot_stops_what_it_does_not_name(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"), attempt("b"))
    site.assign(full=True)
    assert [command.key for command in site.said(StopAttempt)] == [key("a")]
    assert site.end_of("b").state is AttemptState.STOPPED


@pytest.mark.parametrize(("keeps", "confirmed", "held"), [(3, False, False), (1, False, True), (1, True, False), (0, False, True)])
def test_a_snapshot_that_drops_most_of_what_runs_must_be_confirmed(site: AgentSite, keeps: int, confirmed: bool, held: bool) -> None:
    _busy(site, 4)
    kept = [site.listed[key(f"j{number}")] for number in range(keeps)]
    site.assign(*kept, attempt("new", where=slot(0, 0)), full=True, confirm_shrink=confirmed)
    assert len(site.said(StopAttempt)) == (0 if held else 4 - keeps)
    assert bool([notice for notice in site.step.notices if "held back" in notice]) is held
    # What it asks for besides is done: only the loss is held back.
    assert key("new") in site.machine.state.works


def test_an_attempt_that_is_removed_is_stopped(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.assign(removed=(key("a"),))
    assert [command.key for command in site.said(StopAttempt)] == [key("a")]


# --- who may give orders -----------------------------------------------------------------------------------------------------------


def test_another_fleet_is_refused_for_good(site: AgentSite) -> None:
    site.connect(fleet_id=FleetId("other"))
    assert [(command.final, "other" in command.message) for command in site.said(RefuseOrchestrator)] == [(True, True)]
    site.assign(attempt("a"))
    assert not site.machine.state.works


def test_a_deposed_orchestrator_is_refused_until_one_of_the_term_comes(site: AgentSite) -> None:
    site.connect(term=Term(5))
    site.connect(term=Term(4))
    assert [command.final for command in site.said(RefuseOrchestrator)] == [False]
    site.term = 5
    site.connect()
    assert site.said(SendReport)


def test_a_new_term_is_kept_and_begins_its_own_generations(site: AgentSite) -> None:
    site.happen(SessionClosed())
    site.term, site.generation = 2, 0
    site.connect()
    assert IdentityChanged(fleet_id=FLEET, term=Term(2)) in site.step.records
    site.assign(attempt("a"), full=True)
    assert key("a") in site.machine.state.works


def test_an_assignment_of_a_lower_term_is_refused(site: AgentSite) -> None:
    site.connect(term=Term(3))
    site.assign(attempt("a"), term=Term(2))
    assert site.said(RefuseOrchestrator)
    assert not site.machine.state.works


# --- the outbox ----------------------------------------------------------------------------------------------------------------------


def test_ends_are_sent_again_after_a_reconnect_and_forgotten_when_acknowledged(site: AgentSite) -> None:
    site.happen(SessionClosed())
    site.connect()
    site.warm()
    site.assign(attempt("a"))
    site.happen(SessionClosed())
    site.finishes("a")
    assert not site.said(SendEvents)
    site.connect()
    assert [[event.key for event in sent.events] for sent in site.said(SendEvents)] == [[key("a")]]
    site.assign(full=True, acked_event_seq=EventSeq(site.next_seq - 1))
    assert not site.outbox
    assert not site.machine.state.ended


def test_every_message_begins_with_the_first_end_that_is_not_acknowledged(site: AgentSite) -> None:
    site.assign(attempt("a", "unknown"))
    site.assign(attempt("b", "unknown"))
    assert [event.key for event in site.said(SendEvents)[0].events] == [key("a"), key("b")]


def test_ends_are_sent_again_when_no_acknowledgement_comes(site: AgentSite) -> None:
    site.assign(attempt("a", "unknown"))
    deadline_us = site.machine.next_deadline()
    assert deadline_us is not None
    assert deadline_us <= site.now_us + RESEND_US
    site.tick(RESEND_US)
    assert [event.key for event in site.said(SendEvents)[0].events] == [key("a")]


def test_a_long_outbox_goes_up_in_windows(site: AgentSite) -> None:
    many = [attempt(f"j{number}", "unknown") for number in range(WINDOW + 10)]
    site.assign(*many)
    assert [len(sent.events) for sent in site.said(SendEvents)] == [WINDOW]
    site.assign(attempt("late", "unknown"))
    assert not site.said(SendEvents)
    site.assign(removed=tuple(one.key for one in many), acked_event_seq=EventSeq(WINDOW))
    assert [len(sent.events) for sent in site.said(SendEvents)] == [11]


# --- reports ---------------------------------------------------------------------------------------------------------------------------


def test_the_first_report_of_a_session_is_full_and_later_ones_tell_what_changed() -> None:
    site = AgentSite().start(disk=("m",)).connect()
    report = site.report()
    assert report is not None
    assert report.full
    assert [node.node_id for node in report.nodes] == [POOL.node_id(0), POOL.node_id(1)]
    assert [facts.memory_free_bytes for facts in report.nodes[0].slots] == [24 * GB, 24 * GB]
    site.assign(attempt("a"), full=True)
    site.tick(SECOND // 10)
    report = site.report()
    assert report is not None
    assert not report.full
    assert [(one.key, one.state) for one in report.progress] == [(key("a"), AttemptState.LOADING)]
    replicas = [fact for facts in report.nodes[0].slots for fact in facts.replicas]
    assert replicas == [ReplicaFact(model_id=ModelId("m"), state=ReplicaState.LOADING, memory_bytes=10 * GB, loading_us=SECOND // 10)]
    assert report.generation == site.generation


def test_reports_are_regular_and_repeat_every_node_within_a_few(site: AgentSite) -> None:
    seen, seqs = set(), []
    for _ in range(5):
        site.tick(SECOND)
        report = site.report()
        assert report is not None
        seen |= {node.node_id for node in report.nodes}
        seqs.append(report.seq)
    assert seen == {POOL.node_id(0), POOL.node_id(1)}
    assert seqs == list(range(seqs[0], seqs[0] + 5))


def test_changes_of_phase_are_reported_promptly_and_together(site: AgentSite) -> None:
    site.warm()
    site.tick(SECOND)
    site.assign(attempt("a"))
    sent = 0
    for step in range(1, 6):
        site.runs("a", step)
        sent += len(site.said(SendReport))
    assert sent <= 1
    site.tick(SECOND // 10)
    report = site.report()
    assert sent or report is not None


def test_a_second_snapshot_is_answered_with_a_full_report(site: AgentSite) -> None:
    site.assign(full=True)
    report = site.report()
    assert report is not None
    assert report.full


def test_a_large_site_reports_in_parts() -> None:
    site = AgentSite(pools=(replace(POOL, nodes=600),)).start().connect()
    reports = [command.report for command in site.said(SendReport)]
    assert [report.full for report in reports] == [True, False, False]
    assert sum(len(report.nodes) for report in reports) == 600
    assert [report.seq for report in reports] == [1, 2, 3]


# --- silence of the orchestrator ------------------------------------------------------------------------------------------------------


def test_work_goes_on_without_an_orchestrator_until_its_stop_after(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", stop_after_ms=60_000), attempt("b", "n", stop_after_ms=60_000))
    site.happen(SessionClosed())
    assert site.machine.next_deadline() == site.now_us + 60 * SECOND
    site.tick(59 * SECOND)
    assert not site.said(StopAttempt)
    site.tick(SECOND)
    assert [command.key for command in site.said(StopAttempt)] == [key("a")]
    assert site.end_of("b").state is AttemptState.STOPPED
    site.halts("a")
    assert site.end_of("a").state is AttemptState.STOPPED


def test_executing_work_is_renewed_well_within_its_stop_after_while_connected(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", stop_after_ms=40_000))
    renewed = []
    for _ in range(100):
        site.tick(SECOND)
        renewed += [site.now_us for command in site.said(RenewAttempts) if key("a") in command.keys]
    gaps = [later - earlier for earlier, later in pairwise(renewed)]
    assert 5 <= len(renewed) <= 12
    assert max(gaps) <= 20 * SECOND


def test_a_reconnect_renews_at_once(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.happen(SessionClosed())
    site.connect()
    assert [command.keys for command in site.said(RenewAttempts)] == [(key("a"),)]


# --- restarts of the agent --------------------------------------------------------------------------------------------------------------


def _executing(job: str) -> RecoveredSlot:
    busy = ReplicaFact(model_id=ModelId("m"), state=ReplicaState.BUSY, memory_bytes=10 * GB)
    return RecoveredSlot(slot=slot(), replicas=(busy,), running=key(job))


def test_what_executes_and_is_assigned_goes_on_after_a_restart(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.restart()
    site.start(_executing("a"), disk=("m",)).connect()
    site.assign(attempt("a"), full=True)
    assert not site.said(RunAttempt)
    assert not site.said(StopAttempt)
    site.finishes("a")
    assert site.end_of("a").state is AttemptState.SUCCEEDED


def test_what_executes_and_is_not_assigned_is_stopped_after_a_restart(site: AgentSite) -> None:
    site.restart()
    site.start(_executing("a")).connect()
    assert not site.said(StopAttempt)
    site.assign(full=True)
    assert [command.key for command in site.said(StopAttempt)] == [key("a")]
    site.halts("a")
    assert not site.machine.state.works


def test_what_finished_while_no_agent_watched_is_told_when_it_is_assigned(site: AgentSite) -> None:
    site.restart()
    site.start(finished=(manifest(key("a")), manifest(key("old")))).connect()
    site.assign(attempt("a"), full=True)
    assert site.end_of("a").manifest == manifest(key("a"))
    assert not site.said(RunAttempt)
    assert [event.key for event in site.history] == [key("a")]


def test_what_finishes_before_the_first_snapshot_is_told_too(site: AgentSite) -> None:
    site.restart()
    site.start().connect()
    site.finishes("a")
    site.assign(attempt("a"), full=True)
    assert site.end_of("a").state is AttemptState.SUCCEEDED


def test_an_end_that_is_on_disk_is_told_after_a_restart_and_the_attempt_not_run_again(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.finishes("a")
    site.restart()
    site.start(finished=(manifest(key("a")),), disk=("m",)).connect()
    assert [[event.key for event in sent.events] for sent in site.said(SendEvents)] == [[key("a")]]
    site.assign(attempt("a"), full=True)
    assert not site.machine.state.works
    assert site.end_of("a").seq + 1 == site.machine.state.next_event_seq


def test_event_numbers_go_on_after_a_restart_with_an_empty_outbox(site: AgentSite) -> None:
    site.warm()
    before = site.next_seq
    site.restart()
    site.start().connect()
    site.assign(attempt("a", "unknown"), full=True)
    assert site.end_of("a").seq == before


# --- snapshot ----------------------------------------------------------------------------------------------------------------------------


def test_a_restored_machine_goes_on_with_equal_steps(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"), attempt("b", "n"))
    twin = AgentSite()
    twin.machine, twin.now_us, twin.generation = restore(site.machine.snapshot()), site.now_us, site.generation
    for one, other in ((site.finishes("a"), twin.finishes("a")), (site.fetched("n"), twin.fetched("n")), (site.tick(), twin.tick())):
        assert one == other
    assert site.machine.snapshot() == twin.machine.snapshot()


def test_a_snapshot_stays_as_it_is_while_its_machine_goes_on(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    taken = site.machine.snapshot()
    text = repr(taken)
    site.finishes("a")
    site.assign(attempt("b", "n"))
    assert repr(taken) == text
    assert restore(taken).snapshot() == taken
    assert site.machine.snapshot() != taken
