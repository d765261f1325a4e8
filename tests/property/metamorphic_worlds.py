"""Worlds that differ in one thing, for what must hold of costs and choices whatever their figures are. Real cores with real reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.job import JobSpec, Priority
from atoll.model.site import LinkSpec, SiteSpec
from orchestrator.core import events
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import NO_DEADLINE, Out, State
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, model, pool, site, spec

# Where a pool is, and whether by a resident replica or by a load.
Place = tuple[str, str, int]
ASKER = SiteId("asker")
NAMES: Final = {SiteId("a"): SiteId("zulu"), SiteId("b"): SiteId("0"), ASKER: SiteId("m")}
# A moment passes with each job that is submitted: what waits for a slot then waits that much less.
MOMENT_US: Final = 20_000
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
            # What is nearer was farther away before, and is there too.
            if has in {"disk", "host", "warm"}:
                agent.disk.add("m")
            if has in {"host", "warm"}:
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


JOBS = st.builds(
    lambda priority, origin: replace(spec("m"), priority=priority, origin_site=ASKER if origin else None),
    st.sampled_from(Priority),
    st.booleans(),
)
SLACKS = st.sampled_from([NO_DEADLINE, 5 * SECOND, 60 * SECOND, 3_600 * SECOND])
_WARMTH = ("nothing", "disk", "host", "warm")
HAS = st.sampled_from(_WARMTH)


@st.composite
def some_site(draw: st.DrawFn, name: str) -> SiteSpec:
    gpus, gpu = draw(st.integers(1, 4)), draw(st.sampled_from(sorted(GPUS)))
    made = site(name, pool("p", gpu, gpus=gpus), origin_gbs=draw(st.integers(1, 20)))
    return replace(
        made,
        wan_bytes_per_s=draw(st.integers(10**6, 10**10)),
        egress_usd_micros_per_gb=draw(st.integers(0, 200_000)),
        preemptions_per_million_gpu_hours=draw(st.integers(0, 100_000)),
    )


def link_of(src: str, draw: st.DrawFn) -> LinkSpec:
    return LinkSpec(
        src=SiteId(src), dst=ASKER, rtt_us=draw(st.integers(0, 300_000)), bytes_per_s=draw(st.integers(10**6, 10**10)),
        egress_usd_micros_per_gb=draw(st.integers(1, 100_000)),
    )  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two sites and the asker's, with links, models and work drawn."""
    sites = (draw(some_site("a")), draw(some_site("b")), site(ASKER, pool("p", "small", gpus=1)))
    return World(
        sites=sites,
        links=(link_of("a", draw), link_of("b", draw)),
        gpus=GPUS,
        has={name: draw(HAS) for name in "ab"},
        busy={one.site_id: draw(st.integers(0, 2 * one.pools[0].gpus_per_node)) for one in sites[:2]},
    )


def with_site(world: World, changed: SiteSpec) -> World:
    return replace(world, sites=tuple(changed if one.site_id == changed.site_id else one for one in world.sites))


# --- better places: site a before and after ------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Worlds that differ in one thing: in the second one, site a is better by it."""

    before: World
    after: World


def _warmer(draw: st.DrawFn, world: World) -> Change:
    idle = replace(world, busy={})
    less, more = sorted(draw(st.lists(st.integers(0, len(_WARMTH) - 1), min_size=2, max_size=2)))
    return Change(*(replace(idle, has={**idle.has, "a": _WARMTH[warmth]}) for warmth in (less, more)))


def _nearer(draw: st.DrawFn, world: World) -> Change:
    closer, wider = draw(st.integers(0, 10)), draw(st.integers(1, 10))
    near = tuple(
        replace(link, rtt_us=link.rtt_us * closer // 10, bytes_per_s=link.bytes_per_s * wider) if link.src == "a" else link
        for link in world.links
    )
    wide = replace(world.sites[0], wan_bytes_per_s=world.sites[0].wan_bytes_per_s * wider)
    return Change(world, with_site(replace(world, links=near), wide))


def _faster_gpu(draw: st.DrawFn, world: World) -> Change:
    times, what = draw(st.integers(1, 8)), draw(st.sampled_from(["fp16_flops", "memory_bytes_per_s", "h2d_bytes_per_s", "all"]))
    pool_ = world.sites[0].pools[0]
    rates = ("fp32_flops", "fp16_flops", "memory_bytes_per_s", "h2d_bytes_per_s") if what == "all" else (what,)
    same = replace(GPUS[pool_.gpu_type], gpu_type=GpuTypeId("faster"))
    faster = replace(same, **{rate: getattr(same, rate) * times for rate in rates})
    idle = replace(with_site(world, replace(world.sites[0], pools=(replace(pool_, gpu_type=same.gpu_type),))), busy={})
    return Change(*(replace(idle, gpus={**GPUS, gpu.gpu_type: gpu}) for gpu in (same, faster)))


def _faster_ways(draw: st.DrawFn, world: World) -> Change:
    times = draw(st.integers(1, 8))
    one, pool_ = world.sites[0], world.sites[0].pools[0]
    node = replace(pool_.node, disk_bytes_per_s=pool_.node.disk_bytes_per_s * times)
    faster = replace(one, origin_bytes_per_s=one.origin_bytes_per_s * times, pools=(replace(pool_, node=node),))
    idle = replace(world, busy={})
    return Change(idle, with_site(idle, faster))


def _emptier(draw: st.DrawFn, world: World) -> Change:
    most = 2 * world.sites[0].pools[0].gpus_per_node
    less, more = sorted(draw(st.lists(st.integers(0, most), min_size=2, max_size=2)))
    return Change(*(replace(world, busy={**world.busy, "a": busy}) for busy in (more, less)))


def _cheaper(draw: st.DrawFn, world: World) -> Change:
    price, egress = draw(st.integers(0, 10)), draw(st.integers(0, 10))
    one, pool_ = world.sites[0], world.sites[0].pools[0]
    usd = GPUS[pool_.gpu_type].usd_micros_per_hour
    dear = replace(one, pools=(replace(pool_, usd_micros_per_gpu_hour=usd),))
    cheap = replace(
        one,
        pools=(replace(pool_, usd_micros_per_gpu_hour=max(usd * price // 10, 1)),),
        egress_usd_micros_per_gb=one.egress_usd_micros_per_gb * egress // 10,
    )
    return Change(with_site(world, dear), with_site(world, cheap))


def _safer(draw: st.DrawFn, world: World) -> Change:
    one = world.sites[0]
    fewer = min(draw(st.integers(0, 100_000)), one.preemptions_per_million_gpu_hours)
    return Change(world, with_site(world, replace(one, preemptions_per_million_gpu_hours=fewer)))


BETTER: Final[dict[str, Callable[[st.DrawFn, World], Change]]] = {
    "warmer": _warmer,
    "nearer": _nearer,
    "faster GPU": _faster_gpu,
    "faster disks and ways to the origin": _faster_ways,
    "emptier": _emptier,
    "cheaper": _cheaper,
    "safer": _safer,
}


@st.composite
def changes(draw: st.DrawFn, name: str) -> Change:
    """Two worlds of which the second is better in this."""
    return BETTER[name](draw, draw(worlds()))


def renamed(world: World) -> World:
    """The same world under other names, in another order of names."""
    return replace(
        world,
        sites=tuple(
            replace(one, site_id=NAMES[one.site_id], pools=(replace(one.pools[0], pool_id=PoolId(f"pool-of-{NAMES[one.site_id]}")),))
            for one in world.sites
        ),
        links=tuple(replace(link, src=NAMES[link.src], dst=NAMES[link.dst]) for link in world.links),
        has={NAMES[SiteId(name)]: has for name, has in world.has.items()},
        busy={NAMES[SiteId(name)]: busy for name, busy in world.busy.items()},
    )
