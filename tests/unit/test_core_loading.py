"""A slot that loads is taken until the load should be over: what is quoted and decided while copies come that nobody waits for yet."""

from __future__ import annotations

from atoll.model.attempt import AttemptState, PhaseTimes
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.job import Job, JobSpec, JobState
from atoll.model.learned import Component
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Awaits, Candidate
from atoll.model.quote import Quote, Verdict
from orchestrator.core import events
from orchestrator.core.machine import Machine, restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, adapter, model, pool, site, spec

# 10 GB over a disk of 5 GB/s, and 0.2 s + 0.185 s per GB to build the pipeline.
LOAD_US = 4_050_000
NODE = "p-0"


def one_gpu(**changes: object) -> Fleet:
    """One GPU with the models on its disk."""
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m"), model("n")), **changes)  # type: ignore[arg-type]
    fleet.agents[SiteId("a")].disk |= {"m", "n"}
    fleet.report("a")
    return fleet


def quoted(fleet: Fleet, one: JobSpec | None = None, machine: Machine | None = None) -> Quote:
    found = (machine or fleet.machine).quote_job(one or spec(prompt="asked"), fleet.now_us)
    assert isinstance(found, Quote)
    return found


def term(candidate: Candidate | None, name: str) -> int:
    assert candidate is not None
    return candidate.terms_us[TERM_NAMES.index(name)]


def job_of(fleet: Fleet) -> Job:
    return list(fleet.jobs.values())[-1]


def test_the_quote_of_a_model_that_was_just_pushed_says_how_long_it_still_loads() -> None:
    fleet = one_gpu()
    fleet.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=1)
    fleet.load("a", NODE, 0, "m")
    fleet.report("a", after_us=SECOND)
    loading = quoted(fleet)
    assert (loading.verdict, loading.chosen and loading.chosen.cold) == (Verdict.NOW, False), "it joins the load instead of beginning one"
    assert term(loading.chosen, "queue") == LOAD_US - SECOND
    assert [term(loading.chosen, name) for name in ("fetch", "stage", "init")] == [0, 0, 0]
    assert loading.chosen is not None and loading.chosen.awaits is Awaits.LOAD
    fleet.loaded("a")
    warm = quoted(fleet)
    assert (term(warm.chosen, "queue"), warm.chosen and warm.chosen.awaits) == (0, Awaits.NOTHING)
    assert loading.predicted_us == warm.predicted_us + LOAD_US - SECOND
    assert loading.eta is not None and warm.eta is not None
    assert loading.eta.end_p50_us - loading.at_us > warm.eta.end_p50_us - warm.at_us


def test_a_load_that_takes_longer_than_thought_has_some_time_left_and_not_for_ever() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    left = []
    for _ in range(30):
        fleet.report("a", after_us=SECOND)
        left.append(term(quoted(fleet).chosen, "queue"))
    assert left[:2] == [LOAD_US - SECOND, LOAD_US - 2 * SECOND]
    assert all(SECOND // 3 < one <= 30 * SECOND // 8 for one in left[2:]), left
    assert left[5:] == sorted(left[5:]), "the longer it has taken, the longer it will"
    fleet.loaded("a")
    assert term(quoted(fleet).chosen, "queue") == 0


def test_who_is_placed_when_a_load_should_be_over_and_no_report_came_waits_for_it_all_the_same() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    fleet.wait(4.5)
    fleet.submit(spec())
    (attempt,) = job_of(fleet).attempts
    assert attempt.explanation is not None
    assert SECOND // 3 < term(attempt.explanation.chosen, "queue") < SECOND


def test_jobs_join_a_load_in_flight_and_learning_hears_nothing_of_loading_from_them() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    fleet.report("a", after_us=SECOND)
    fleet.submit(spec(prompt="1"))
    fleet.submit(spec(prompt="2"))
    first, second = [job.attempts[0] for job in fleet.jobs.values()]
    told = [attempt.explanation for attempt in (first, second)]
    assert [(one.chosen.cold, one.chosen.awaits) for one in told if one is not None] == [(False, Awaits.LOAD)] * 2
    assert second.predicted_us - first.predicted_us >= first.predicted_us - LOAD_US, "the second is behind the first"
    fleet.loaded("a")
    times = PhaseTimes(waiting_us=40 * SECOND, run_us=SECOND)
    fleet.running("a", first.key)
    fleet.end_attempt("a", first.key, times=times)
    observations = {name: one.observations for name, one in fleet.machine.context.book.components.items()}
    assert (observations[Component.FETCH], observations[Component.LOAD], observations[Component.EXECUTION]) == (0, 0, 1)


def test_another_models_job_waits_for_the_slot_and_has_it_when_the_load_is_over() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    offered = quoted(fleet, spec("n"))
    assert offered.verdict is Verdict.WAITS and term(offered.chosen, "queue") == LOAD_US
    fleet.submit(spec("n"))
    assert job_of(fleet).state is JobState.QUEUED
    fleet.report("a", after_us=SECOND)
    assert job_of(fleet).state is JobState.QUEUED
    fleet.loaded("a")
    assert job_of(fleet).state is JobState.PLACED


def test_a_load_goes_on_when_the_job_that_it_was_for_is_cancelled() -> None:
    fleet = one_gpu()
    fleet.submit(spec())
    (attempt,) = job_of(fleet).attempts
    fleet.load("a", NODE, 0, "m")
    fleet.ask(events.JobCancelRequested, tenant=spec().tenant, job_id=attempt.key.job_id, reason="")
    fleet.end_attempt("a", attempt.key, AttemptState.STOPPED, after_us=SECOND)
    left_us = LOAD_US - (fleet.now_us - fleet.agents[SiteId("a")].loading[(NODE, 0)][1])
    offered = quoted(fleet)
    assert (offered.verdict, term(offered.chosen, "queue")) == (Verdict.NOW, left_us)
    assert quoted(fleet, spec("n")).verdict is Verdict.WAITS


def test_a_gang_waits_for_its_replica_that_still_loads() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m"),))
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.warm_gang("a", NODE, 0, 2, "m")
    fleet.agents[SiteId("a")].loading = {(NODE, gpu): ("m", fleet.now_us) for gpu in (0, 1)}
    fleet.report("a", after_us=0)
    one = spec(gang_size=2)
    offered = quoted(fleet, one)
    assert offered.verdict is Verdict.WAITS and offered.chosen is not None
    assert (offered.chosen.cold, offered.chosen.awaits, term(offered.chosen, "queue")) == (False, Awaits.LOAD, LOAD_US)
    fleet.submit(one)
    assert job_of(fleet).state is JobState.QUEUED
    fleet.loaded("a")
    assert job_of(fleet).state is JobState.PLACED
    assert job_of(fleet).attempts[0].predicted_us < offered.predicted_us


def test_a_job_with_an_adapter_waits_for_the_load_and_then_for_its_adapter() -> None:
    fleet = one_gpu()
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("s", "m"),))
    one = spec(adapters=(AdapterUse(adapter_id=AdapterId("s")),))
    fleet.load("a", NODE, 0, "m")
    offered = quoted(fleet, one)
    assert offered.verdict is Verdict.NOW and offered.chosen is not None and not offered.chosen.cold
    assert term(offered.chosen, "queue") == LOAD_US and term(offered.chosen, "adapt") > 0


def test_a_restored_core_and_the_next_leader_know_what_is_left_of_a_load() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    fleet.report("a", after_us=SECOND)
    before = quoted(fleet)
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert quoted(fleet, machine=again) == before
    # A new leader knows nothing of sites until they speak; the agent says for how long it has loaded.
    later = one_gpu()
    later.now_us = fleet.now_us
    later.agents[SiteId("a")].loading = fleet.agents[SiteId("a")].loading
    later.warm("a", NODE, 0, "m")
    later.report("a", full=True, after_us=0)
    assert term(quoted(later).chosen, "queue") == term(before.chosen, "queue")


def test_an_agent_that_does_not_say_since_when_it_loads_is_believed_since_it_was_heard() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    for seconds in (1, 2):
        fleet.agents[SiteId("a")].loading[(NODE, 0)] = ("m", fleet.now_us + SECOND)  # it says: for no time at all
        fleet.report("a", after_us=SECOND)
        assert term(quoted(fleet).chosen, "queue") == LOAD_US - seconds * SECOND


def test_a_loading_slot_takes_no_second_copy_ahead_of_demand() -> None:
    fleet = one_gpu()
    fleet.load("a", NODE, 0, "m")
    refused = fleet.ask(events.ModelPushed, actor="t", reason="", model_id="n", sites=1, warm=1)
    assert not [one for one in fleet.agents[SiteId("a")].wanted.values() if one.model_id == ModelId("n")], refused


def test_what_was_learned_of_loading_counts_for_loads_in_flight() -> None:
    fleet = one_gpu()
    for number in range(12):
        fleet.submit(spec(prompt=str(number)))
        (attempt,) = job_of(fleet).attempts
        assert attempt.cold
        fleet.running("a", attempt.key)
        fleet.end_attempt("a", attempt.key, times=PhaseTimes(load_us=2 * LOAD_US, run_us=SECOND))
        fleet.wait(6, reporting=("a",))  # the report does not know of the replica: it was evicted by hand
    fleet.load("a", NODE, 0, "m")
    assert term(quoted(fleet).chosen, "queue") > 1.5 * LOAD_US
