"""Where one more copy of a model goes: which sites can hold it, how fast each would serve it, and which node or slot takes it.

Decides by the same filters as placing, then by the model's execution time there and what bringing it costs, then by regions that have
none yet. Must not know why the copy is wanted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from atoll.model.ids import ModelId, SiteId, TenantId
from atoll.model.job import JobSpec
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import FetchFrom, Reason
from atoll.model.replica import ReplicaState, Tier
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us
from atoll.physics.memory import peak_bytes
from orchestrator.core.context import Context
from orchestrator.core.placement.choose import PAST_THE_SITE
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.column import Column, free_bytes, is_free
from orchestrator.core.placement.columns import REASONS
from orchestrator.core.placement.rows import FETCH_MAX_US, Ints
from orchestrator.core.state import Node, ReplicaKey, Slot

# Bringing a copy is paid once and used many times: it weighs as much as a twentieth of a job's execution.
_USES: Final = 20
_RESIDENT: Final = (ReplicaState.WARM, ReplicaState.BUSY, ReplicaState.LOADING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Siting:
    """A place for a copy: node and, on the GPU, slot. `evict` gives way; `fetch_bytes` must come first; `held`: it is there already."""

    column: Column
    node_index: int
    slot_index: int | None
    tier: Tier
    evict: tuple[ModelId, ...] = ()
    fetch_bytes: int = 0
    held: bool = False

    @property
    def node(self) -> Node:
        """The node it is on."""
        return self.column.pool.nodes[self.node_index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a copy in a pool takes: executing a job of the default shape, fetching (from another node of the site, peer sites, or the origin
    store) and loading the weights. Microseconds."""

    execution_us: int
    fetch_us: int
    fetch_from: FetchFrom | None
    load_us: int

    @property
    def cost_us(self) -> int:
        """What places are ordered by."""
        return self.execution_us + (self.fetch_us + self.load_us) // _USES


def need_bytes(model: ModelSpec) -> int:
    """Memory of a GPU for jobs of the model's default shape: weights and activations."""
    return model.resident_bytes + peak_bytes(model, model.default_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """What may give way for a copy: what is worth less than `worth_us` per hour and GB by a fifth; None (an operator asks): anything.

    Never what is pinned there, nor the last warm copy of a model in demand; `named` are copies that a plan in the making lets go.
    """

    worth_us: int | None
    named: Counter[ModelId] = field(default_factory=Counter)

    def allows(self, ctx: Context, site_id: SiteId, model_id: ModelId) -> bool:
        """Whether copies of this model at the site may go."""
        if ctx.residency.pinned(ctx, model_id, site_id) or ctx.residency.last_warm(ctx, model_id, named=self.named[model_id]):
            return False
        return self.worth_us is None or ctx.residency.value_us(model_id) * 5 < self.worth_us * 4


def codes(ctx: Context, model: ModelSpec) -> Ints:
    """Per pool the number of the first reason why it cannot hold and run the model now; 0: it can."""
    columns = ctx.columns
    spec = JobSpec(tenant=TenantId("residency"), model_id=model.model_id, prompt="", shape=model.default_shape, precision=model.precision)
    need = need_bytes(model)
    # A copy serves rehearsals at twins and real jobs at real sites: each pool is asked what it could do.
    real, rehearsed = (
        ctx.estimator.filters.standing(class_of(replace(spec, simulated=simulated)), model, need) for simulated in (False, True)
    )
    found = np.where(columns.simulated, rehearsed, real)
    return np.asarray(np.where((found == 0) & ~columns.accepting, columns.reason, found), dtype=np.int64)


def reasons(ctx: Context, model: ModelSpec) -> list[Reason | None]:
    """As `codes`, by name."""
    return [REASONS[int(code)] for code in codes(ctx, model)]


def times(ctx: Context, model: ModelSpec, column: Column) -> Times:
    """What a copy in this pool takes, by the rates that placing reckons with, and corrected by what was learned as placing does."""
    columns, index, pool = ctx.columns, column.index, column.pool
    ways, node, learned = ctx.estimator.ways(model), pool.spec.node, ctx.estimator.factors(model)
    h2d = int(columns.h2d_rate[index]) or node.h2d_bytes_per_s or pool.gpu.h2d_bytes_per_s
    outside_us = min(int(ways.us[index]) * (1 + column.site.fetches), FETCH_MAX_US)
    copy_us = min(transfer_us(model.weights_bytes, int(columns.lan_rate[index]), 0) * (1 + column.site.copies), FETCH_MAX_US)
    held = columns.where.holds(column, model.model_id)
    copied = held and copy_us < outside_us
    return Times(
        execution_us=learned.at(Component.EXECUTION, index, execution_us(model, model.default_shape, pool.gpu, model.precision)),
        fetch_us=copy_us if copied else outside_us,
        fetch_from=None if copied else ways.source(index) or (PAST_THE_SITE if held else None),
        load_us=learned.at(Component.LOAD, index, stage_us(model, int(columns.disk_rate[index]), h2d, from_host=False) + init_us(model)),
    )


def in_order(ctx: Context, model: ModelSpec, pools: Ints, taken: Counter[str]) -> list[int]:
    """Pools by cost; a region that holds `taken` copies counts so many times slower. Ties go by name, which is the order of pools."""
    columns = ctx.columns
    fetch_us = ctx.estimator.ways(model).us.copy()
    for index in columns.where.by_model.get(model.model_id, ()):
        if model.model_id in columns.columns[index].disk:
            fetch_us[index] = 0
    executing_us = ctx.estimator.factors(model).times(Component.EXECUTION, ctx.estimator.executions(model).by_pool_us)
    cost_us = executing_us + fetch_us // _USES
    if taken:
        cost_us = cost_us * np.array([1 + taken[region] for region in columns.regions], dtype=np.int64)
    return [int(index) for index in pools[np.argsort(cost_us[pools], kind="stable")]]


def on_disk(ctx: Context, model: ModelSpec, column: Column, spare: Spare) -> Siting | None:
    """The node of a pool whose disk takes the weights: one that has them, one that gets them, the emptiest, one where others give way."""
    best: tuple[int, int, Siting] | None = None
    for index, node in enumerate(column.pool.nodes):
        base = Siting(column=column, node_index=index, slot_index=None, tier=Tier.DISK, fetch_bytes=model.weights_bytes)
        if model.model_id in node.disk_models:
            return replace(base, held=True, fetch_bytes=0)
        room = node.disk_free_bytes - coming_bytes(ctx, column, node)
        if model.model_id in node.fetching:
            rank, siting = 0, base
        elif room >= model.weights_bytes:
            rank, siting = 1, base
        else:
            evict = _disk_victims(ctx, column, node, model.weights_bytes - room, spare)
            if evict is None:
                continue
            rank, siting = 2, replace(base, evict=evict)
        if best is None or (rank, -room) < best[:2]:
            best = (rank, -room, siting)
    return best[2] if best is not None else None


def coming_bytes(ctx: Context, column: Column, node: Node) -> int:
    """Bytes on their way to a node's disk, or wanted there."""
    wanted = (one.desired.model_id for one in column.site.wanted.values() if one.desired.node_id == node.node_id)
    names = {*node.fetching, *wanted} - node.disk_models
    return sum(ctx.state.models[name].weights_bytes for name in names if name in ctx.state.models)


def in_host(ctx: Context, model: ModelSpec, column: Column) -> Siting | None:
    """The node of a pool whose memory takes the weights: best one that has them on disk."""
    best: Siting | None = None
    for index, node in enumerate(column.pool.nodes):
        base = Siting(column=column, node_index=index, slot_index=None, tier=Tier.HOST)
        if model.model_id in node.host_models:
            return replace(base, held=True)
        if not node.host_tier or column.pool.spec.node.host_memory_bytes < model.weights_bytes:
            continue
        if model.model_id in node.disk_models:
            best = base if best is None or best.fetch_bytes else best
        elif best is None and _disk_takes(ctx, column, node, model):
            best = replace(base, fetch_bytes=model.weights_bytes)
    return best


def on_gpu(ctx: Context, model: ModelSpec, column: Column, spare: Spare, *, more: bool = False) -> Siting | None:
    """The idle slot of a pool that takes one more replica: best where the weights are, then with room, then where others give way.

    Without `more` a replica that is there will do.
    """
    need = need_bytes(model)
    best: tuple[tuple[int, int, int], Siting] | None = None
    for node_index, node in enumerate(column.pool.nodes):
        at_hand = model.model_id in node.disk_models or model.model_id in node.host_models
        for slot in node.slots:
            base = Siting(
                column=column,
                node_index=node_index,
                slot_index=slot.index,
                tier=Tier.GPU,
                fetch_bytes=0 if at_hand else model.weights_bytes,
            )
            if holds(slot, model.model_id):
                if not more:
                    return replace(base, held=True, fetch_bytes=0)
                continue
            if not is_free(slot) or _spoken_for(column, node, slot):
                continue
            short = need - free_bytes(slot)
            evict = _gpu_victims(ctx, column, slot, model, short, spare) if short > 0 else ()
            if evict is None:
                continue
            if not at_hand and not _disk_takes(ctx, column, node, model):
                continue
            rank = (0 if at_hand else 1, len(evict), slot.last_used_us)
            if best is None or rank < best[0]:
                best = (rank, replace(base, evict=evict))
    return best[1] if best is not None else None


def holds(slot: Slot, model_id: ModelId) -> bool:
    """Whether a model is in a slot's memory, or being loaded."""
    replica = slot.replicas.get(ReplicaKey(model_id))
    return slot.ready and replica is not None and replica.state in _RESIDENT


def _spoken_for(column: Column, node: Node, slot: Slot) -> bool:
    """Whether another copy is wanted in the slot and not there yet."""
    wanted = (one.desired for one in column.site.wanted.values() if one.desired.tier is Tier.GPU and one.desired.node_id == node.node_id)
    return any(desired.index == slot.index and not holds(slot, desired.model_id) for desired in wanted)


def _disk_takes(ctx: Context, column: Column, node: Node, model: ModelSpec) -> bool:
    if model.model_id in node.fetching:
        return True
    keys = ((node.node_id, Tier.DISK, None, model.model_id),)
    if any(key in column.site.wanted for key in keys):
        return True
    return node.disk_free_bytes - coming_bytes(ctx, column, node) >= model.weights_bytes


def _gpu_victims(ctx: Context, column: Column, slot: Slot, model: ModelSpec, short: int, spare: Spare) -> tuple[ModelId, ...] | None:
    """The cheapest idle replicas of a slot that make `short` bytes of room; None: they cannot."""
    chosen: list[ModelId] = []
    for victim in ctx.columns.prices.victims(slot, column.pool, besides=ReplicaKey(model.model_id)):
        if short <= 0:
            break
        if spare.allows(ctx, column.site.site_id, victim.model_id):
            chosen.append(victim.model_id)
            short -= victim.memory_bytes
    return tuple(chosen) if short <= 0 else None


def _disk_victims(ctx: Context, column: Column, node: Node, short: int, spare: Spare) -> tuple[ModelId, ...] | None:
    """Weights on a node's disk that make room, those in least demand first; never what its slots use or somebody wants there."""
    used = {replica.model_id for slot in node.slots for replica in slot.replicas.values()}
    wanted = {one.desired.model_id for one in column.site.wanted.values() if one.desired.node_id == node.node_id}
    chosen: list[ModelId] = []
    order = sorted(node.disk_models - used - wanted, key=lambda model_id: (ctx.demand.rate_per_hour_milli(model_id), model_id))
    for model_id in order:
        if short <= 0:
            break
        victim = ctx.state.models.get(model_id)
        if victim is not None and spare.allows(ctx, column.site.site_id, model_id):
            chosen.append(model_id)
            short -= victim.weights_bytes
    return tuple(chosen) if short <= 0 else None
