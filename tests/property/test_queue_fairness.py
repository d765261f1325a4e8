"""Shares of any tenants with any weights and jobs, and nobody starves: as properties."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.ids import JobId, ModelId, TenantId
from atoll.model.job import Priority
from orchestrator.core import turns
from orchestrator.core.placement.policy import Policy
from orchestrator.core.queue import Favour, JobClass
from orchestrator.core.ranking import Ranking
from tests.unit.fleet_of_machines import SECOND
from tests.unit.queue_of_jobs import Line

_PRIORITY = st.sampled_from(list(Priority))
_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_QUICK
@given(
    weights=st.lists(st.integers(100, 10_000), min_size=2, max_size=5),
    seconds=st.lists(st.integers(1, 60), min_size=5, max_size=5),
    classes=st.integers(1, 4),
    actual_tenths=st.lists(st.integers(2, 30), min_size=20, max_size=20),
)
def test_shares_of_those_who_wait_stay_within_a_job_of_their_weights(
    weights: list[int], seconds: list[int], classes: int, actual_tenths: list[int]
) -> None:
    names = [f"t{number}" for number in range(len(weights))]
    line = Line(Policy(tenant_weight_milli={TenantId(name): weight for name, weight in zip(names, weights, strict=True)}))
    cost = {name: seconds[number] * SECOND for number, name in enumerate(names)}
    had = dict.fromkeys(names, 0)
    for number in range(40):
        for name in names:
            line.submit(name, f"m{number % classes}")
    largest = 3 * max(cost.values()) * 1_000 // min(weights)
    for number in range(40):
        job_id = line.take(cost.__getitem__)
        assert job_id is not None
        name = line.tenant_of[job_id]
        actual_us = cost[name] * actual_tenths[number % 20] // 10
        line.queue.shares.settle(TenantId(name), cost[name], actual_us)
        had[name] += actual_us
        normal = [had[name] * 1_000 // weight for name, weight in zip(names, weights, strict=True)]
        # What one job of either may cost, as predicted or as it turns out, is all that they are apart.
        assert max(normal) - min(normal) <= 2 * largest


@_QUICK
@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("mxy"), _PRIORITY), min_size=1, max_size=60),
    drops=st.sets(st.integers(1, 60), max_size=20),
)
def test_within_a_tenant_and_priority_the_order_is_that_of_acceptance(jobs: list[tuple[str, str, Priority]], drops: set[int]) -> None:
    line = Line()
    priorities: dict[JobId, Priority] = {}
    for tenant, model, priority in jobs:
        priorities[line.submit(tenant, model, priority)] = priority
    gone = {job_id for job_id, seq in line.accepted.items() if seq in drops}
    for job_id in gone:
        line.queue.discard(job_id)
    taken = [one for _ in jobs if (one := line.take()) is not None]
    assert set(taken) == set(priorities) - gone
    ranks = [list(Priority).index(priorities[job_id]) for job_id in taken]
    assert ranks == sorted(ranks)
    for tenant in "abc":
        for priority in Priority:
            mine = [line.accepted[job_id] for job_id in taken if line.tenant_of[job_id] == tenant and priorities[job_id] is priority]
            assert mine == sorted(mine)


@_QUICK
@given(
    every=st.integers(1, 9),
    waiting=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("mx"), _PRIORITY), min_size=1, max_size=12),
    arrivals=st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("mxyz")), max_size=3), min_size=120, max_size=120),
)
def test_whoever_has_waited_long_enough_is_offered_a_slot_within_the_bound(
    every: int, waiting: list[tuple[str, str, Priority]], arrivals: list[list[tuple[str, str]]]
) -> None:
    """The k-th oldest of those who have aged has a slot after (k + 1) x aged_every slots came free, whatever arrives meanwhile."""
    line = Line(Policy(ageing_ms=1_000, aged_every=every))
    old = [line.submit(tenant, model, priority) for tenant, model, priority in waiting]
    line.rest_all()
    line.pass_time(2)
    taken: list[JobId | None] = []
    for slot in arrivals:
        for tenant, model in slot:
            line.submit(tenant, model, Priority.URGENT)
        line.rest_all()
        taken.append(line.free_slot())
    for place, job_id in enumerate(old):
        assert taken.index(job_id) < (place + 1) * every


@_QUICK
@given(changes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 50), st.sampled_from(["rise", "offer", "drop", "walk"])), max_size=120))
def test_a_ranking_gives_the_least_key_as_it_is_now(changes: list[tuple[int, int, str]]) -> None:
    keys: dict[int, int] = dict.fromkeys(range(9), 0)
    ranking: Ranking[int] = Ranking(lambda item: (keys[item], item))
    ranked: set[int] = set()
    for item, by, change in changes:
        match change:
            case "rise":
                keys[item] += by
            case "offer":
                keys[item] = by
                ranking.offer(item)
                ranked.add(item)
            case "drop":
                ranking.withdraw(item)
                ranked.discard(item)
            case _:
                assert [found for _, found in ranking.walk()] == sorted(ranked, key=lambda item: (keys[item], item))
        assert ranking.first() == min(ranked, key=lambda item: (keys[item], item), default=None)
        assert len(ranking) == len(ranked)


@_QUICK
@given(st.lists(st.tuples(st.sampled_from(["submit", "take", "cancel", "end"]), st.sampled_from("abcd"), st.integers(0, 99)), max_size=150))
def test_shares_count_those_who_wait_and_run_and_never_fall(actions: list[tuple[str, str, int]]) -> None:
    line = Line()
    running: list[tuple[str, int]] = []
    seen: dict[str, int] = {}
    for action, tenant, number in actions:
        match action:
            case "submit":
                line.submit(tenant, f"m{number % 3}")
            case "take":
                cost = (number + 1) * SECOND
                job_id = line.take(lambda _, cost=cost: cost)  # type: ignore[misc]  # mypy sees no default of a lambda
                if job_id is not None:
                    running.append((line.tenant_of[job_id], cost))
            case "cancel":
                waiting = sorted(job_id for job_id in line.tenant_of if job_id in line.queue)
                if waiting:
                    line.queue.discard(waiting[number % len(waiting)])
            case _:
                if running:
                    name, cost = running.pop(number % len(running))
                    line.queue.shares.settle(TenantId(name), cost, number * SECOND)
        accounts = line.queue.shares.tenants
        for account in accounts.values():
            waits = sum(1 for job_id, name in line.tenant_of.items() if name == account.tenant_id and job_id in line.queue)
            assert (account.queued, account.in_flight) == (waits, sum(1 for name, _ in running if name == account.tenant_id))
            assert account.virtual_us >= seen.get(account.tenant_id, 0)
        seen = {account.tenant_id: account.virtual_us for account in accounts.values() if account.queued or account.in_flight}


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit"] * 4 + ["take", "take", "cancel", "end", "rest", "slot", "model", "hour"]),
        st.integers(0, 5),
        st.integers(0, 99),
    ),
    min_size=20,
    max_size=120,
)


def _key(line: Line, known: JobClass) -> tuple[object, ...]:
    """Where a class stands, looked up job by job."""
    jobs = [(line.queue.shares.tenants[TenantId(line.tenant_of[one])].virtual_us, seq) for one, seq in known.members.items()]
    return (known.favour is not Favour.AGED, min(known.members.values()) if known.favour is Favour.AGED else 0, known.key.rank, min(jobs))


@_QUICK
@given(_STEPS, st.integers(1, 4))
def test_whose_turn_it_is_agrees_with_a_search_through_all_jobs(steps: list[tuple[str, int, int]], entries: int) -> None:
    """With classes of fewer and of more tenants than are entered one by one, jobs that leave from the midst, and any waking."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_ENTRIES_MAX", entries)
        _play(steps)


def _play(steps: list[tuple[str, int, int]]) -> None:
    line = Line(Policy(ageing_ms=60_000, aged_every=3))
    queue = line.queue
    running: list[str] = []
    for action, tenant, number in steps:
        ready = [known for known in queue.classes.values() if queue.is_ready(known)]
        match action:
            case "submit":
                line.submit(f"t{tenant}", f"m{number % 3}", list(Priority)[number % 2])
            case "take":
                job_id = line.take(lambda name: (1 + int(name[1:])) * SECOND)
                running += [] if job_id is None else [line.tenant_of[job_id]]
            case "cancel" if len(queue):
                queue.discard(sorted(job_id for job_id in line.tenant_of if job_id in queue)[number % len(queue)])
            case "end" if running:
                queue.shares.settle(TenantId(running.pop(number % len(running))), SECOND, number * SECOND)
            case "rest" if ready:
                queue.rest(ready[number % len(ready)].key, line.now_us + 10**15, number % 2)
            case "slot":
                pool = number % 2
                there = [known for known in queue.classes.values() if known.resting and known.pool == pool]
                queue.wake_for_slot(pool)
                woken = [known for known in there if not known.resting]
                assert len(woken) == min(len(there), 2)
                usual = [known for known in woken if known.favour is Favour.NONE]
                assert all(_key(line, one) < _key(line, other) for one in usual for other in there if other.resting)
            case "model":
                queue.wake_model(ModelId(f"m{number % 3}"))
            case "hour":
                line.pass_time(number)
            case _:
                pass
        ready = [known for known in queue.classes.values() if queue.is_ready(known)]
        assert queue.first_ready() is min(ready, key=lambda known: _key(line, known), default=None)
        for known in queue.classes.values():
            assert queue.is_ready(known) is not known.resting
