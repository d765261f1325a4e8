"""Nobody leaves for a job that comes too late all the same, and one that comes too late keeps nobody who does not from a slot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli.reasons import advice, meaning
from atoll.model.ids import SiteId
from atoll.model.job import Job, JobSpec, JobState
from atoll.model.placement import Reason
from atoll.model.quote import Quote, Verdict
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.outputs import PublishJob
from orchestrator.core.placement.policy import ALL_TERMS, Policy, Rule
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, model, pool, site, spec

# Of 80 GB: two of these do not fit beside each other. A load of one from disk takes some 20 s.
_LARGE = 50


def _full(*, gpus: int = 1, policy: Policy | None = None) -> Fleet:
    """Every slot holds a model that somebody may want."""
    fleet = Fleet(site("a", pool("p", gpus=gpus)), models=(model("m", _LARGE), model("n", _LARGE)), policy=policy or Policy())
    fleet.agents[SiteId("a")].disk = {"m", "n"}
    for gpu in range(gpus):
        fleet.warm("a", "p-0", gpu, "m", _LARGE)
    fleet.report("a")
    return fleet


def _submit(fleet: Fleet, wanted: JobSpec) -> Job:
    before = set(fleet.jobs)
    fleet.submit(wanted)
    (found,) = (job for job_id, job in fleet.jobs.items() if job_id not in before)
    fleet.now_us += SECOND // 10  # nothing is held back any more to be placed together with others
    fleet.happen(events.TimerFired())
    return fleet.job(found.job_id)


def _reasons(job: Job) -> list[str]:
    assert job.deferral is not None
    return [one.reason.value for one in job.deferral.rejections]


def _takes_us(fleet: Fleet) -> int:
    """What a load of n and a job of it take."""
    quote = fleet.machine.quote_job(spec("n"), fleet.now_us)
    assert isinstance(quote, Quote) and quote.verdict is Verdict.NOW and quote.evicted
    return quote.predicted_us


@pytest.mark.parametrize("limit", ["deadline_ms", "start_timeout_ms"])
def test_nobody_leaves_for_a_job_that_is_over_before_it_is_done_or_begins(limit: str) -> None:
    fleet = _full()
    short_ms, long_ms = _takes_us(fleet) // 2_000, _takes_us(fleet) // 1_000 + 60_000
    late = _submit(fleet, spec("n", **{limit: short_ms}))
    assert late.state is JobState.QUEUED and _reasons(late) == ["eviction_in_vain"]
    fleet.wait(6, reporting=("a",))
    assert fleet.job(late.job_id).state is JobState.QUEUED, "looked at again, and as vain as before"
    assert restore(fleet.machine.snapshot(), fleet.policy, GPUS).snapshot() == fleet.machine.snapshot()
    other = _submit(fleet, spec("m"))
    assert other.state is JobState.PLACED and not other.attempts[0].cold, "it is as warm as it was"
    fleet = _full()
    placed = _submit(fleet, spec("n", **{limit: long_ms}))
    assert placed.state is JobState.PLACED and placed.attempts[0].explanation is not None
    assert [gone.model_id for gone in placed.attempts[0].explanation.evicted] == ["m"]


def test_a_quote_says_how_much_later_would_do_and_it_does() -> None:
    fleet = _full()
    short_ms = _takes_us(fleet) // 2_000
    quote = fleet.machine.quote_job(spec("n", deadline_ms=short_ms), fleet.now_us)
    assert isinstance(quote, Quote) and quote.verdict is Verdict.IMPOSSIBLE and quote.short_us > 0
    assert [(one.reason, one.pools) for one in quote.rejections] == [(Reason.EVICTION_IN_VAIN, 1)]
    assert "later" in advice("eviction_in_vain", quote) and "too late" in meaning("eviction_in_vain")
    enough = fleet.machine.quote_job(spec("n", deadline_ms=short_ms + quote.short_us // 1_000 + 1), fleet.now_us)
    assert isinstance(enough, Quote) and enough.verdict is Verdict.NOW and enough.short_us == 0
    placed = _submit(fleet, spec("n", deadline_ms=short_ms + 1))
    (place,) = fleet.machine.places(placed.job_id, placed.spec, SiteId("a"), fleet.now_us)  # type: ignore[misc]  # a refusal has no length
    assert place.reason is Reason.EVICTION_IN_VAIN


def test_where_nobody_has_to_leave_a_late_job_may_try() -> None:
    fleet = _full(gpus=2)
    fleet.agents[SiteId("a")].warm.pop(("p-0", 1))
    fleet.report("a")
    job = _submit(fleet, spec("n", deadline_ms=1_000))
    assert job.state is JobState.PLACED and job.attempts[0].explanation is not None and not job.attempts[0].explanation.evicted


@pytest.mark.parametrize(
    "policy", [Policy(rule=rule) for rule in Rule] + [Policy(terms=ALL_TERMS - {"deadline"})], ids=lambda one: str(one.rule)
)
def test_no_policy_evicts_in_vain(policy: Policy) -> None:
    fleet = _full(policy=policy)
    short_ms = _takes_us(fleet) // 2_000
    assert _submit(fleet, spec("n", deadline_ms=short_ms)).state is JobState.QUEUED


def test_who_comes_too_late_keeps_nobody_behind_it_waiting() -> None:
    """All are of one class; the first are in time nowhere. The next of them that has the time takes the slot."""
    fleet = _full(gpus=2)
    short_ms = _takes_us(fleet) // 2_000
    late = _submit(fleet, spec("n", deadline_ms=short_ms, prompt="late"))
    also_late = _submit(fleet, spec("n", deadline_ms=short_ms, prompt="also late"))
    unhurried = _submit(fleet, spec("n", prompt="unhurried"))
    attempts = [attempt for job in (late, also_late) for attempt in fleet.job(job.job_id).attempts]
    placed = fleet.job(unhurried.job_id).attempts
    assert placed and placed[0].cold and not any(attempt.cold for attempt in attempts), (
        "they may stand behind it, since nobody leaves for them"
    )
    assert all(attempt.predicted_us > placed[0].predicted_us for attempt in attempts)
    assert restore(fleet.machine.snapshot(), fleet.policy, GPUS).snapshot() == fleet.machine.snapshot()
    fleet.now_us += short_ms * 1_000 + SECOND
    fleet.wait(1, reporting=("a",))
    assert fleet.job(late.job_id).state is JobState.EXPIRED


def test_a_slot_that_comes_free_goes_to_who_has_the_time() -> None:
    """The first of a class has less time left than its work takes; the slot that it waited for goes to the one behind it."""
    fleet = _full(policy=Policy(silent_after_ms=10**9))
    busy = _submit(fleet, spec("m", prompt="busy"))
    behind = _submit(fleet, spec("m", prompt="behind"))
    run_us = busy.attempts[0].predicted_us
    late = _submit(fleet, spec("m", prompt="late", deadline_ms=run_us * 5 // 2_000))
    waits = _submit(fleet, spec("m", prompt="waits"))
    assert [fleet.job(job.job_id).state for job in (late, waits)] == [JobState.QUEUED, JobState.QUEUED]
    fleet.end_attempt("a", busy.attempts[0].key, after_us=2 * run_us)
    assert fleet.job(behind.job_id).state in {JobState.PLACED, JobState.RUNNING}
    assert [fleet.job(job.job_id).state for job in (late, waits)] == [JobState.QUEUED, JobState.PLACED]


def test_the_oldest_has_the_slot_that_is_due_to_it_although_it_comes_too_late() -> None:
    """As above, but by the policy each slot is due to who has waited for a second: a try is all that it has left. It is placed as what it
    is, and is told of no turn that passed on."""
    fleet = _full(policy=Policy(silent_after_ms=10**9, ageing_ms=1_000, aged_every=1))
    busy = _submit(fleet, spec("m", prompt="busy"))
    _submit(fleet, spec("m", prompt="behind"))
    run_us = busy.attempts[0].predicted_us
    late = _submit(fleet, spec("m", prompt="late", deadline_ms=run_us * 5 // 2_000))
    waits = _submit(fleet, spec("m", prompt="waits"))
    begun = len(fleet.steps)
    fleet.end_attempt("a", busy.attempts[0].key, after_us=2 * run_us)
    assert [fleet.job(job.job_id).state for job in (late, waits)] == [JobState.PLACED, JobState.QUEUED]
    (attempt,) = fleet.job(late.job_id).attempts
    assert attempt.explanation is not None
    assert attempt.explanation.chosen.terms_us[attempt.explanation.term_names.index("deadline")] > 0, "it is late there"
    shown = [command.job for step in fleet.steps[begun:] for command in step.commands if isinstance(command, PublishJob)]
    assert [job.state for job in shown if job.job_id == late.job_id] == [JobState.PLACED]


def test_the_first_goes_first_where_all_are_late_or_none_is() -> None:
    for deadline_ms in (1_000, 3_600_000):
        fleet = _full()
        job = _submit(fleet, spec("m", prompt="one", deadline_ms=deadline_ms))
        assert job.state is JobState.PLACED
        second = _submit(fleet, spec("m", prompt="two", deadline_ms=deadline_ms))
        third = _submit(fleet, replace(spec("m", prompt="three"), deadline_ms=deadline_ms))
        assert [fleet.job(one.job_id).state for one in (second, third)] == [JobState.PLACED, JobState.QUEUED]
