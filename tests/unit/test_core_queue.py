"""The queue: who goes first, who never starves, and what a decision costs."""

from __future__ import annotations

import pytest

from atoll.model.errors import FieldError
from atoll.model.ids import JobId, TenantId
from atoll.model.job import Priority
from orchestrator.core.outflow import Outflow
from orchestrator.core.placement.policy import Policy
from orchestrator.core.queue import NO_POOL
from tests.unit.fleet_of_machines import SECOND
from tests.unit.queue_of_jobs import REFERENCE, Line, calls_of

BATCH, URGENT = Priority.BATCH, Priority.URGENT


def _tenants(line: Line, count: int) -> list[str]:
    taken = [line.take() for _ in range(count)]
    return [line.tenant_of[job_id] for job_id in taken if job_id is not None]


def test_a_tenant_that_floods_the_queue_waits_behind_one_that_does_not() -> None:
    line = Line()
    for _ in range(1_000):
        line.submit("flood")
    assert _tenants(line, 50) == ["flood"] * 50
    for _ in range(3):
        line.submit("small")
    assert _tenants(line, 6).count("small") == 3


def test_twice_the_weight_is_twice_the_jobs() -> None:
    line = Line(Policy(tenant_weight_milli={TenantId("gold"): 2_000}))
    for _ in range(100):
        line.submit("gold")
        line.submit("plain")
    taken = _tenants(line, 90)
    assert abs(taken.count("gold") - 60) <= 1


def test_seconds_count_and_not_jobs() -> None:
    line = Line()
    for _ in range(100):
        line.submit("films")
        line.submit("images")
    costs = {"films": 9 * SECOND, "images": SECOND}
    taken = [line.take(costs.__getitem__) for _ in range(100)]
    assert 8 <= sum(1 for job_id in taken if job_id is not None and line.tenant_of[job_id] == "films") <= 12


def test_a_second_of_a_fast_gpu_and_of_more_gpus_counts_for_more() -> None:
    line = Line()
    one = line.queue.charge(TenantId("a"), SECOND, REFERENCE, 1)
    assert one == SECOND
    assert line.queue.charge(TenantId("a"), SECOND, REFERENCE, 4) == 4 * one


def test_who_was_idle_gets_no_credit_for_the_past() -> None:
    line = Line()
    for _ in range(200):
        line.submit("busy")
    _tenants(line, 100)
    for _ in range(100):
        line.submit("idle")
    taken = _tenants(line, 40)
    assert abs(taken.count("idle") - 20) <= 1


def test_who_used_capacity_for_itself_is_not_held_back_for_ever() -> None:
    """A tenant that had a pool nobody else could use for a day competes again after ten minutes of the others, not after a day."""
    line = Line()
    for _ in range(3):
        line.submit("other", "small")
        line.submit("lone", "big")
    line.take()  # "other" is being served, and stays so
    for _ in range(1_000):
        line.submit("lone", "big")
        line.queue.charge(TenantId("lone"), 100 * SECOND, REFERENCE, 1)
    accounts = line.queue.shares.tenants
    assert accounts[TenantId("lone")].virtual_us - accounts[TenantId("other")].virtual_us <= 700 * SECOND


def test_what_was_charged_too_much_is_given_back_and_too_little_is_added() -> None:
    line = Line()
    for _ in range(40):
        line.submit("a")
        line.submit("b")
    shares = line.queue.shares
    taken = []
    for _ in range(40):
        job_id = line.take()
        assert job_id is not None
        tenant = line.tenant_of[job_id]
        taken.append(tenant)
        # Both are predicted to take a second; b's jobs really take three.
        shares.settle(TenantId(tenant), SECOND, SECOND if tenant == "a" else 3 * SECOND)
    assert abs(taken.count("a") - 30) <= 2


def test_within_a_tenant_and_priority_acceptance_decides_across_classes() -> None:
    line = Line()
    submitted = [line.submit("t", model) for model in ("m", "x", "m", "y", "x", "m")]
    assert [line.take() for _ in submitted] == submitted


def test_priorities_go_before_shares() -> None:
    line = Line()
    for _ in range(50):
        line.submit("t")
    _tenants(line, 40)
    batch = line.submit("fresh", priority=BATCH)
    urgent = line.submit("t", priority=URGENT)
    assert line.take() == urgent
    left = [line.take() for _ in range(11)]
    assert left[-1] == batch


def test_a_batch_job_is_not_starved_by_endless_urgent_work() -> None:
    line = Line(Policy(ageing_ms=60_000, aged_every=4))
    starving = line.submit("t", priority=BATCH)
    line.rest_all()
    for second in range(200):
        line.submit("u", priority=URGENT)
        line.rest_all()
        line.pass_time(1)
        if line.free_slot() == starving:
            assert 58 <= second <= 64, "not before a minute, and then within four slots"
            return
    raise AssertionError("it starved")


def test_an_aged_backlog_leaves_urgent_work_most_of_the_slots() -> None:
    line = Line(Policy(ageing_ms=1_000, aged_every=8))
    for _ in range(500):
        line.submit("night", priority=BATCH)
    line.rest_all()
    line.pass_time(10)
    taken = []
    for _ in range(160):
        line.submit("day", priority=URGENT)
        line.rest_all()
        job_id = line.free_slot()
        assert job_id is not None
        taken.append(line.tenant_of[job_id])
    assert taken.count("night") == 20


def test_an_aged_job_that_is_impossible_takes_nobodys_slot() -> None:
    line = Line(Policy(ageing_ms=1_000, aged_every=2))
    line.submit("t", "impossible", BATCH)
    line.rest_all(NO_POOL)
    line.pass_time(100)
    for _ in range(8):
        line.submit("u", priority=URGENT)
        line.rest_all()
        job_id = line.free_slot()
        assert job_id is not None and line.tenant_of[job_id] == "u"


def test_when_the_first_of_a_class_wait_for_a_better_place_the_next_of_the_fair_order_takes_the_other() -> None:
    line = Line()
    a = [line.submit("a") for _ in range(4)]
    b = [line.submit("b") for _ in range(2)]
    known = line.class_of()
    assert [known.nth(position) for position in range(8)] == [a[0], b[0], a[1], b[1], a[2], a[3], a[3], a[3]]
    line.queue.discard(b[0])
    assert [known.nth(position) for position in range(5)] == [a[0], b[1], a[1], a[2], a[3]]


def test_a_job_that_leaves_and_comes_back_keeps_its_place_and_is_there_once() -> None:
    line = Line()
    jobs = [line.submit("t") for _ in range(3)]
    for _ in range(300):
        line.queue.discard(jobs[1])
        line.queue.add(line.key(), 2, jobs[1], TenantId("t"), SECOND)
    known = line.class_of()
    assert [known.nth(position) for position in range(3)] == jobs
    (lane,) = known.lanes.values()
    assert len(lane.heap) <= 100
    assert [line.take() for _ in range(4)] == [*jobs, None]


def test_the_place_in_the_queue_is_exact_within_a_tenant_and_fair_between_tenants() -> None:
    line = Line()
    jobs = [line.submit("a") for _ in range(10_000)]
    assert [line.queue.ahead_of(jobs[place]) for place in (0, 1, 5_000, 9_999)] == [0, 1, 5_000, 9_999]
    other = [line.submit("b") for _ in range(3)]
    urgent = line.submit("c", priority=URGENT)
    assert line.queue.ahead_of(urgent) == 0
    assert [line.queue.ahead_of(job_id) for job_id in other] == [1, 3, 5], "one urgent, then turns"
    assert line.queue.ahead_of(jobs[9_999]) == 1 + 9_999 + 3


def test_positions_come_true() -> None:
    line = Line(Policy(tenant_weight_milli={TenantId("b"): 3_000}))
    for _ in range(60):
        line.submit("a")
        line.submit("b")
        line.submit("c")
    promised = {job_id: line.queue.ahead_of(job_id) for job_id in line.tenant_of}
    taken = [line.take() for _ in range(180)]
    off = [abs(promised[job_id] - place) for place, job_id in enumerate(taken) if job_id is not None]
    assert max(off[:100]) <= 3, "while all three wait it is right but for a turn"
    assert max(off) <= 30, "that the heavy tenant will have nobody waiting at the end is not foreseen"


def _decisions(jobs: int, tenants: int, models: int) -> float:
    line = Line()
    for number in range(jobs):
        line.submit(f"t{number % tenants}", f"m{number // 3 % models}", list(Priority)[number % 3])
    impossible = line.submit("t0", "impossible", URGENT)
    line.queue.ahead_of(impossible)
    line.queue.rest(line.key("impossible", URGENT), line.now_us + 1, NO_POOL)

    def decide() -> None:
        for _ in range(300):
            line.take()
            line.queue.wake(line.key("impossible", URGENT))
            line.queue.rest(line.key("impossible", URGENT), line.now_us + 1, NO_POOL)
            line.queue.ahead_of(impossible)

    decide()
    return calls_of(decide) / 300


@pytest.mark.parametrize(("tenants", "models"), [(1, 500), (2, 500), (30, 500), (3_000, 2), (3_000, 300)])
def test_a_decision_costs_the_same_however_many_jobs_tenants_and_classes_wait(tenants: int, models: int) -> None:
    small, large = _decisions(300, 2, 5), _decisions(30_000, tenants, models)
    assert large < 2 * small, (small, large)


def test_an_impossible_class_costs_the_same_however_many_jobs_it_has() -> None:
    def cost(jobs: int) -> int:
        line = Line()
        for number in range(jobs):
            line.submit(f"t{number % 100}", "impossible")
        line.rest_all(NO_POOL)

        def look_again() -> None:
            line.queue.wake_due(line.now_us + 10**16)
            assert line.queue.first_ready() is not None
            line.rest_all(NO_POOL)

        look_again()
        return calls_of(look_again)

    assert cost(20_000) == cost(200)


def test_an_idle_fleet_forgets_who_had_what() -> None:
    line = Line()
    for name in "abc":
        line.submit(name)
    while (job_id := line.take()) is not None:
        line.queue.shares.settle(TenantId(line.tenant_of[job_id]), SECOND, SECOND)
    assert line.queue.shares.tenants == {} and line.queue.shares.virtual_us == 0


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(tenant_weight_milli={TenantId("t"): 0}), "tenant_weight_milli.t"),
        (Policy(tenant_weight_milli={TenantId("t"): 10**9}), "tenant_weight_milli.t"),
        (Policy(tenant_weight_milli={TenantId("no name"): 1}), "tenant_weight_milli"),
        (Policy(queued_jobs_per_tenant_max=0), "queued_jobs_per_tenant_max"),
        (Policy(aged_every=0), "aged_every"),
        (Policy(ageing_ms=-1), "ageing_ms"),
        (Policy(preemptions_max=100), "preemptions_max"),
        (Policy(preempt_tail_milli=1_001), "preempt_tail_milli"),
    ],
)
def test_a_policy_out_of_bounds_is_refused_by_field(policy: Policy, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        policy.check()
    assert caught.value.field == field


def test_the_pause_after_a_full_queue_follows_how_fast_jobs_end() -> None:
    def pause(gap_us: int) -> int:
        outflow, now_us = Outflow(), 0
        for _ in range(400):
            now_us += gap_us
            outflow.ended(TenantId("t"), now_us, left=5)
        assert abs(outflow.tenant_pause_ms(TenantId("t"), now_us) - outflow.fleet_pause_ms(now_us)) <= 10
        return outflow.fleet_pause_ms(now_us)

    assert 1_400 <= pause(100_000) <= 1_800, "16 places at ten a second"
    assert pause(1_000) == 500
    assert pause(20 * SECOND) == 60_000
    assert Outflow().fleet_pause_ms(0) == Outflow().tenant_pause_ms(TenantId("t"), 0) > 0


def test_a_stalled_fleet_is_not_told_to_be_fast() -> None:
    outflow = Outflow()
    for number in range(100):
        outflow.ended(TenantId("t"), number * 10_000, left=1)
    assert outflow.fleet_pause_ms(SECOND) == 500
    assert outflow.fleet_pause_ms(300 * SECOND) == 5_000


def test_jobs_are_named_once() -> None:
    line = Line()
    line.submit("a")
    assert JobId("a-1") in line.queue
    assert line.queue.discard(JobId("a-1")) and not line.queue.discard(JobId("a-1"))


# --- the arrival window ---------------------------------------------------------------------------------------------------------


def test_who_just_came_is_held_until_the_window_closes_and_no_longer() -> None:
    line = Line()
    job_id = line.submit("t")
    line.queue.hold(job_id, line.now_us - 1, line.now_us + SECOND)
    assert line.queue.first_ready() is None
    line.queue.wake_due(line.now_us + SECOND)
    assert line.take() == job_id


def test_who_waited_before_the_window_opened_is_not_held_by_one_that_comes_now() -> None:
    line = Line()
    early = line.submit("t")
    line.pass_time(1)
    late = line.submit("t")
    line.queue.hold(late, line.now_us - 1, line.now_us + SECOND)
    assert [line.take(), line.take()] == [early, late], "a slot that is free now goes to the one that waits"


def test_whose_slot_was_made_empty_is_not_held() -> None:
    """A block was kept for a job of this class, and others were stopped for it: it must not be away when the block is empty."""
    line = Line()
    job_id = line.submit("t")
    line.rest_all()
    line.queue.favour(job_id, 0, stopped=True)
    line.queue.hold(job_id, line.now_us - 1, line.now_us + SECOND)
    assert line.take() == job_id


def test_a_slot_of_a_pool_for_which_nobody_waits_is_offered_to_the_first_who_waits_for_another() -> None:
    fleet = Line()
    first = fleet.submit("t", "m")
    fleet.submit("t", "n")
    fleet.rest_all(pool=1)
    assert fleet.free_slot(pool=2) == first


def test_those_who_wait_for_another_pool_go_before_a_lower_priority_that_waits_for_this_one() -> None:
    fleet = Line()
    normal = fleet.submit("t", "m")
    fleet.rest_all(pool=1)
    batch = fleet.submit("u", "m", BATCH)
    fleet.rest_all(pool=2)
    assert fleet.free_slot(pool=2) == normal
    assert fleet.free_slot(pool=2) == batch, "and it once nobody goes before it"


def test_what_is_impossible_is_woken_by_no_slot_of_another_pool() -> None:
    fleet = Line()
    fleet.submit("t", "m")
    fleet.rest_all(pool=NO_POOL)
    assert fleet.free_slot(pool=2) is None
    assert fleet.free_slot(pool=NO_POOL) is not None
