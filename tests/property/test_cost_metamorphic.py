"""What must hold of the cost whatever its figures are: better places never cost more, names and order are nothing, more sites never hurt.

Real cores with real reports; each property changes one thing of a fleet and compares the costs of the same job.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from atoll.model.ids import GpuTypeId, SiteId
from atoll.model.job import JobSpec
from atoll.model.site import PoolSpec, SiteSpec
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import COLD, NO_DEADLINE, READY, Out, State
from tests.property.metamorphic_worlds import (
    ASKER,
    BETTER,
    HAS,
    JOBS,
    MOMENT_US,
    NAMES,
    QUICK,
    SLACKS,
    Place,
    World,
    best,
    changes,
    costs,
    renamed,
    some_site,
    worlds,
)  # fmt: skip
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec

# --- better places ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BETTER)
@QUICK
@given(st.data(), JOBS, SLACKS)
def test_a_better_place_never_costs_more(what: str, data: st.DataObject, job: JobSpec, slack_us: int) -> None:
    """Its own cost, and the best of all but for the guard against one copy more than is wanted: where a copy became better, a load
    elsewhere has to beat that."""
    change = data.draw(changes(what))
    fleets = change.before.fleet(), change.after.fleet()
    here, there = (costs(fleet, job, slack_us) for fleet in fleets)
    moment_us = MOMENT_US if what == "emptier" else 0
    assert best(there, "a") <= best(here, "a") + moment_us
    guards = (costs(fleet, job, slack_us, Out.CHURN) for fleet in fleets)
    before, after = (
        {place: cost - guard[place] for place, cost in found.items()} for found, guard in zip((here, there), guards, strict=True)
    )
    assert best(after) <= best(before) + moment_us


# --- what must not matter -----------------------------------------------------------------------------------------------------------


@QUICK
@given(worlds(), JOBS, SLACKS, st.permutations([0, 1, 2]))
def test_the_order_of_sites_is_nothing_to_the_cost(world: World, job: JobSpec, slack_us: int, order: list[int]) -> None:
    idle = replace(world, busy={})
    assert costs(idle.fleet(), job, slack_us) == costs(
        replace(idle, sites=tuple(idle.sites[index] for index in order)).fleet(), job, slack_us
    )


@QUICK
@given(worlds(), JOBS, SLACKS)
def test_names_are_nothing_to_the_cost(world: World, job: JobSpec, slack_us: int) -> None:
    idle = replace(world, busy={})
    there = costs(renamed(idle).fleet(), replace(job, origin_site=NAMES[ASKER] if job.origin_site else None), slack_us)
    here = costs(idle.fleet(), job, slack_us)
    assert {(NAMES[SiteId(name)], kind): cost for (name, _, kind), cost in here.items()} == {
        (name, kind): cost for (name, _, kind), cost in there.items()
    }


# A model that nobody has, at a fast place; and one that is slow, far away and has it: no worse than what there is, and no bar to it.
_NOTHING_AT_HAND = World(
    sites=(site("a", pool("p", gpus=1), origin_gbs=20), site("b", pool("p", gpus=1)), site(ASKER, pool("p", "small", gpus=1))),
    gpus=GPUS,
    has={},
    busy={},
)
_SLOW_AND_WARM = replace(
    site("new", replace(pool("p", "small", gpus=1), usd_micros_per_gpu_hour=900_000_000)), preemptions_per_million_gpu_hours=100_000
)


# --- more and other sites -----------------------------------------------------------------------------------------------------------


@QUICK
@given(worlds(), some_site("new"), JOBS, SLACKS, HAS)
@example(world=_NOTHING_AT_HAND, new=_SLOW_AND_WARM, job=spec("m"), slack_us=NO_DEADLINE, has="warm")
def test_a_site_more_never_makes_the_best_cost_worse(world: World, new: SiteSpec, job: JobSpec, slack_us: int, has: str) -> None:
    """The cost; the guard against one more copy than is wanted is none. It may have a job run on a copy that the new site brings instead of
    a load that is better, by no more than half of what loading takes."""
    more = replace(world, sites=(*world.sites, new), has={**world.has, "new": has}).fleet()
    fleet = world.fleet()
    before, guarded = costs(fleet, job, slack_us), costs(fleet, job, slack_us, Out.CHURN)
    after, guard = costs(more, job, slack_us), costs(more, job, slack_us, Out.CHURN)
    plain = {place: cost - guarded[place] for place, cost in before.items()}
    assert best({place: cost - guard[place] for place, cost in after.items()}) <= best(plain)
    if slack_us == NO_DEADLINE:  # a place that is in time goes before any that is not, whatever they cost
        chosen = min(before, key=lambda place: before[place])
        assert best(after) <= before[chosen] + guard[chosen]
        if best(after) > before[chosen]:
            taken = min(after, key=lambda place: (after[place], place[2]))
            dearer = after[taken] - guard[taken] > before[chosen]
            assert taken[2] != COLD or not dearer, "a copy is taken, or a load for more than it was by its guard alone"
    if has != "warm":
        assert best(after) <= best(before)


@QUICK
@given(worlds(), JOBS, SLACKS)
def test_only_a_load_that_does_not_beat_the_best_copy_by_half_of_it_is_handicapped(world: World, job: JobSpec, slack_us: int) -> None:
    fleet = world.fleet()
    found, guard, late = (costs(fleet, job, slack_us, column) for column in (Out.TOTAL, Out.CHURN, Out.TARDY))
    copies = [place for place in found if place[2] != COLD]
    best_copy = min(copies, key=lambda place: (late[place] >= 0, found[place]), default=None)
    for place, cost in found.items():
        if place[2] != COLD or best_copy is None or (late[place] < 0) > (late[best_copy] < 0):
            assert not guard[place]
        elif guard[place] and (late[place] < 0) == (late[best_copy] < 0):
            assert cost >= found[best_copy]


@st.composite
def _pools(draw: st.DrawFn) -> tuple[PoolSpec, ...]:
    count = draw(st.integers(2, 4))
    return tuple(
        pool(f"p{number}", draw(st.sampled_from(sorted(GPUS))), nodes=draw(st.integers(1, 2)), gpus=draw(st.sampled_from([1, 2, 4])))
        for number in range(count)
    )


@QUICK
@given(_pools(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from(["m", "x", "wide"]), st.booleans())
def test_splitting_a_site_in_two_changes_no_feasibility(
    pools: tuple[PoolSpec, ...], at: int, gang_size: int, model_id: str, only_big: bool
) -> None:
    assume(at < len(pools))
    one = replace(site("whole", *pools), region="r")
    halves = (replace(one, site_id=SiteId("left"), pools=pools[:at]), replace(one, site_id=SiteId("right"), pools=pools[at:]))
    constraints = replace(spec().constraints, regions=("r",), gpu_types=(GpuTypeId("big"),) if only_big else ())
    job = replace(spec(model_id), gang_size=gang_size, constraints=constraints)
    known = (model("m"), model("x", 30), model("wide", 70))
    found = []
    for sites in ((one,), halves):
        fleet = Fleet(*sites, models=known, checked=False)
        ctx = fleet.machine.context
        key = class_of(job)
        estimate = ctx.estimator.of(key, ctx.state.models[job.model_id])
        board = ctx.scorer.score(key, estimate, ctx.now_us)
        states = board.out[board.pools : 2 * board.pools, Out.STATE].tolist()
        names = [column.pool.pool_id for column in ctx.columns.columns]
        told = {rejection.reason: rejection.pools for rejection in board.rejections()}
        found.append((dict(zip(names, estimate.codes.tolist(), strict=True)), dict(zip(names, states, strict=True)), told))
    assert found[0] == found[1]


# --- units --------------------------------------------------------------------------------------------------------------------------


@QUICK
@given(worlds(), JOBS, st.integers(2, 10))
def test_scaling_all_rates_scales_all_times(world: World, job: JobSpec, times: int) -> None:
    """Fetch, stage and transfers are bytes over rates. Execution is not all of it: launches of kernels take as long on a faster GPU."""
    idle = replace(world, busy={}, has={})
    gpus = {
        name: replace(
            gpu, fp16_flops=gpu.fp16_flops * times, fp32_flops=gpu.fp32_flops * times, memory_bytes_per_s=gpu.memory_bytes_per_s * times,
            h2d_bytes_per_s=gpu.h2d_bytes_per_s * times,
        )
        for name, gpu in GPUS.items()
    }  # fmt: skip
    sites = tuple(
        replace(
            one, wan_bytes_per_s=one.wan_bytes_per_s * times, origin_bytes_per_s=one.origin_bytes_per_s * times,
            pools=(replace(one.pools[0], node=replace(one.pools[0].node, disk_bytes_per_s=one.pools[0].node.disk_bytes_per_s * times)),),
        )
        for one in idle.sites
    )  # fmt: skip
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s * times) for link in idle.links)
    idle = replace(idle, links=tuple(replace(link, rtt_us=link.rtt_us * times) for link in idle.links))
    slow, fast = (_terms(world_.fleet(), job) for world_ in (idle, replace(idle, sites=sites, links=links, gpus=gpus)))
    for place, terms in slow.items():
        for name in ("fetch", "input", "stage", "output"):
            # Rates are counted in whole kilobytes a second and times in whole microseconds.
            slack_us = times + terms[name] // 1_000
            assert abs(fast[place][name] * times - terms[name]) <= slack_us, (place, name)
        assert terms["execution"] <= fast[place]["execution"] * times <= terms["execution"] * times + times


def _terms(fleet: Fleet, wanted: JobSpec) -> dict[Place, dict[str, int]]:
    ctx = fleet.machine.context
    key = class_of(wanted)
    board = ctx.scorer.score(key, ctx.estimator.of(key, ctx.state.models[wanted.model_id]), ctx.now_us)
    rows = [row for row in range(len(board.out)) if board.out[row, Out.STATE] == State.BINDABLE]
    assert rows
    return {
        (told.site_id, told.pool_id, COLD if told.cold else READY): dict(zip(TERM_NAMES, told.terms_us, strict=True))
        for told in board.candidates(rows)
    }
