"""Preemption: what pays, what must not be stopped, and who gets the slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import AttemptKey, SiteId, TenantId
from atoll.model.job import Job, JobState, Priority
from atoll.model.report import AttemptProgress
from atoll.model.shape import Shape
from orchestrator.core import events
from orchestrator.core.outputs import AttemptPreempted
from orchestrator.core.placement.nearness import Arrival
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import Source
from orchestrator.core.preemption import Rules, Waiter, Work, best_of, worth_of
from tests.unit.fleet_of_machines import BATCH, SECOND, URGENT, Fleet, model, pool, site, spec

RULES = Rules(times_max=2, margin_milli=250, gain_min_us=2 * SECOND, tail_milli=100)
WAITER = Waiter(rank=0, weight_milli=5_000, wait_us=60 * SECOND, hold_us=5 * SECOND)
WORK = Work(rank=2, weight_milli=200, exec_us=100 * SECOND, remaining_us=60 * SECOND, lost_us=40 * SECOND, stop_us=SECOND, preempted=0)


def test_by_hand() -> None:
    """59 s sooner at 5 a second, against 45 s (40 again, 5 later) at 0.2."""
    assert worth_of(WAITER, [WORK], RULES) == 59 * SECOND * 5_000 - 45 * SECOND * 200


def test_loading_again_by_hand() -> None:
    """As above, and 20 s until the model is back; on four GPUs four times the work and four times the loading."""
    again = replace(WORK, reload_us=20 * SECOND)
    assert worth_of(WAITER, [again], RULES) == 59 * SECOND * 5_000 - 65 * SECOND * 200
    assert worth_of(WAITER, [replace(again, gpus=4)], RULES) == 59 * SECOND * 5_000 - (4 * 60 + 5) * SECOND * 200


@pytest.mark.parametrize(
    ("source", "there_s", "fetch_s", "won_s", "taken_s"),
    [
        (Source.FETCHING, 20, 0, 40, 24),  # a second until it stops, then idle for 19: the 19 and 5 are taken from the other
        (Source.ORIGIN, 0, 20, 39, 25),  # it begins to come when the slot is free
        (Source.SITE_FETCHING, 20, 10, 30, 34),
    ],
)
def test_weights_that_come_by_hand(source: Source, there_s: int, fetch_s: int, won_s: int, taken_s: int) -> None:
    """Without stopping anybody it would begin in a minute: here at the end of the work, or elsewhere."""
    waiter = replace(WAITER, arrives=Arrival(source, there_s * SECOND, fetch_s * SECOND))
    assert worth_of(waiter, [WORK], RULES) == won_s * SECOND * 5_000 - (40 + taken_s) * SECOND * 200
    assert worth_of(replace(waiter, arrives=Arrival(source, 59 * SECOND, fetch_s * SECOND)), [WORK], RULES) is None, "a second at most"


@pytest.mark.parametrize(
    ("waiter", "work", "why"),
    [
        ({}, {"rank": 0}, "equal priority"),
        ({"rank": 2}, {"rank": 1}, "a higher priority"),
        ({}, {"preempted": 2}, "as often as it may be"),
        ({}, {"remaining_us": 9 * SECOND}, "its last tenth"),
        ({"wait_us": 2 * SECOND}, {}, "a second is not worth it"),
        ({"weight_milli": 100}, {"weight_milli": 200}, "more is lost than won"),
        ({"weight_milli": 250}, {"reload_us": 20 * SECOND}, "more is lost than won, with the load"),
        ({"weight_milli": 1_000, "wait_us": 51 * SECOND, "hold_us": 5 * SECOND}, {"weight_milli": 1_000}, "within the margin"),
    ],
)
def test_what_is_not_stopped(waiter: dict[str, int], work: dict[str, int], why: str) -> None:
    assert worth_of(replace(WAITER, **waiter), [replace(WORK, **work)], RULES) is None, why  # type: ignore[arg-type]  # figures only


def test_all_attempts_of_a_slot_must_be_lower_and_all_are_paid_for() -> None:
    behind = replace(WORK, lost_us=0, remaining_us=100 * SECOND, stop_us=0)
    both = worth_of(WAITER, [WORK, behind], RULES)
    alone = worth_of(WAITER, [WORK], RULES)
    assert both is not None and alone is not None and both == alone - 5 * SECOND * 200
    assert worth_of(WAITER, [WORK, replace(behind, rank=0)], RULES) is None


def test_the_slot_of_most_worth_is_chosen() -> None:
    fresh, old = replace(WORK, lost_us=SECOND), replace(WORK, lost_us=80 * SECOND)
    assert best_of([worth_of(WAITER, works, RULES) for works in ([old], [fresh], [fresh])]) == 1
    assert best_of([worth_of(WAITER, [replace(old, rank=0)], RULES)]) is None
    assert best_of([]) is None


_WORK = st.builds(
    Work,
    rank=st.integers(0, 2), weight_milli=st.integers(1, 10_000), exec_us=st.integers(1, 10**9), remaining_us=st.integers(0, 10**9),
    lost_us=st.integers(0, 10**9), stop_us=st.integers(0, 10**8), preempted=st.integers(0, 3), reload_us=st.integers(0, 10**9),
)  # fmt: skip
_ARRIVAL = st.builds(Arrival, st.sampled_from(Source), st.integers(0, 10**10), st.integers(0, 10**10))
_WAITER = st.builds(
    Waiter, rank=st.integers(0, 2), weight_milli=st.integers(1, 10_000), wait_us=st.integers(0, 10**10), hold_us=st.integers(0, 10**9),
    arrives=_ARRIVAL,
)  # fmt: skip


@given(_WAITER, st.lists(st.lists(_WORK, min_size=1, max_size=3), max_size=6))
def test_whoever_is_stopped_is_lower_and_more_is_won_than_lost(waiter: Waiter, slots: list[list[Work]]) -> None:
    place = best_of([worth_of(waiter, works, RULES) for works in slots])
    if place is None:
        return
    without_us = min(waiter.wait_us, waiter.begins_us(sum(work.remaining_us for work in slots[place])))
    won = (without_us - waiter.begins_us(0)) * waiter.weight_milli
    lost = sum((work.lost_us + work.reload_us + waiter.hold_us) * work.weight_milli for work in slots[place])
    assert won * 4 > lost * 5
    for work in slots[place]:
        assert work.rank > waiter.rank and work.preempted < 2 and work.remaining_us * 10 >= work.exec_us


@given(_WAITER, st.lists(_WORK, min_size=1, max_size=2), st.integers(1, 10**9))
def test_waiting_longer_or_losing_less_never_makes_it_pay_less(waiter: Waiter, works: list[Work], by_us: int) -> None:
    worth = worth_of(waiter, works, RULES)
    if worth is None:
        return
    longer = worth_of(replace(waiter, wait_us=waiter.wait_us + by_us), works, RULES)
    cheaper = worth_of(waiter, [replace(work, lost_us=max(work.lost_us - by_us, 0)) for work in works], RULES)
    nearer = worth_of(waiter, [replace(work, reload_us=max(work.reload_us - by_us, 0)) for work in works], RULES)
    assert nearer is not None and nearer >= worth
    assert longer is not None and longer >= worth
    assert cheaper is not None and cheaper >= worth


# --- with the core ------------------------------------------------------------------------------------------------------------

LONG = Shape(width=1024, height=1024, steps=1_000)


def _full(gpus: int = 2, jobs: int | None = None, policy: Policy | None = None, tenant: str = "t") -> Fleet:
    """A fleet full of long batch work of model m, all of which has begun."""
    fleet = Fleet(site("a", pool("p", gpus=gpus)), models=(model("m"), model("x", 5)), policy=policy)
    for gpu in range(gpus):
        fleet.warm("a", "p-0", gpu, "m")
    fleet.agents[SiteId("a")].disk = {"m", "x"}
    fleet.report("a")
    for number in range(2 * gpus if jobs is None else jobs):
        fleet.submit(spec(prompt=f"batch {number}", priority=BATCH, shape=LONG, tenant=TenantId(tenant)))
    for key in _executing(fleet):
        fleet.running("a", key, steps=100)
    return fleet


def _executing(fleet: Fleet) -> list[AttemptKey]:
    node = fleet.machine.context.columns.columns[0].pool.nodes[0]
    return [slot.attempts[0] for slot in node.slots if slot.attempts]


def _stopping(fleet: Fleet) -> list[AttemptKey]:
    return [key for key, told in fleet.agents[SiteId("a")].attempts.items() if told.stop]


def _of(fleet: Fleet, prompt: str) -> Job:
    (job,) = [job for job in fleet.jobs.values() if job.spec.prompt == prompt]
    return job


def test_an_urgent_job_of_another_model_gets_a_slot_and_the_batch_job_ends_later_once() -> None:
    fleet = _full()
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    stopping = _stopping(fleet)
    assert len(stopping) == 2, "the one that executes and the one behind it, of one slot"
    assert _of(fleet, "urgent").state is JobState.QUEUED, "the slot is not free until the site says so"
    preempted = [decision for decision in fleet.steps[-1].decisions if isinstance(decision, AttemptPreempted)]
    assert {decision.key for decision in preempted} == set(stopping)

    # Others come meanwhile, the same model as runs there among them: the slot is not theirs.
    fleet.submit(spec(prompt="late batch", priority=BATCH), spec(prompt="normal"))
    for key in stopping:
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    urgent = _of(fleet, "urgent")
    assert urgent.state is JobState.PLACED
    victim = next(fleet.jobs[key.job_id] for key in stopping if fleet.jobs[key.job_id].attempts[0].steps_done)
    assert victim.state is JobState.QUEUED
    assert victim.attempts[0].state is AttemptState.STOPPED
    failure = victim.attempts[0].failure
    assert failure is not None and failure.kind is FailureKind.PREEMPTED
    assert failure.message == f"made room for urgent job {urgent.job_id}, at the cost of 13.8s of work to do again"

    fleet.warm("a", "p-0", 0, "x", 5)
    fleet.warm("a", "p-0", 1, "x", 5)
    fleet.end_attempt("a", urgent.attempts[0].key)
    fleet.report("a")
    for _ in range(20):
        for key in _executing(fleet):
            fleet.end_attempt("a", key)
        fleet.report("a", after_us=SECOND)
    assert all(job.state is JobState.SUCCEEDED for job in fleet.jobs.values())
    victim = fleet.jobs[victim.job_id]
    assert [attempt.state for attempt in victim.attempts] == [AttemptState.STOPPED, AttemptState.SUCCEEDED]
    assert not fleet.machine.context.bound.by_pool and not fleet.machine.context.bound.giving_way


def test_an_urgent_job_bound_behind_batch_work_of_its_model_goes_at_the_next_step() -> None:
    fleet = _full(gpus=1, jobs=1)
    fleet.submit(spec(prompt="urgent", priority=URGENT))
    assert _of(fleet, "urgent").state is JobState.PLACED, "behind it in the same slot"
    (stopping,) = _stopping(fleet)
    assert fleet.jobs[stopping.job_id].spec.priority is BATCH
    told = _of(fleet, "urgent").attempts[0].explanation
    assert told is not None and [(one.job_id, one.ordinal) for one in told.stopped] == [(stopping.job_id, stopping.ordinal)]
    fleet.end_attempt("a", stopping, AttemptState.STOPPED)
    assert _executing(fleet) == [_of(fleet, "urgent").attempts[0].key]
    assert _of(fleet, "batch 0").state is JobState.PLACED, "and behind it now"


def test_what_was_stopped_keeps_its_place_in_the_order_of_acceptance() -> None:
    fleet = _full(gpus=1)
    fleet.submit(spec(prompt="batch last", priority=BATCH, shape=LONG))
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    queue = fleet.machine.context.queue
    waiting = sorted((queue.ahead_of(job_id), job.spec.prompt) for job_id, job in fleet.jobs.items() if job_id in queue)
    assert [prompt for _, prompt in waiting] == ["batch 0", "batch 1", "batch last"]


def test_a_job_is_preempted_twice_at_most_and_spends_no_retry() -> None:
    fleet = _full(gpus=1, jobs=1)
    for round_number in range(4):
        fleet.submit(spec("x", prompt=f"urgent {round_number}", priority=URGENT))
        for key in _stopping(fleet):
            fleet.end_attempt("a", key, AttemptState.STOPPED)
        if _of(fleet, f"urgent {round_number}").state is JobState.QUEUED:
            break
        fleet.end_attempt("a", _of(fleet, f"urgent {round_number}").attempts[0].key)
        for key in _executing(fleet):
            fleet.running("a", key, steps=100)
    batch = _of(fleet, "batch 0")
    kinds = [attempt.failure.kind for attempt in batch.attempts if attempt.failure is not None]
    assert kinds == [FailureKind.PREEMPTED] * 2
    assert batch.state is JobState.RUNNING, "the third time it is left alone"
    assert round_number == 2


@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.NORMAL])
def test_nothing_is_gives_way_to_an_equal_or_lower_priority(priority: Priority) -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m"), model("x", 5)))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(*(spec(prompt=f"{number}", shape=LONG) for number in range(2)))
    for key in _executing(fleet):
        fleet.running("a", key, steps=100)
    fleet.submit(spec("x", prompt="waits", priority=priority))
    fleet.wait(5, reporting=("a",))
    assert _stopping(fleet) == []


@pytest.mark.parametrize("jobs", [1, 2], ids=["alone", "with another behind it"])
def test_nothing_is_stopped_in_its_last_tenth(jobs: int) -> None:
    fleet = _full(gpus=1, jobs=jobs)
    (key,) = _executing(fleet)
    fleet.running("a", key, steps=950)
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    assert _stopping(fleet) == []


@pytest.mark.parametrize(
    ("head", "behind", "stops"),
    [
        (AttemptState.FETCHING, AttemptState.LEASED, True),
        (AttemptState.RUNNING, AttemptState.FETCHING, True),
        (AttemptState.RUNNING, AttemptState.LOADING, True),
        (AttemptState.LOADING, AttemptState.LEASED, False),
        (AttemptState.UPLOADING, AttemptState.LEASED, False),
    ],
)
def test_a_load_is_not_stopped_for_it_goes_on_and_who_waits_behind_is_no_obstacle(
    head: AttemptState, behind: AttemptState, stops: bool
) -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m"), model("x", 5)))
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(*(spec(prompt=f"batch {number}", priority=BATCH, shape=LONG) for number in range(2)))
    states = zip(fleet.agents[SiteId("a")].attempts, (head, behind), strict=True)
    fleet.report("a", progress=tuple(AttemptProgress(key=key, state=state, steps_done=0) for key, state in states))
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    assert bool(_stopping(fleet)) == stops


def test_time_that_was_executed_is_lost_although_no_step_was_told() -> None:
    """Near its end by the clock, a normal job is not stopped for an urgent one that wins little by it; just begun it is."""
    for seconds, stops in ((1, True), (80, False)):
        fleet = _full(gpus=1, jobs=1)
        (key,) = _executing(fleet)
        live = fleet.machine.context.state.sites[SiteId("a")].attempts[key]
        assert live.exec_us > 100 * SECOND
        fleet.running("a", key, steps=0)
        fleet.wait(seconds, reporting=("a",))
        cheap = {Priority.URGENT: 300, Priority.NORMAL: 250, Priority.BATCH: 200}
        fleet.machine.context.policy.priority_weight_milli.update(cheap)
        fleet.submit(spec("x", prompt="urgent", priority=URGENT))
        assert bool(_stopping(fleet)) == stops, seconds


def test_a_burst_of_urgent_jobs_empties_as_many_slots_as_it_needs_and_no_more() -> None:
    fleet = _full(gpus=6)
    half = replace(LONG, steps=500)
    fleet.submit(*(spec("x", prompt=f"urgent {number}", priority=URGENT, shape=half) for number in range(3)))
    slots = {attempt.slot for attempt in fleet.agents[SiteId("a")].attempts.values() if attempt.stop}
    assert len(slots) == 3
    fleet.wait(10, reporting=("a",))
    slots = {attempt.slot for attempt in fleet.agents[SiteId("a")].attempts.values() if attempt.stop}
    assert len(slots) == 3, "those who wait for a slot that is being emptied are not served twice"
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert all(_of(fleet, f"urgent {number}").state is JobState.PLACED for number in range(3))


def test_a_slot_emptied_for_a_job_that_was_cancelled_is_used_by_others() -> None:
    fleet = _full(gpus=1)
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    urgent = _of(fleet, "urgent")
    fleet.ask(events.JobCancelRequested, tenant=TenantId("t"), job_id=urgent.job_id, reason="r")
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert _of(fleet, "batch 0").state is JobState.PLACED
    assert not fleet.machine.context.bound.giving_way


def test_the_slot_goes_to_whom_it_was_emptied_for_and_not_to_whose_turn_is_earlier() -> None:
    fleet = _full(gpus=2, jobs=0)
    light, heavy = TenantId("light"), TenantId("heavy")
    fleet.submit(spec(prompt="batch 0", priority=BATCH, shape=LONG, tenant=light))
    fleet.submit(spec(prompt="batch 1", priority=BATCH, shape=replace(LONG, steps=700), tenant=heavy))
    begun, nearly = (_of(fleet, prompt).attempts[0].key for prompt in ("batch 0", "batch 1"))
    fleet.running("a", begun, steps=100)
    fleet.running("a", nearly, steps=640)
    fleet.submit(spec("x", prompt="first", priority=URGENT, tenant=heavy))
    assert _stopping(fleet) == [begun]
    fleet.submit(spec("x", prompt="second", priority=URGENT, tenant=light, shape=replace(LONG, steps=900)))
    assert _stopping(fleet) == [begun], "the other is in its last tenth"
    queue = fleet.machine.context.queue
    assert [queue.ahead_of(_of(fleet, prompt).job_id) for prompt in ("second", "first")] == [0, 1], "its tenant has had less"
    fleet.end_attempt("a", begun, AttemptState.STOPPED)
    assert _of(fleet, "first").attempts[0].key in _executing(fleet)


def test_a_result_that_came_before_the_stop_counts() -> None:
    fleet = _full(gpus=1, jobs=1)
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    (key,) = _stopping(fleet)
    fleet.end_attempt("a", key)
    assert _of(fleet, "batch 0").state is JobState.SUCCEEDED
    assert _of(fleet, "urgent").state is JobState.PLACED


def test_a_policy_may_say_never() -> None:
    fleet = _full(policy=Policy(preemptions_max=0))
    fleet.submit(spec("x", prompt="urgent", priority=URGENT))
    fleet.wait(5, reporting=("a",))
    assert _stopping(fleet) == []


def test_the_share_of_a_preempted_tenant_is_given_back() -> None:
    fleet = _full(gpus=1, jobs=1, tenant="night")
    shares = fleet.machine.context.queue.shares
    charged_us = shares.tenants[TenantId("night")].virtual_us
    assert charged_us > 0
    fleet.submit(spec("x", prompt="urgent", priority=URGENT, tenant=TenantId("day")))
    for key in _stopping(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert _of(fleet, "batch 0").job_id in fleet.machine.context.queue
    night = shares.tenants[TenantId("night")]
    assert night.virtual_us - night.credit_us == shares.virtual_us, "level with the others, as if it had never run"
