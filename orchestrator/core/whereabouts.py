"""Where a model is, where it should be and why: what `atoll models where` shows.

Decides nothing and changes nothing.
"""

from __future__ import annotations

from typing import Final

from atoll.model.ids import ModelId
from atoll.model.replica import ReplicaState, Tier
from atoll.model.residency import TIER_NAMES, Cause, CopyView, ModelPlaces, TargetView
from orchestrator.core import wishes
from orchestrator.core.context import Context
from orchestrator.core.placement.column import Column
from orchestrator.core.residency import Target
from orchestrator.core.state import Node

# Events of one model in one answer; the ring holds as many of all models.
_EVENTS_SHOWN: Final = 200
# Lines in one answer: of a model that is on more nodes, those of the first sites by name.
_COPIES_SHOWN: Final = 20_000
# What is still loading is on its way, as weights are that are fetched: whoever waits for a push waits until it is warm.
_RESIDENT: Final = (ReplicaState.WARM, ReplicaState.BUSY, ReplicaState.EVICTING)


def model_places(ctx: Context, model_id: ModelId, now_us: int, *, events: bool) -> ModelPlaces:
    """Copies by site and node, the target with what it rests on, pins, the push, and, if asked for, what came and left lately."""
    target = ctx.residency.targets.get(model_id, Target())
    model = ctx.state.models.get(model_id)
    lately = [event for event in ctx.residency.ring if event.model_id == model_id] if events else []
    return ModelPlaces(
        model_id=model_id,
        now_us=now_us,
        weights_bytes=model.weights_bytes if model is not None else 0,
        copies=tuple(copies(ctx, model_id, now_us)),
        target=TargetView(
            gpu=target.gpu,
            host=target.host,
            disk=target.disk,
            sites_min=target.sites_min,
            rate_per_hour_milli=ctx.demand.rate_per_hour_milli(model_id),
            average_per_hour_milli=ctx.demand.averages_per_hour_milli(model_id, now_us),
            value_us_per_hour=target.value_us,
            arrivals=ctx.demand.arrivals(model_id),
        ),
        pins=tuple(pin for key, pin in sorted(ctx.state.pins.items()) if key[0] == model_id),
        push=ctx.state.pushes.get(model_id),
        events=tuple(lately[-_EVENTS_SHOWN:]),
    )


def copies(ctx: Context, model_id: ModelId, now_us: int) -> list[CopyView]:
    """Every tier of every node that has the model or should, by site and node, nearest tier first."""
    indexes = set(ctx.columns.where.by_model.get(model_id, ()))
    for site_id in ctx.wishes.get(model_id, ()):
        indexes.update(column.index for column in ctx.columns.of_site(ctx.state.sites[site_id]))
    found: list[CopyView] = []
    for index in sorted(indexes):
        column = ctx.columns.columns[index]
        for node in column.pool.nodes:
            found += _of_node(column, node, model_id, now_us)
    return found[:_COPIES_SHOWN]


def _of_node(column: Column, node: Node, model_id: ModelId, now_us: int) -> list[CopyView]:
    wanted = {one.desired.tier: one for one in wishes.of_model(column.site, model_id) if one.desired.node_id == node.node_id}
    replicas = [replica for slot in node.slots if slot.ready for replica in slot.replicas.values() if replica.model_id == model_id]
    there = [replica for replica in replicas if replica.state in _RESIDENT]
    left = node.flights[model_id].left_bytes if model_id in node.flights else -1
    counts = {Tier.GPU: len(there), Tier.HOST: int(model_id in node.host_models), Tier.DISK: int(model_id in node.disk_models)}
    views = []
    for tier, count in counts.items():
        wish = wanted.get(tier)
        bytes_left = left if tier is Tier.DISK else -1
        if not count and wish is None and bytes_left < 0:
            continue
        since_us = max((replica.warm_us for replica in there), default=0) if tier is Tier.GPU else 0
        views.append(
            CopyView(
                site_id=column.site.site_id,
                node_id=node.node_id,
                tier=tier,
                copies=count,
                busy=sum(1 for replica in there if replica.state is ReplicaState.BUSY) if tier is Tier.GPU else 0,
                # A pin keeps the copy and those below it: what a replica is loaded from stays too.
                pinned=any(one.desired.pin and one.desired.tier <= tier for one in wanted.values()),
                wanted=wish.cause if wish is not None else None,
                bytes_left=bytes_left,
                age_us=now_us - since_us if since_us else -1,
            )
        )
    return views


def copy_counts(ctx: Context) -> tuple[tuple[str, int, int], ...]:
    """Of each tier: its name, copies wanted by targets (or by pins and pushes beyond them), copies that there are."""
    targets = ctx.residency.targets.values()
    asked = {Tier.GPU: 0, Tier.HOST: 0, Tier.DISK: 0}
    for site in ctx.state.sites.values():
        for wanted in site.wanted.values():
            asked[wanted.desired.tier] += wanted.cause is not Cause.TARGET
    nodes = [node for site in ctx.state.sites.values() for pool in site.pools.values() for node in pool.nodes]
    actual = {
        Tier.GPU: sum(len(slot.replicas) for node in nodes for slot in node.slots if slot.ready),
        Tier.HOST: sum(len(node.host_models) for node in nodes),
        Tier.DISK: sum(len(node.disk_models) for node in nodes),
    }
    aimed = {
        Tier.GPU: sum(target.gpu for target in targets),
        Tier.HOST: sum(target.host for target in targets),
        Tier.DISK: sum(target.disk for target in targets),
    }
    return tuple((TIER_NAMES[tier], aimed[tier] + asked[tier], actual[tier]) for tier in asked)
