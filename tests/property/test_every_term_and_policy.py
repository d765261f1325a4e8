"""One suite over every registered term and every registered policy: what must hold of each whatever its figures are.

A new term or policy is covered by being registered. What does not hold of one is data here, with the reason why it need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.model.ids import JobId, SiteId
from atoll.model.job import JobSpec, Priority
from atoll.model.placement import PRICE_TERMS
from atoll.model.site import LinkSpec, SiteSpec
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.registry import TERM_NAMES, TERMS
from orchestrator.core.placement.rows import NO_DEADLINE, Out, State
from orchestrator.core.placement.rules import Lot
from tests.property.metamorphic_worlds import (
    ASKER,
    BETTER,
    HAS,
    JOBS,
    MOMENT_US,
    NAMES,
    QUICK,
    SLACKS,
    Change,
    Place,
    World,
    changes,
    renamed,
    some_site,
    with_site,
    worlds,
)  # fmt: skip
from tests.unit.fleet_of_machines import GPUS, Fleet, pool, site, spec

FEW = settings(QUICK, max_examples=10)
Terms = dict[Place, dict[str, int]]

# --- what does not hold, and why it need not ------------------------------------------------------------------------------------------

# Terms that may cost more at a better place.
MAY_GROW: Final[dict[str, Mapping[str, str]]] = {
    "churn": dict.fromkeys(BETTER, "a load is measured against the best copy there is, and that may be what became better"),
    "fragmentation": {"emptier": "what was busy is now the last whole block, which one may break"},
    "evict": {
        "warmer": "what is loaded takes memory, and is missed when it has to leave for another load of itself",
        "emptier": "a slot that takes no more needs nobody to leave; one that is free does",
    },
}
# Terms that are not bytes over rates, so that faster hardware makes them no shorter, or not in proportion.
NO_RATE: Final = {
    "queue": "work ahead ends when it was predicted to, and here is none",
    "init": "a pipeline is built by its process, whatever the GPU",
    "adapt": "patching is counted with fixed rates of its own",
    "compile": "the compiler runs on the processor",
    "execution": "launches of kernels take as long on a faster GPU",
}
# Policies whose choice may leave a place because it became better, or because a third one came.
LEAVES_THE_BETTER: Final[dict[Rule, Mapping[str, str]]] = {
    Rule.WARM_FIRST: {"emptier": "a slot that is free is another place than a turn behind a busy replica"},
}
MINDS_A_THIRD: Final = {
    Rule.COST: "a copy that a new site brings raises the guard against one copy more; its cost never gets worse (`test_cost_metamorphic`)",
    Rule.TWO_CHOICES: "two places are drawn of all, and the third may be one of them",
}


def _board(fleet: Fleet, wanted: JobSpec, slack_us: int = NO_DEADLINE) -> Board:
    ctx = fleet.machine.context
    key = class_of(wanted)
    estimate = ctx.estimator.of(key, ctx.state.models[wanted.model_id])
    return ctx.scorer.score(key, estimate, ctx.now_us, slack_us=slack_us, lot=Lot(job_id=JobId("some job"), last=ctx.state.last_place))


def _terms(fleet: Fleet, wanted: JobSpec, slack_us: int = NO_DEADLINE) -> Terms:
    """All terms of every place that can be bound or waited for. What a deadline makes of the delay is told with the delay: in time it takes
    all of that back, so less delay is less to take back."""
    board = _board(fleet, wanted, slack_us)
    rows = [row for row in range(len(board.out)) if board.out[row, Out.STATE] != State.IMPOSSIBLE]
    found: Terms = {}
    for row, told in zip(rows, board.candidates(rows), strict=True):
        terms = dict(zip(TERM_NAMES, told.terms_us, strict=True))
        terms["deadline"] += sum(us for name, us in terms.items() if name not in PRICE_TERMS)
        found[told.site_id, told.pool_id, row // board.pools] = terms
    return found


def _choice(fleet: Fleet, wanted: JobSpec) -> tuple[str, bool] | None:
    """The site that a policy takes, and whether it waits for it; None: there is none."""
    board = _board(fleet, wanted)
    row = board.bound if board.bound is not None else board.patient
    return None if row is None else (str(board.column(row).site.site_id), board.bound is None)


def _under(world: World, name: str) -> World:
    return replace(world, policy=replace(POLICIES[name], silent_after_ms=10**9))


# --- terms --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BETTER)
@FEW
@given(st.data(), JOBS, SLACKS)
def test_no_term_of_a_better_place_costs_more(what: str, data: st.DataObject, job: JobSpec, slack_us: int) -> None:
    change = data.draw(changes(what))
    before, after = _terms(change.before.fleet(), job, slack_us), _terms(change.after.fleet(), job, slack_us)
    moment_us = MOMENT_US if what == "emptier" else 0
    for place in before.keys() & after.keys():
        for term in TERMS:
            if place[0] == "a" and what not in MAY_GROW.get(term.name, {}):
                assert after[place][term.name] <= before[place][term.name] + moment_us, (term.name, place)


@FEW
@given(worlds(), JOBS, SLACKS, st.permutations([0, 1, 2]))
def test_order_and_names_of_sites_are_nothing_to_any_term(world: World, job: JobSpec, slack_us: int, order: list[int]) -> None:
    idle = replace(world, busy={})
    here = _terms(idle.fleet(), job, slack_us)
    assert _terms(replace(idle, sites=tuple(idle.sites[index] for index in order)).fleet(), job, slack_us) == here
    there = _terms(renamed(idle).fleet(), replace(job, origin_site=NAMES[ASKER] if job.origin_site else None), slack_us)
    assert {(NAMES[SiteId(name)], kind): terms for (name, _, kind), terms in here.items()} == {
        (name, kind): terms for (name, _, kind), terms in there.items()
    }


def _all_faster(world: World, times: int) -> World:
    """Every rate of a world so many times as high."""
    gpus = {
        name: replace(
            gpu, fp16_flops=gpu.fp16_flops * times, fp32_flops=gpu.fp32_flops * times, memory_bytes_per_s=gpu.memory_bytes_per_s * times,
            h2d_bytes_per_s=gpu.h2d_bytes_per_s * times,
        )
        for name, gpu in world.gpus.items()
    }  # fmt: skip
    sites = tuple(
        replace(
            one, wan_bytes_per_s=one.wan_bytes_per_s * times, origin_bytes_per_s=one.origin_bytes_per_s * times,
            pools=(replace(one.pools[0], node=replace(one.pools[0].node, disk_bytes_per_s=one.pools[0].node.disk_bytes_per_s * times)),),
        )
        for one in world.sites
    )  # fmt: skip
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s * times) for link in world.links)
    return replace(world, gpus=gpus, sites=sites, links=links)


@FEW
@given(worlds(), JOBS, st.integers(2, 10))
def test_scaling_all_rates_scales_every_term_that_is_time_over_a_rate_and_lengthens_none(world: World, job: JobSpec, times: int) -> None:
    idle = replace(world, busy={}, has={})
    slow_links = tuple(replace(link, rtt_us=link.rtt_us * times) for link in idle.links)
    slow, fast = (_terms(one.fleet(), job) for one in (replace(idle, links=slow_links), _all_faster(idle, times)))
    for place, terms in slow.items():
        for term in TERMS:
            longer, shorter = terms[term.name], fast[place][term.name]
            if term.price:
                continue
            assert shorter <= longer, (term.name, place)
            if term.name not in NO_RATE:
                # Rates are counted in whole kilobytes a second and times in whole microseconds.
                assert abs(shorter * times - longer) <= times + longer // 1_000, (term.name, place)


def test_what_is_excused_is_there() -> None:
    assert MAY_GROW.keys() | NO_RATE.keys() <= {term.name for term in TERMS}
    assert not NO_RATE.keys() & {term.name for term in TERMS if term.price}
    assert LEAVES_THE_BETTER.keys() | MINDS_A_THIRD.keys() <= {policy.rule for policy in POLICIES.values()}
    assert all(each.keys() <= BETTER.keys() for each in (*MAY_GROW.values(), *LEAVES_THE_BETTER.values()))


# --- policies -----------------------------------------------------------------------------------------------------------------------


def _as_quick_as_memory() -> Change:
    """Both sites have the model in host memory, from where it is loaded sooner than from a disk; then the disk of a, whose GPU is small, is
    as fast as the bus. Their ways are so slow that nothing else counts."""
    slow = 10**6
    sites = [replace(site(name, pool("p", gpu, gpus=1)), wan_bytes_per_s=slow) for name, gpu in (("a", "small"), ("b", "big"))]
    links = tuple(LinkSpec(src=one.site_id, dst=ASKER, rtt_us=0, bytes_per_s=slow, egress_usd_micros_per_gb=1) for one in sites)
    everywhere = {"a": "host", "b": "host"}
    before = World(sites=(*sites, site(ASKER, pool("p", "small", gpus=1))), links=links, gpus=GPUS, has=everywhere, busy={})
    there = sites[0].pools[0]
    fast = replace(there, node=replace(there.node, disk_bytes_per_s=GPUS[there.gpu_type].h2d_bytes_per_s))
    return Change(before, with_site(before, replace(sites[0], pools=(fast,))))


@pytest.mark.parametrize("name", POLICIES)
@FEW
@given(st.sampled_from(list(BETTER)).flatmap(lambda what: st.tuples(st.just(what), changes(what))), JOBS)
@example(("faster disks and ways to the origin", _as_quick_as_memory()), spec("m", priority=Priority.URGENT))
def test_no_policy_leaves_a_place_because_it_became_better(name: str, better: tuple[str, Change], job: JobSpec) -> None:
    what, change = better
    if what in LEAVES_THE_BETTER.get(POLICIES[name].rule, {}):
        return
    before, after = (_choice(_under(one, name).fleet(), job) for one in change)
    if before is not None and before[0] == "a":
        assert after is not None and after[0] == "a"
        assert after[1] <= before[1], "and does not wait where it could begin"


@pytest.mark.parametrize("name", POLICIES)
@FEW
@given(worlds(), JOBS, st.permutations([0, 1, 2]))
def test_the_order_of_sites_is_nothing_to_any_policy(name: str, world: World, job: JobSpec, order: list[int]) -> None:
    idle = _under(replace(world, busy={}), name)
    assert _choice(idle.fleet(), job) == _choice(replace(idle, sites=tuple(idle.sites[index] for index in order)).fleet(), job)


@pytest.mark.parametrize("name", POLICIES)
@FEW
@given(worlds(), some_site("new"), JOBS, HAS)
def test_a_third_place_is_taken_or_changes_nothing(name: str, world: World, new: SiteSpec, job: JobSpec, has: str) -> None:
    if POLICIES[name].rule in MINDS_A_THIRD:
        return
    less = _under(world, name)
    more = replace(less, sites=(*less.sites, new), has={**less.has, "new": has})
    before, after = _choice(less.fleet(), job), _choice(more.fleet(), job)
    assert after is not None and (after == before or after[0] == "new")


@FEW
@given(worlds(), JOBS)
def test_what_can_be_had_is_the_same_for_every_policy_and_each_takes_of_it(world: World, job: JobSpec) -> None:
    """Filters and feasibility are everybody's; what can begin now is taken before anything is waited for, unless the policy weighs that."""
    states = []
    for name in POLICIES:
        board = _board(_under(replace(world, busy={}), name).fleet(), job)
        states.append(board.out[:, Out.STATE].copy())
        assert board.bound is not None and board.out[board.bound, Out.STATE] == State.BINDABLE
        assert board.patient is None or board.out[board.patient, Out.STATE] == State.WAITS
    assert all(np.array_equal(states[0], one) for one in states)
