"""What must hold of the cost whatever its figures are: better places never cost more, names and order are nothing, more sites never hurt.

Real cores with real reports; each property changes one thing of a fleet and compares the costs of the same job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.job import JobSpec, Priority
from atoll.model.site import LinkSpec, PoolSpec, SiteSpec
from orchestrator.core import events
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import COLD, NO_DEADLINE, READY, Out, State
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, model, pool, site, spec

# Where a pool is, and whether by a resident replica or by a load.
Place = tuple[str, str, int]
ASKER = SiteId("asker")
MODELS = (model("m"), model("x", 14))
# Explanations keep nine candidates; here every row is looked at, so learning and preemption may stay as they are.
POLICY = Policy(silent_after_ms=10**9)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A fleet to be: sites, links to the asker, GPU types, and what each site's agent has of models m and x."""

    sites: tuple[SiteSpec, ...]
    links: tuple[LinkSpec, ...] = ()
    gpus: Mapping[GpuTypeId, GpuType]
    has: Mapping[str, str]  # by site: nothing, disk, host or warm
    busy: Mapping[str, int]  # by site: jobs of x at work or bound behind others
    policy: Policy = POLICY

    def fleet(self) -> Fleet:
        """The fleet, as its agents have reported it."""
        fleet = Fleet(*self.sites, models=MODELS, policy=self.policy, gpus=self.gpus, checked=False)
        if self.links:
            fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=self.sites, links=self.links))
        for one in self.sites:
            self._work(fleet, one)
        for one in self.sites:
            agent, has = fleet.agents[one.site_id], self.has.get(one.site_id, "nothing")
            node_id = one.pools[0].node_id(0)
            if has in {"disk", "host"}:
                agent.disk.add("m")
            if has == "host":
                agent.host.setdefault(node_id, set()).add("m")
            if has == "warm":
                fleet.warm(one.site_id, node_id, one.pools[0].gpus_per_node - 1, "m")
            fleet.report(one.site_id)
        return fleet

    def _work(self, fleet: Fleet, one: SiteSpec) -> None:
        """Every slot has a warm x, and some of them a job of it."""
        for index in range(one.pools[0].gpus_per_node):
            fleet.warm(one.site_id, one.pools[0].node_id(0), index, "x", 14)
        fleet.agents[one.site_id].disk.add("x")
        fleet.report(one.site_id)
        for number in range(self.busy.get(one.site_id, 0)):
            there = replace(spec().constraints, sites=(one.site_id,))
            fleet.submit(spec("x", prompt=f"{one.site_id} {number}", constraints=there))


def costs(fleet: Fleet, wanted: JobSpec, slack_us: int = NO_DEADLINE, column: Out = Out.TOTAL) -> dict[Place, int]:
    """What the job costs at every place that can be bound or waited for."""
    ctx = fleet.machine.context
    key = class_of(wanted)
    board = ctx.scorer.score(key, ctx.estimator.of(key, ctx.state.models[wanted.model_id]), ctx.now_us, slack_us=slack_us)
    found: dict[Place, int] = {}
    for row in range(len(board.out)):
        if board.out[row, Out.STATE] != State.IMPOSSIBLE:
            where = board.column(row)
            found[(where.site.site_id, where.pool.pool_id, row // board.pools)] = int(board.out[row, column])
    return found


def best(found: Mapping[Place, int], site_id: str = "") -> int:
    """The least cost, of one site or of all."""
    return min((cost for (where, _, _), cost in found.items() if site_id in ("", where)), default=2**62)


_JOBS = st.builds(
    lambda priority, origin: replace(spec("m"), priority=priority, origin_site=ASKER if origin else None),
    st.sampled_from(Priority),
    st.booleans(),
)
_SLACKS = st.sampled_from([NO_DEADLINE, 5 * SECOND, 60 * SECOND, 3_600 * SECOND])
_HAS = st.sampled_from(["nothing", "disk", "host", "warm"])


@st.composite
def _sites(draw: st.DrawFn, name: str) -> SiteSpec:
    gpus, gpu = draw(st.integers(1, 4)), draw(st.sampled_from(sorted(GPUS)))
    made = site(name, pool("p", gpu, gpus=gpus), origin_gbs=draw(st.integers(1, 20)))
    return replace(
        made,
        wan_bytes_per_s=draw(st.integers(10**6, 10**10)),
        egress_usd_micros_per_gb=draw(st.integers(0, 200_000)),
        preemptions_per_million_gpu_hours=draw(st.integers(0, 100_000)),
    )


def _link(src: str, draw: st.DrawFn) -> LinkSpec:
    return LinkSpec(
        src=SiteId(src), dst=ASKER, rtt_us=draw(st.integers(0, 300_000)), bytes_per_s=draw(st.integers(10**6, 10**10)),
        egress_usd_micros_per_gb=draw(st.integers(1, 100_000)),
    )  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two sites and the asker's, with links, models and work drawn."""
    sites = (draw(_sites("a")), draw(_sites("b")), site(ASKER, pool("p", "small", gpus=1)))
    return World(
        sites=sites,
        links=(_link("a", draw), _link("b", draw)),
        gpus=GPUS,
        has={name: draw(_HAS) for name in "ab"},
        busy={one.site_id: draw(st.integers(0, 2 * one.pools[0].gpus_per_node)) for one in sites[:2]},
    )


def _with_site(world: World, changed: SiteSpec) -> World:
    return replace(world, sites=tuple(changed if one.site_id == changed.site_id else one for one in world.sites))


def _never_worse(before: World, after: World, job: JobSpec, slack_us: int) -> None:
    """Site a costs no more after than before, and the best of all places neither."""
    here, there = costs(before.fleet(), job, slack_us), costs(after.fleet(), job, slack_us)
    assert best(there, "a") <= best(here, "a")
    assert best(there) <= best(here)


# --- better places ------------------------------------------------------------------------------------------------------------------


@QUICK
@given(worlds(), _JOBS, _SLACKS)
def test_a_warmer_place_never_costs_more(world: World, job: JobSpec, slack_us: int) -> None:
    idle = replace(world, busy={})
    found = [
        best(costs(replace(idle, has={**idle.has, "a": has}).fleet(), job, slack_us), "a") for has in ("nothing", "disk", "host", "warm")
    ]
    assert found == sorted(found, reverse=True)


@QUICK
@given(worlds(), _JOBS, _SLACKS, st.integers(0, 10), st.integers(1, 10))
def test_a_nearer_place_never_costs_more(world: World, job: JobSpec, slack_us: int, closer: int, wider: int) -> None:
    near = tuple(
        replace(link, rtt_us=link.rtt_us * closer // 10, bytes_per_s=link.bytes_per_s * wider) if link.src == "a" else link
        for link in world.links
    )
    wide = replace(world.sites[0], wan_bytes_per_s=world.sites[0].wan_bytes_per_s * wider)
    _never_worse(world, _with_site(replace(world, links=near), wide), job, slack_us)


@QUICK
@given(worlds(), _JOBS, _SLACKS, st.integers(1, 8), st.sampled_from(["fp16_flops", "memory_bytes_per_s", "h2d_bytes_per_s", "all"]))
def test_a_faster_gpu_never_costs_more(world: World, job: JobSpec, slack_us: int, times: int, what: str) -> None:
    gpu_type = world.sites[0].pools[0].gpu_type
    rates = ("fp32_flops", "fp16_flops", "memory_bytes_per_s", "h2d_bytes_per_s") if what == "all" else (what,)
    faster = replace(GPUS[gpu_type], gpu_type=GpuTypeId("faster"), **{rate: getattr(GPUS[gpu_type], rate) * times for rate in rates})
    same = replace(GPUS[gpu_type], gpu_type=GpuTypeId("faster"))
    moved = _with_site(world, replace(world.sites[0], pools=(replace(world.sites[0].pools[0], gpu_type=GpuTypeId("faster")),)))
    idle = replace(moved, busy={})
    _never_worse(replace(idle, gpus={**GPUS, same.gpu_type: same}), replace(idle, gpus={**GPUS, faster.gpu_type: faster}), job, slack_us)


@QUICK
@given(worlds(), _JOBS, _SLACKS, st.integers(1, 8))
def test_faster_disks_and_ways_to_the_origin_never_cost_more(world: World, job: JobSpec, slack_us: int, times: int) -> None:
    one, pool_ = world.sites[0], world.sites[0].pools[0]
    node = replace(pool_.node, disk_bytes_per_s=pool_.node.disk_bytes_per_s * times)
    idle = replace(world, busy={})
    faster = replace(one, origin_bytes_per_s=one.origin_bytes_per_s * times, pools=(replace(pool_, node=node),))
    _never_worse(idle, _with_site(idle, faster), job, slack_us)


@QUICK
@given(worlds(), _JOBS, _SLACKS)
def test_an_emptier_place_never_costs_more(world: World, job: JobSpec, slack_us: int) -> None:
    most = 2 * world.sites[0].pools[0].gpus_per_node
    fleets = (replace(world, busy={**world.busy, "a": busy}).fleet() for busy in range(most + 1))
    found = [best(costs(fleet, job, slack_us), "a") for fleet in fleets]
    # A moment passes with each job that is submitted: what waits for a slot then waits that much less.
    assert all(later >= earlier - 20_000 for earlier, later in pairwise(found)), found


@QUICK
@given(worlds(), _JOBS, _SLACKS, st.integers(0, 10), st.integers(0, 10))
def test_a_cheaper_place_never_costs_more(world: World, job: JobSpec, slack_us: int, price: int, egress: int) -> None:
    one, pool_ = world.sites[0], world.sites[0].pools[0]
    usd = GPUS[pool_.gpu_type].usd_micros_per_hour
    dear = replace(one, pools=(replace(pool_, usd_micros_per_gpu_hour=usd),))
    cheap = replace(
        one,
        pools=(replace(pool_, usd_micros_per_gpu_hour=max(usd * price // 10, 1)),),
        egress_usd_micros_per_gb=one.egress_usd_micros_per_gb * egress // 10,
    )
    _never_worse(_with_site(world, dear), _with_site(world, cheap), job, slack_us)


@QUICK
@given(worlds(), _JOBS, st.integers(0, 100_000))
def test_a_safer_place_never_costs_more(world: World, job: JobSpec, hazard: int) -> None:
    one = world.sites[0]
    safer = replace(one, preemptions_per_million_gpu_hours=min(hazard, one.preemptions_per_million_gpu_hours))
    _never_worse(world, _with_site(world, safer), job, NO_DEADLINE)


# --- what must not matter -----------------------------------------------------------------------------------------------------------


@QUICK
@given(worlds(), _JOBS, _SLACKS, st.permutations([0, 1, 2]))
def test_the_order_of_sites_is_nothing_to_the_cost(world: World, job: JobSpec, slack_us: int, order: list[int]) -> None:
    idle = replace(world, busy={})
    assert costs(idle.fleet(), job, slack_us) == costs(
        replace(idle, sites=tuple(idle.sites[index] for index in order)).fleet(), job, slack_us
    )


@QUICK
@given(worlds(), _JOBS, _SLACKS)
def test_names_are_nothing_to_the_cost(world: World, job: JobSpec, slack_us: int) -> None:
    idle = replace(world, busy={})
    names = {SiteId("a"): SiteId("zulu"), SiteId("b"): SiteId("0"), ASKER: SiteId("m")}
    renamed = World(
        sites=tuple(
            replace(one, site_id=names[one.site_id], pools=(replace(one.pools[0], pool_id=PoolId(f"pool-of-{names[one.site_id]}")),))
            for one in idle.sites
        ),
        links=tuple(replace(link, src=names[link.src], dst=names[link.dst]) for link in idle.links),
        gpus=idle.gpus,
        has={names[SiteId(name)]: has for name, has in idle.has.items()},
        busy={},
    )
    there = costs(renamed.fleet(), replace(job, origin_site=names[ASKER] if job.origin_site else None), slack_us)
    here = costs(idle.fleet(), job, slack_us)
    assert {(names[SiteId(name)], kind): cost for (name, _, kind), cost in here.items()} == {
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
@given(worlds(), _sites("new"), _JOBS, _SLACKS, _HAS)
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
            assert min(after, key=lambda place: (after[place], place[2]))[2] != COLD, "a copy is taken, no load for more than it was"
    if has != "warm":
        assert best(after) <= best(before)


@QUICK
@given(worlds(), _JOBS, _SLACKS)
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
@given(worlds(), _JOBS, st.integers(2, 10))
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
