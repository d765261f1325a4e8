"""The agent's core carries attempts from assignment to exactly one end: fetch, evict, load, run, stop, refuse, fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import SlotLost, SlotReady, WeightsDeleted
from agents.core.outputs import DeleteWeights, EvictReplica, FetchWeights, LoadReplica, RunAttempt, SendEvents, StopAttempt
from agents.core.state import ReplicaKey
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import EventSeq, ModelId
from atoll.model.replica import ReplicaState
from atoll.model.site import SiteRuntime
from tests.unit.agent_core_site import GB, POOL, SECOND, AgentSite, attempt, key, model, slot


@pytest.fixture
def site() -> AgentSite:
    made = AgentSite().start().connect()
    made.assign(full=True)
    return made


def test_a_cold_attempt_is_fetched_loaded_and_run(site: AgentSite) -> None:
    site.assign(attempt("a"))
    assert [command.model.model_id for command in site.said(FetchWeights)] == ["m"]
    site.fetched(after_us=5 * SECOND)
    assert [command.slot for command in site.said(LoadReplica)] == [slot()]
    site.loaded(after_us=2 * SECOND)
    assert [(command.key, command.request_id) for command in site.said(RunAttempt)] == [(key("a"), "r-a")]
    site.finishes("a")
    event = site.end_of("a")
    assert event.state is AttemptState.SUCCEEDED
    assert event.manifest is not None
    assert (event.times.waiting_us, event.times.fetch_us, event.times.load_us) == (0, 5 * SECOND, 2 * SECOND)
    assert (event.times.run_us, event.times.upload_us, event.times.compile_us) == (7, 3, -1)
    assert [sent.events for sent in site.said(SendEvents)] == [(event,)]


def test_a_warm_replica_runs_at_once(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    assert [command.key for command in site.said(RunAttempt)] == [key("a")]
    site.finishes("a")
    assert (site.end_of("a").times.fetch_us, site.end_of("a").times.load_us) == (-1, -1)


def test_weights_are_fetched_once_per_node_however_many_wait(site: AgentSite) -> None:
    here, beside, elsewhere = slot(0, 0), slot(0, 1), slot(1, 0)
    site.assign(attempt("a", where=here), attempt("b", where=here), attempt("c", where=beside), attempt("d", where=elsewhere))
    assert sorted(command.node_id for command in site.said(FetchWeights)) == [POOL.node_id(0), POOL.node_id(1)]
    site.fetched()
    assert [command.slot for command in site.said(LoadReplica)] == [here, beside]


def test_the_next_attempt_is_fetched_while_one_executes_and_loaded_after(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.assign(attempt("b", "n"))
    assert [command.model.model_id for command in site.said(FetchWeights)] == ["n"]
    site.fetched("n")
    assert not site.said(LoadReplica)
    site.finishes("a", after_us=3 * SECOND)
    assert [command.model.model_id for command in site.said(LoadReplica)] == ["n"]
    site.loaded("n")
    site.finishes("b")
    assert site.end_of("b").times.waiting_us == 3 * SECOND


def test_replicas_that_an_attempt_names_give_way_before_it_loads(site: AgentSite) -> None:
    site.warm("m").warm("n")
    site.assign(attempt("a", "o", evict=(ModelId("m"),)))
    site.fetched("o")
    assert [command.model_id for command in site.said(EvictReplica)] == ["m"]
    assert not site.said(LoadReplica)
    site.evicted("m")
    assert [command.model.model_id for command in site.said(LoadReplica)] == ["o"]


def test_nobody_leaves_for_weights_that_have_yet_to_come(site: AgentSite) -> None:
    site.warm("m")
    site.assign(attempt("a", "o", evict=(ModelId("m"),)))
    assert site.said(FetchWeights)
    site.fetch_failed(FailureKind.FETCH_FAILED, "o")
    assert site.end_of("a").state is AttemptState.FAILED and not site.said(EvictReplica)
    site.assign(attempt("b", "m"))
    assert site.said(RunAttempt), "what was to leave is warm for others"


def test_a_model_that_does_not_fit_after_the_evictions_is_refused(site: AgentSite) -> None:
    site.warm("m").warm("n")
    site.assign(attempt("a", "o"))
    site.fetched("o")
    event = site.end_of("a")
    assert (event.state, event.failure and event.failure.kind) == (AttemptState.REFUSED, FailureKind.REFUSED)
    assert event.failure is not None
    assert "o needs 10.0 GB" in event.failure.message
    assert not site.said(EvictReplica)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"where": slot()._replace(index=9)}, "no slot 9"),
        ({"model_id": "unknown"}, "not described"),
        ({"model_id": "catalogue-only"}, "no weights"),
        ({"model_id": "huge"}, "its slot has"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_reason(site: AgentSite, changes: dict[str, object], told: str) -> None:
    site.models["catalogue-only"] = replace(model("catalogue-only"), weights_digest="")
    site.models["huge"] = model("huge", 100)
    site.assign(attempt("a", **changes))  # type: ignore[arg-type] # the table names arguments
    failure = site.end_of("a").failure
    assert failure is not None
    assert told in failure.message
    assert not site.said(FetchWeights)


@pytest.mark.parametrize("runtime", list(SiteRuntime))
def test_rehearsals_run_at_twins_only_and_only_they_do(runtime: SiteRuntime) -> None:
    site = AgentSite(runtime=runtime).start().connect()
    for job, simulated in (("real", False), ("simulated", True)):
        one = attempt(job)
        site.assign(replace(one, spec=replace(one.spec, simulated=simulated)), full=job == "real")
    taken = "simulated" if runtime is SiteRuntime.TWIN else "real"
    assert list(site.machine.state.works) == [key(taken)]
    assert [event.state for event in site.history] == [AttemptState.REFUSED]


def test_too_many_waiting_attempts_are_refused(site: AgentSite) -> None:
    site.assign(*(attempt(f"j{number}") for number in range(12)))
    refused = [event.key.job_id for event in site.history]
    assert refused == ["j8", "j9", "j10", "j11"]


def test_a_failed_fetch_ends_all_that_waited_for_it(site: AgentSite) -> None:
    site.assign(attempt("a"), attempt("b", where=slot(0, 1)), attempt("c", "n"), attempt("d", where=slot(1)))
    site.fetch_failed(FailureKind.DISK_FULL)
    assert sorted(event.key.job_id for event in site.history) == ["a", "b"]
    assert {event.failure and event.failure.kind for event in site.history} == {FailureKind.DISK_FULL}


def test_a_failed_load_ends_the_attempt_that_it_was_for_and_the_next_tries_again(site: AgentSite) -> None:
    site.assign(attempt("a"), attempt("b"))
    site.fetched()
    site.load_failed(FailureKind.OUT_OF_MEMORY)
    assert [(event.key.job_id, event.failure and event.failure.kind) for event in site.history] == [("a", FailureKind.OUT_OF_MEMORY)]
    assert [command.model.model_id for command in site.said(LoadReplica)] == ["m"]


def test_the_kind_of_a_failure_passes_through(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.errs("a", FailureKind.BAD_INPUT)
    event = site.end_of("a")
    assert (event.state, event.failure and event.failure.kind) == (AttemptState.FAILED, FailureKind.BAD_INPUT)
    assert site.machine.state.slots[slot()].replicas[ReplicaKey(model_id=ModelId("m"))].state is ReplicaState.WARM


def test_stopping_what_has_not_begun_takes_effect_at_once(site: AgentSite) -> None:
    site.assign(attempt("a"))
    site.assign(attempt("a", stop=True))
    assert site.end_of("a").state is AttemptState.STOPPED
    site.fetched()
    assert not site.said(LoadReplica)


def test_stopping_while_it_loads_leaves_a_warm_replica(site: AgentSite) -> None:
    site.assign(attempt("a"))
    site.fetched()
    site.assign(attempt("a", stop=True))
    assert site.end_of("a").state is AttemptState.STOPPED
    site.loaded()
    assert not site.said(RunAttempt)
    site.assign(attempt("b"))
    assert [command.key for command in site.said(RunAttempt)] == [key("b")]


def test_stopping_what_executes_waits_for_the_runtime(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.runs("a")
    for _ in range(2):
        site.assign(attempt("a", stop=True))
    assert not [event for event in site.history if event.key == key("a")]
    site.halts("a")
    assert site.end_of("a").state is AttemptState.STOPPED


def test_a_result_that_beats_the_stop_is_a_result(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.assign(attempt("a", stop=True))
    assert [command.key for command in site.said(StopAttempt)] == [key("a")]
    site.finishes("a")
    site.halts("a")
    assert site.end_of("a").state is AttemptState.SUCCEEDED


def test_a_lost_slot_fails_what_it_executed_and_the_rest_waits_for_it(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"), attempt("b"))
    site.happen(SlotLost(slot=slot(), message="killed by signal 9"))
    event = site.end_of("a")
    assert event.failure == Failure(kind=FailureKind.RUNTIME_LOST, message="killed by signal 9")
    assert not site.said(LoadReplica)
    site.finishes("a")
    site.happen(SlotReady(slot=slot()))
    assert [command.model.model_id for command in site.said(LoadReplica)] == ["m"]
    assert site.end_of("a").state is AttemptState.FAILED


def test_a_new_process_is_told_to_have_generated_nothing_until_it_has(site: AgentSite) -> None:
    def told() -> list[bool]:
        site.tick()
        report = site.report()
        assert report is not None
        return [one.fresh for node in report.nodes for one in node.slots if one.index == 0 and node.node_id == POOL.node_id(0)]

    site.warm()
    site.happen(SlotLost(slot=slot(), message="killed by signal 9"))
    site.happen(SlotReady(slot=slot()))
    assert told() == [True]
    site.assign(attempt("a"))
    site.loaded()
    site.errs("a", FailureKind.EXECUTION_FAILED)
    assert told() == [True], "what failed may have failed before it generated anything"
    site.assign(attempt("b"))
    site.finishes("b")
    assert told() == [False]


def test_a_model_that_should_leave_leaves_every_tier_once_idle(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.assign(evict=(ModelId("m"),))
    assert not site.said(EvictReplica)
    site.finishes("a")
    assert [command.model_id for command in site.said(EvictReplica)] == ["m"]
    assert not site.said(DeleteWeights)
    site.evicted("m")
    assert [command.node_id for command in site.said(DeleteWeights)] == [POOL.node_id(0)]
    site.happen(WeightsDeleted(node_id=POOL.node_id(0), model_id=ModelId("m")))
    assert not site.machine.state.leaving


def test_a_model_that_is_wanted_again_stays(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.assign(evict=(ModelId("m"),))
    site.assign(attempt("b"))
    site.finishes("a")
    assert not site.said(EvictReplica)
    assert [command.key for command in site.said(RunAttempt)] == [key("b")]


def test_a_replaced_model_is_fetched_and_loaded_anew(site: AgentSite) -> None:
    site.warm()
    site.models["m"] = model("m", version="1")
    site.assign(attempt("a"))
    assert [command.model.weights_digest for command in site.said(FetchWeights)] == ["sha256:" + "1" * 64]
    assert [command.model_id for command in site.said(EvictReplica)] == ["m"]
    site.evicted("m")
    site.fetched()
    site.loaded()
    assert [command.model.weights_digest for command in site.said(RunAttempt)] == ["sha256:" + "1" * 64]


def test_weights_of_another_digest_than_asked_for_fail_the_attempt(site: AgentSite) -> None:
    site.assign(attempt("a"))
    site.models["m"] = model("m", version="1")
    site.fetched()
    failure = site.end_of("a").failure
    assert failure is not None
    assert failure.kind is FailureKind.BAD_WEIGHTS


def test_what_the_runtime_says_of_unknown_attempts_changes_nothing(site: AgentSite) -> None:
    before = site.machine.snapshot()
    site.runs("ghost")
    site.errs("ghost", FailureKind.INTERNAL)
    site.halts("ghost")
    site.finishes("ghost")
    site.load_failed(FailureKind.LOAD_FAILED, "ghost")
    site.fetch_failed(FailureKind.FETCH_FAILED, "ghost")
    site.evicted("ghost")
    assert site.step.notices == ()
    assert site.machine.snapshot() == before


def test_a_meter_that_says_more_than_the_slot_has_is_not_believed(site: AgentSite) -> None:
    site.models["m"] = model("m", 20)
    site.assign(attempt("a"))
    site.fetched()
    site.models["m"] = model("m", 70)
    site.loaded()
    assert site.machine.state.slots[slot()].used_bytes == 24 * GB


def test_an_acknowledged_attempt_that_is_still_listed_is_not_run_again(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a"))
    site.finishes("a")
    site.assign(attempt("a"), acked_event_seq=EventSeq(site.next_seq - 1))
    site.assign(attempt("a"), full=True)
    assert not site.outbox
    assert not site.said(RunAttempt)
    assert site.end_of("a").state is AttemptState.SUCCEEDED
