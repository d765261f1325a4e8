"""Wishes: the copies that sites are told to hold ahead of demand, one entry per copy, and what becomes of them.

Decides when a wish is met, over, or must move. A wish of the loop ends when its copy is there or has not come in half an hour; one of a pin
stands as long as the pin, one of a push as long as the push. Must not know what copies are worth.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from atoll.model.assignment import CopyKey, DesiredReplica
from atoll.model.ids import ModelId, NodeId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import FetchFrom
from atoll.model.replica import Tier
from atoll.model.residency import Cause
from atoll.physics.coldstart import transfer_us
from orchestrator.core import flights, sitings
from orchestrator.core.context import Context
from orchestrator.core.outputs import CopyWanted
from orchestrator.core.placement.column import Column
from orchestrator.core.state import Node, Site, Wanted

# A copy that has not come in half an hour is tried elsewhere: 60 GB over the slowest link of the fleet take twenty minutes.
_PATIENCE_US: Final = 1_800_000_000


@dataclass(slots=True, kw_only=True)
class Whereabouts:
    """Where a model is or will be: sites with a copy on a GPU or on disk, nodes with one in memory, wishes under way by tier."""

    gpu_sites: set[SiteId] = field(default_factory=set)
    disk_sites: set[SiteId] = field(default_factory=set)
    hosts: int = 0
    coming: Counter[Tier] = field(default_factory=Counter)


def whereabouts(ctx: Context, model_id: ModelId) -> Whereabouts:
    """A look at the pools that have something of the model, and at the wishes for it."""
    found = Whereabouts()
    for index in ctx.columns.where.by_model.get(model_id, ()):
        column = ctx.columns.columns[index]
        site_id = column.site.site_id
        if model_id in column.replicas:
            found.gpu_sites.add(site_id)
        if model_id in column.disk or model_id in column.fetching:
            found.disk_sites.add(site_id)
        found.hosts += len(column.host.get(model_id, ()))
    for site in _with_wishes(ctx, model_id):
        for wanted in of_model(site, model_id):
            if met(site, wanted.desired):
                continue
            found.coming[wanted.desired.tier] += 1
            found.disk_sites.add(site.site_id)
            if wanted.desired.tier is Tier.GPU:
                found.gpu_sites.add(site.site_id)
    return found


def _with_wishes(ctx: Context, model_id: ModelId) -> list[Site]:
    return [ctx.state.sites[site_id] for site_id in sorted(ctx.wishes.get(model_id, ()))]


def of_model(site: Site, model_id: ModelId) -> list[Wanted]:
    """Wishes for a model at a site."""
    return [wanted for wanted in site.wanted.values() if wanted.desired.model_id == model_id]


def want(ctx: Context, model: ModelSpec, siting: sitings.Siting, cause: Cause, *, pin: bool = False) -> None:
    """Tell a site to hold a copy; what has to be fetched for it counts on the site's link from now on."""
    column, site, node = siting.column, siting.column.site, siting.node
    desired = DesiredReplica(
        model_id=model.model_id,
        node_id=node.node_id,
        index=siting.slot_index,
        tier=siting.tier,
        pin=pin,
        evict=() if siting.held else siting.evict,
    )
    fetch_bytes = siting.fetch_bytes if model.model_id not in node.fetching else 0
    times = sitings.times(ctx, model, column) if fetch_bytes else None
    fetch_from = times.fetch_from if times is not None else None
    _put(ctx, site, Wanted(desired=desired, cause=cause, since_us=ctx.now_us, fetch_from=fetch_from))
    if times is not None:
        _charge_link(ctx, column, model, times)
        note_fetch(ctx, column, siting.node_index, model, times.fetch_us, times.fetch_from)
    ctx.decisions.append(CopyWanted(site_id=site.site_id, model_id=model.model_id, tier=siting.tier, cause=cause, fetch_bytes=fetch_bytes))


def _put(ctx: Context, site: Site, wanted: Wanted) -> None:
    key = wanted.desired.key
    if key in site.wanted:
        _count(ctx, site.wanted[key], -1)
    _count(ctx, wanted, 1)
    site.wanted[key] = wanted
    site.wanted_changed[key] = None
    site.unwanted.pop(key, None)
    ctx.wishes.setdefault(wanted.desired.model_id, {})[site.site_id] = None
    ctx.touch_assignment(site)


def index(ctx: Context, site: Site) -> None:
    """Index the wishes of a site that was restored."""
    for wanted in site.wanted.values():
        ctx.wishes.setdefault(wanted.desired.model_id, {})[site.site_id] = None
        _count(ctx, wanted, 1)


def _count(ctx: Context, wanted: Wanted, step: int) -> None:
    """Copies named to make room may go at any moment: whoever names the next reckons without them."""
    for model_id in wanted.desired.evict if wanted.desired.tier is Tier.GPU else ():
        ctx.making_room[model_id] += step
        if not ctx.making_room[model_id]:
            del ctx.making_room[model_id]


def unwant(ctx: Context, site: Site, key: CopyKey) -> None:
    """A wish is over. What is there stays until its room is needed."""
    wanted = site.wanted.pop(key, None)
    if wanted is None:
        return
    _count(ctx, wanted, -1)
    site.wanted_changed.pop(key, None)
    site.unwanted[key] = wanted.desired
    if not of_model(site, wanted.desired.model_id):
        sites = ctx.wishes[wanted.desired.model_id]
        del sites[site.site_id]
        if not sites:
            del ctx.wishes[wanted.desired.model_id]
    ctx.touch_assignment(site)


def describe_again(ctx: Context, model_id: ModelId) -> None:
    """What is said of a model changed: sites that should hold it are told anew."""
    for site in _with_wishes(ctx, model_id):
        for wanted in of_model(site, model_id):
            site.wanted_changed[wanted.desired.key] = None
        ctx.touch_assignment(site)


def _charge_link(ctx: Context, column: Column, model: ModelSpec, times: sitings.Times) -> None:
    """The next copy ahead of demand may come over this link when this one has come at the share that such copies have."""
    alone_us = transfer_us(model.weights_bytes, int(ctx.columns.origin_rate[column.index]), 0)
    if times.fetch_from is not None:
        alone_us = times.fetch_us // (1 + column.site.fetches)
    site = column.site
    site.prefetch_from_us = max(site.prefetch_from_us, ctx.now_us) + alone_us * 1_000 // max(ctx.policy.prefetch_link_milli, 1)


def told_fetch(ctx: Context, column: Column, node_index: int, model: ModelSpec, left_bytes: int) -> None:
    """A site tells of a fetch that is not known: from the sources that were chosen for it, as far as that is known, and at their rate."""
    site, node = column.site, column.pool.nodes[node_index]
    lives = (site.attempts[key] for slot in node.slots for key in slot.attempts if key in site.attempts)
    known = [live.fetch_from for live in lives if live.model_id == model.model_id]
    known += [wanted.fetch_from for wanted in of_model(site, model.model_id) if wanted.desired.node_id == node.node_id]
    chosen = next((one for one in known if one is not None), None)
    left_bytes = min(max(left_bytes, 0), model.weights_bytes)
    ways = ctx.estimator.ways(model)
    if chosen is not None and chosen == ways.source(column.index):
        fetch_us = int(ways.us[column.index]) * left_bytes // max(model.weights_bytes, 1)
    elif chosen is None and ctx.columns.where.holds(column, model.model_id):
        fetch_us = transfer_us(left_bytes, int(ctx.columns.lan_rate[column.index]), 0)
    else:
        fetch_us = transfer_us(left_bytes, int(ctx.columns.origin_rate[column.index]), 0)
    note_fetch(ctx, column, node_index, model, fetch_us, chosen, left_bytes=left_bytes)


def note_fetch(
    ctx: Context,
    column: Column,
    node_index: int,
    model: ModelSpec,
    fetch_us: int,
    fetch_from: FetchFrom | None,
    *,
    left_bytes: int | None = None,
) -> None:
    """Weights are on their way to a node: placing sees the flow, here and at the peers that it reads, and jobs may join it. Where the site
    has them they are copied from there, unless it was told to fetch them from outside (`fetch_from`)."""
    node = column.pool.nodes[node_index]
    copied = fetch_from is None and ctx.columns.where.holds(column, model.model_id)
    before = column.site.copies if copied else column.site.fetches
    flights.shared(ctx, column.site, copying=copied, before=before, after=before + 1)
    flights.began(ctx, node, model.model_id, model.weights_bytes if left_bytes is None else left_bytes, ctx.now_us + fetch_us)
    if copied:
        node.copying.add(model.model_id)
        column.site.copies += 1
    else:
        column.site.fetches += 1
        if fetch_from is not None and fetch_from.sites:
            node.sources[model.model_id] = fetch_from.sites
            ctx.columns.peers.reads(fetch_from.sites, 1)
    ctx.columns.node_changed(column, node_index, "fetching", model.model_id, present=True)
    ctx.columns.flows_changed(column.site)


# --- what becomes of them -----------------------------------------------------------------------------------------------------


def find_node(site: Site, node_id: NodeId) -> Node | None:
    """The node of this name, if the site (still) has it."""
    for pool in site.pools.values():
        index = pool.node_index.get(node_id)
        if index is not None:
            return pool.nodes[index]
    return None


def met(site: Site, desired: DesiredReplica) -> bool:
    """Whether the copy is there."""
    node = find_node(site, desired.node_id)
    if node is None:
        return False
    match desired.tier:
        case Tier.GPU:
            slots = [slot for slot in node.slots if desired.index in (None, slot.index)]
            return any(sitings.holds(slot, desired.model_id) for slot in slots)
        case Tier.HOST:
            return desired.model_id in node.host_models
        case _:
            return desired.model_id in node.disk_models


def review(ctx: Context, model_id: ModelId) -> None:
    """End the wishes for a model that are met or over; those that stay let nothing else give way any more once they are met."""
    for site in _with_wishes(ctx, model_id):
        for wanted in of_model(site, model_id):
            desired = wanted.desired
            done = met(site, desired)
            gone = find_node(site, desired.node_id) is None
            late = ctx.now_us - wanted.since_us > _PATIENCE_US
            if gone or not _stands(ctx, site, wanted) or (wanted.cause is Cause.TARGET and (done or late)):
                unwant(ctx, site, desired.key)
            elif done and desired.evict:
                _put(ctx, site, replace(wanted, desired=replace(desired, evict=())))


def _stands(ctx: Context, site: Site, wanted: Wanted) -> bool:
    """Whether whoever wanted the copy still does."""
    model_id = wanted.desired.model_id
    match wanted.cause:
        case Cause.PIN:
            return (model_id, site.site_id) in ctx.state.pins
        case Cause.PUSH:
            push = ctx.state.pushes.get(model_id)
            return push is not None and site.site_id in push.sites
        case _:
            return model_id in ctx.residency.targets


def keep_promises(ctx: Context, model: ModelSpec) -> None:
    """Want what pins and pushes of a model lack: sites that were away, nodes that are new, copies that were lost."""
    for (model_id, site_id), pin in ctx.state.pins.items():
        if model_id == model.model_id and site_id in ctx.state.sites:
            ensure(ctx, model, ctx.state.sites[site_id], pin.tier, Cause.PIN)
    push = ctx.state.pushes.get(model.model_id)
    for site_id in push.sites if push is not None else ():
        site = ctx.state.sites.get(site_id)
        if site is not None and push is not None:
            ensure(ctx, model, site, Tier.GPU if site_id in push.warm else Tier.DISK, Cause.PUSH)


def ensure(ctx: Context, model: ModelSpec, site: Site, tier: Tier, cause: Cause) -> bool:
    """See that a copy is wanted on the tier of the site, for good if it is a pin. Whether there is a place for it."""
    pin = cause is Cause.PIN
    for wanted in of_model(site, model.model_id):
        if wanted.desired.tier is tier and find_node(site, wanted.desired.node_id) is not None:
            if pin and not wanted.desired.pin:
                _put(ctx, site, replace(wanted, desired=replace(wanted.desired, pin=True), cause=cause))
            return True
    siting = find(ctx, model, site, tier)
    if siting is None:
        return False
    want(ctx, model, siting, cause, pin=pin)
    return True


def find(ctx: Context, model: ModelSpec, site: Site, tier: Tier) -> sitings.Siting | None:
    """The best place for a copy within a site, for which an operator lets others give way."""
    codes = sitings.codes(ctx, model)
    pools = np.array([column.index for column in ctx.columns.of_site(site) if codes[column.index] == 0], dtype=np.int64)
    spare = sitings.Spare(worth_us=None)
    for index in sitings.in_order(ctx, model, pools, Counter()):
        column = ctx.columns.columns[index]
        found = (
            sitings.on_gpu(ctx, model, column, spare)
            if tier is Tier.GPU
            else sitings.on_disk(ctx, model, column, spare)
            if tier is Tier.DISK
            else sitings.in_host(ctx, model, column)
        )
        if found is not None:
            return found
    return None
