"""The slow loop: how many copies of each model should be where, and one copy at a time towards it.

    weighing   what copies of each model in demand are worth (`worth`), a slice of the models per step
    cutting    targets: copies by value per GB until the fleet's memory is spoken for, with hysteresis; the most wanted on two sites
    siting     what pins, pushes and targets still lack is wanted somewhere (`sitings`), a few models per step, within each link's share

Nothing is ever taken away by the loop: a copy beyond its target stays until its room is needed. The last warm copy of a model in demand
is never proposed to make room. Decides targets and wishes. Must not know how placing uses them; `target`, `protected` and `pinned` are
constant-time look-ups for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np

from atoll.model import limits
from atoll.model.ids import ModelId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import Tier
from atoll.model.residency import Cause, ResidencyEvent
from atoll.model.site import SiteConnection
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from orchestrator.core import movements, sitings, turnover, wishes, worth
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.demand import PutDemand
from orchestrator.core.placement.rows import Ints
from orchestrator.core.state import Site

# Models weighed in one step: 256 are some 5 ms; and of those without demand, whose prior fades, as many again each round.
_WEIGHED_PER_STEP: Final = 256
# Models sited in one step: each looks at the pools of the fleet once, 3,600 of them in about a millisecond.
_SITED_PER_STEP: Final = 8
# Models without enough copies that one round cares for, the most valuable first: the rest has its turn when these have theirs.
_SITED_PER_ROUND: Final = 1_024
# Pools looked at closely for one copy: where the best 24 with a link to spare have no room, the next round looks again.
_LOOKS_MAX: Final = 24
# Copies of one model begun in one round: growth by two each half minute catches any rush, and leaves time to see what the first did.
_NEW_PER_ROUND: Final = 2


class Phase(IntEnum):
    """Where a round stands."""

    IDLE = 0
    WEIGHING = 1
    SITING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Copies of a model that the loop wants, on `sites_min` sites at least; `value_us` per hour and GB of the last copy on the GPU."""

    gpu: int = 0
    host: int = 0
    disk: int = 0
    sites_min: int = 0
    value_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencySnapshot:
    """The loop between two steps."""

    targets: tuple[tuple[ModelId, Target], ...]
    offers: tuple[tuple[ModelId, worth.Offer], ...]
    phase: Phase
    todo: tuple[ModelId, ...]
    armed: bool
    swept: int
    ring: tuple[ResidencyEvent, ...]
    busy_eighths: tuple[tuple[ModelId, int], ...]


_NOTHING: Final = Target()


@dataclass(slots=True, kw_only=True)
class Residency:
    """The loop's state. `offers` are those of the round under way; `todo` are the models left of its phase."""

    targets: dict[ModelId, Target] = field(default_factory=dict)
    offers: dict[ModelId, worth.Offer] = field(default_factory=dict)
    phase: Phase = Phase.IDLE
    todo: list[ModelId] = field(default_factory=list)
    armed: bool = False
    swept: int = 0
    ring: movements.Ring = field(default_factory=movements.new_ring)
    busy_eighths: dict[ModelId, int] = field(default_factory=dict)  # see `turnover`

    def target(self, model_id: ModelId) -> int:
        """Warm copies that the model should have; 0 while nobody asks for it."""
        return self.targets.get(model_id, _NOTHING).gpu

    def value_us(self, model_id: ModelId) -> int:
        """What its last copy on the GPU saves others, microseconds per hour and GB."""
        return self.targets.get(model_id, _NOTHING).value_us

    def pinned(self, ctx: Context, model_id: ModelId, site_id: SiteId) -> bool:
        """Whether an operator pinned the model to GPUs of the site."""
        pin = ctx.state.pins.get((model_id, site_id))
        return pin is not None and pin.tier is Tier.GPU

    def protected(self, ctx: Context, model_id: ModelId, site_id: SiteId) -> bool:
        """Whether a replica of the model at this site must not make room: pinned, or the last warm copy of a model in demand."""
        return self.pinned(ctx, model_id, site_id) or self.last_warm(ctx, model_id)

    def last_warm(self, ctx: Context, model_id: ModelId, *, named: int = 0) -> bool:
        """Whether one copy of the model is left, and somebody asks for it (or it was pushed for those who will).

        Copies that wishes name to make room count as gone, and `named` more.
        """
        copies = ctx.columns.prices.copies(model_id)
        if not copies or copies - ctx.making_room[model_id] - named > 1:
            return False
        wanted = ctx.demand.asked_for(model_id) and ctx.demand.rate_per_hour_milli(model_id) >= ctx.policy.protect_per_hour_milli
        return wanted or model_id in ctx.state.pushes

    def take(self) -> ResidencySnapshot:
        """Everything, for a snapshot."""
        return ResidencySnapshot(
            targets=tuple(self.targets.items()),
            offers=tuple(self.offers.items()),
            phase=self.phase,
            todo=tuple(self.todo),
            armed=self.armed,
            swept=self.swept,
            ring=tuple(self.ring),
            busy_eighths=tuple(self.busy_eighths.items()),
        )

    def restore(self, snapshot: ResidencySnapshot) -> None:
        """Go on from a snapshot."""
        self.targets, self.offers = dict(snapshot.targets), dict(snapshot.offers)
        self.phase, self.todo, self.armed, self.swept = snapshot.phase, list(snapshot.todo), snapshot.armed, snapshot.swept
        self.ring.extend(snapshot.ring)
        self.busy_eighths.update(snapshot.busy_eighths)


# --- the timer ----------------------------------------------------------------------------------------------------------------


def arm(ctx: Context) -> None:
    """There is something to look after: have the loop run."""
    if not ctx.residency.armed:
        ctx.residency.armed = True
        ctx.arm(ctx.now_us + ctx.policy.residency_interval_ms * 1_000, TimerKind.RESIDENCY)


def due(ctx: Context) -> None:
    """The next slice of a round, or the beginning of one."""
    loop = ctx.residency
    if loop.phase is Phase.IDLE:
        loop.phase, loop.todo, loop.offers = Phase.WEIGHING, list(ctx.demand.active), {}
        _sweep(ctx)
        kept = ctx.demand.checkpoint(ctx.now_us)
        if kept is not None:
            ctx.records.append(PutDemand(demand=kept))
    if loop.phase is Phase.WEIGHING:
        chosen, loop.todo = loop.todo[:_WEIGHED_PER_STEP], loop.todo[_WEIGHED_PER_STEP:]
        typical = _typical(ctx)
        for model_id in chosen:
            _weigh(ctx, model_id, typical)
        if not loop.todo:
            _cut(ctx, typical)
            loop.phase, loop.todo = Phase.SITING, _to_site(ctx)
    elif loop.phase is Phase.SITING:
        chosen, loop.todo = loop.todo[:_SITED_PER_STEP], loop.todo[_SITED_PER_STEP:]
        for model_id in chosen:
            _site_model(ctx, model_id)
        if not loop.todo:
            loop.phase = Phase.IDLE
    if loop.phase is not Phase.IDLE:
        ctx.arm(ctx.now_us, TimerKind.RESIDENCY)
        return
    loop.armed = False
    if ctx.demand.active or ctx.state.pins or ctx.state.pushes or any(site.wanted for site in ctx.state.sites.values()):
        arm(ctx)


def arrived(ctx: Context, model_id: ModelId) -> None:
    """A job of this model was accepted."""
    if ctx.demand.arrived(model_id, ctx.now_us):
        ctx.columns.demand_changed(model_id)
    arm(ctx)


def _sweep(ctx: Context) -> None:
    """Models that nobody asks for: their prior fades, a slice of them each round."""
    known = list(ctx.demand.known())
    loop = ctx.residency
    start = loop.swept if loop.swept < len(known) else 0
    for model_id in known[start : start + _WEIGHED_PER_STEP]:
        if model_id not in ctx.demand.active and ctx.demand.refresh(model_id, ctx.now_us):
            ctx.columns.demand_changed(model_id)
    loop.swept = start + _WEIGHED_PER_STEP


# --- weighing -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Typical:
    """Rates of the pool in the middle of the fleet, bytes per second."""

    disk: int
    h2d: int
    origin: int


def _typical(ctx: Context) -> _Typical:
    columns = ctx.columns
    if not columns.columns:
        return _Typical(disk=1, h2d=1, origin=1)
    middle = [int(np.sort(rates)[len(rates) // 2]) or 1 for rates in (columns.disk_rate, columns.h2d_rate, columns.origin_rate)]
    return _Typical(disk=middle[0], h2d=middle[1], origin=middle[2])


def _reload_us(model: ModelSpec, typical: _Typical) -> int:
    return stage_us(model, typical.disk, typical.h2d, from_host=False) + init_us(model)


def _weigh(ctx: Context, model_id: ModelId, typical: _Typical) -> None:
    model = ctx.state.models.get(model_id)
    asked, busy = ctx.demand.refresh(model_id, ctx.now_us), turnover.told_busy(ctx, model_id)
    if asked or busy:
        ctx.columns.demand_changed(model_id)
    if model is None or not ctx.demand.asked_for(model_id):
        return
    need = sitings.need_bytes(model)
    by_type = zip(ctx.columns.gpu_types, ctx.estimator.executions(model).by_type_us, strict=True)
    executions = sorted([execution_us for gpu, execution_us in by_type if gpu.memory_bytes >= need])
    if not executions:
        return
    floor_us = ctx.policy.residency_floor_us_per_hour
    ctx.residency.offers[model_id] = worth.offer(
        rate_milli=ctx.demand.rate_per_hour_milli(model_id),
        execution_us=executions[len(executions) // 2],
        reload_us=_reload_us(model, typical),
        resident_bytes=model.resident_bytes,
        floor_us=floor_us - floor_us // ctx.policy.residency_hysteresis_parts,
    )


# --- cutting ------------------------------------------------------------------------------------------------------------------


def _cut(ctx: Context, typical: _Typical) -> None:
    """Targets from offers: by value per GB until half of the fleet's memory is spoken for."""
    loop, policy = ctx.residency, ctx.policy
    floor_us = _floor_us(ctx)
    spread_us = floor_us // policy.residency_hysteresis_parts
    enter_us, stay_us = floor_us + spread_us, floor_us - spread_us
    most_wanted = _most_wanted(loop.offers, policy.spread_per_hour_milli)
    targets: dict[ModelId, Target] = {}
    for model_id, found in loop.offers.items():
        model, old = ctx.state.models.get(model_id), loop.targets.get(model_id, _NOTHING)
        if model is None:
            continue
        sites_min = 2 if model_id in most_wanted else 0
        gpu = max(worth.held_between(old.gpu, found.warm_us, enter_us, stay_us), sites_min)
        host_saved_us = _reload_us(model, typical) - init_us(model) - stage_us(model, typical.disk, typical.h2d, from_host=True)
        host_us = worth.host_value(found, gpu, host_saved_us, model.weights_bytes)
        disks = worth.disk_values(found, gpu, transfer_us(model.weights_bytes, typical.origin, 0), model.weights_bytes, stay_us)
        disk = worth.held_between(old.disk, disks, enter_us, stay_us)
        target = Target(
            gpu=gpu,
            host=worth.held_between(old.host, [host_us], enter_us, stay_us),
            disk=max(disk, sites_min, min(gpu, 1)),
            sites_min=sites_min,
            value_us=found.warm_us[min(gpu, len(found.warm_us)) - 1] if found.warm_us and gpu else 0,
        )
        if target != _NOTHING:
            targets[model_id] = target
    loop.targets, loop.offers = targets, {}


def _floor_us(ctx: Context) -> int:
    """What a copy must be worth: the policy's floor, or what the last copy that fits is worth when memory is short."""
    budget = int(sum(int(ctx.columns.memory[column.index]) * column.pool.spec.slots for column in ctx.columns.columns))
    budget = budget * ctx.policy.residency_memory_milli // 1_000
    floor_us = ctx.policy.residency_floor_us_per_hour
    offered = [
        (-value, model_id, ctx.state.models[model_id].resident_bytes)
        for model_id, found in ctx.residency.offers.items()
        if model_id in ctx.state.models
        for value in found.warm_us
    ]
    for value, _, size in sorted(offered):
        budget -= size
        if budget < 0:
            return max(floor_us, -value)
    return floor_us


def _most_wanted(offers: dict[ModelId, worth.Offer], least_milli: int) -> set[ModelId]:
    """The models that make up half of all requests, if each is asked for often enough to be missed when its site falls silent."""
    order = sorted(((found.rate_milli, model_id) for model_id, found in offers.items()), key=lambda item: (-item[0], item[1]))
    half = sum(rate for rate, _ in order) // 2
    chosen: set[ModelId] = set()
    for rate, model_id in order:
        if half <= 0 or rate < least_milli:
            break
        chosen.add(model_id)
        half -= rate
    return chosen


# --- siting -------------------------------------------------------------------------------------------------------------------


def _to_site(ctx: Context) -> list[ModelId]:
    """Models that operators care for, then those in demand by what their copies are worth, then those with wishes that may be over."""
    named = [*(model_id for model_id, _ in ctx.state.pins), *ctx.state.pushes]
    targets = ctx.residency.targets
    lacking = [model_id for model_id, target in targets.items() if _may_lack(ctx, model_id, target)]
    wanted = sorted(lacking, key=lambda model_id: (-targets[model_id].value_us, model_id))[:_SITED_PER_ROUND]
    left = sorted({copy.desired.model_id for site in ctx.state.sites.values() for copy in site.wanted.values()})
    return list(dict.fromkeys([*named, *wanted, *left]))


def _may_lack(ctx: Context, model_id: ModelId, target: Target) -> bool:
    """A quick look: whether a target may not be reached yet."""
    pools = len(ctx.columns.where.by_model.get(model_id, ()))
    return ctx.columns.prices.copies(model_id) < target.gpu or pools < max(target.disk, target.sites_min) or target.host > 0


def _site_model(ctx: Context, model_id: ModelId) -> None:
    model = ctx.state.models.get(model_id)
    if model is None:
        return
    wishes.review(ctx, model_id)
    wishes.keep_promises(ctx, model)
    target = ctx.residency.targets.get(model_id)
    if target is not None:
        _approach(ctx, model, target)


def _approach(ctx: Context, model: ModelSpec, target: Target) -> None:
    """Want what a target still lacks, at most a few copies a round."""
    model_id = model.model_id
    there = wishes.whereabouts(ctx, model_id)
    lacking = {
        Tier.GPU: max(target.gpu - ctx.columns.prices.copies(model_id) - there.coming[Tier.GPU], target.sites_min - len(there.gpu_sites)),
        Tier.DISK: target.disk - len(there.disk_sites),
        Tier.HOST: target.host - there.hosts - there.coming[Tier.HOST],
    }
    if all(count <= 0 for count in lacking.values()):
        return
    open_pools = np.flatnonzero(sitings.codes(ctx, model) == 0)
    left = _NEW_PER_ROUND
    for tier in (Tier.GPU, Tier.DISK, Tier.HOST):
        while left > 0 and lacking[tier] > 0:
            spread = tier is Tier.DISK or len(there.gpu_sites) < target.sites_min
            avoid = there.disk_sites if tier is Tier.DISK else there.gpu_sites if spread else set()
            site_id = _one_more(ctx, model, tier, open_pools, avoid, target)
            if site_id is None:
                break
            (there.disk_sites if tier is Tier.DISK else there.gpu_sites).add(site_id)
            lacking[tier] -= 1
            left -= 1


def _one_more(ctx: Context, model: ModelSpec, tier: Tier, pools: Ints, avoid: set[SiteId], target: Target) -> SiteId | None:
    """Want one more copy at the best place that has room for it, and whose link has a share to spare; its site."""
    spare = sitings.Spare(worth_us=target.value_us)
    regions = Counter(ctx.state.sites[site_id].record.spec.region for site_id in sorted(avoid))
    looks = 0
    for index in sitings.in_order(ctx, model, pools, regions):
        column = ctx.columns.columns[index]
        site = column.site
        if site.site_id in avoid or not _has_room(site) or (model.model_id not in column.disk and ctx.now_us < site.prefetch_from_us):
            continue
        looks += 1
        if looks > _LOOKS_MAX:
            break
        siting = (
            sitings.on_gpu(ctx, model, column, spare, more=True)
            if tier is Tier.GPU
            else sitings.on_disk(ctx, model, column, spare)
            if tier is Tier.DISK
            else sitings.in_host(ctx, model, column)
        )
        if siting is None or siting.held or (siting.fetch_bytes and ctx.now_us < site.prefetch_from_us):
            continue
        wishes.want(ctx, model, siting, Cause.TARGET)
        return site.site_id
    return None


def _has_room(site: Site) -> bool:
    return site.connection is SiteConnection.CONNECTED and len(site.wanted) < limits.DESIRED_PER_SITE_MAX
