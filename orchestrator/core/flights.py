"""Fetches under way: when each should be done, by what has come of it and how many share its way.

Decides the predicted end of a fetch as decisions and ETAs to come see it: what is left at the pace that is expected. The pace is that of
its decision; each report moves it towards what was seen, and a fetch that begins or ends on the same way slows the others down or lets
them go on. What was predicted for those who wait stays as it was told them. Must not know why anything is fetched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.ids import ModelId
from orchestrator.core import loading
from orchestrator.core.context import Context
from orchestrator.core.drift import has_moved
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.rows import FETCH_MAX_US
from orchestrator.core.state import Flight, Node, Site

_GB: Final = 10**9
# What is known of the pace before anything was seen weighs as much as this share of the weights does that came since.
_PRIOR_PARTS: Final = 16
# A fetch of which nothing comes has an eighth of the time for which nothing came yet, at least: it is not about to be there for ever.
_LEFT_PARTS: Final = 8
# One more flow beside so many takes less than a ninth from each: the next reports tell as much, and nobody is looked at for it.
_SHARED_MAX: Final = 8


def began(ctx: Context, node: Node, model_id: ModelId, left_bytes: int, until_us: int) -> None:
    """A fetch is known from now on, and when it should be done."""
    pace = (until_us - ctx.now_us) * _GB // max(left_bytes, 1)
    node.flights[model_id] = Flight(from_us=ctx.now_us, told_us=ctx.now_us, left_bytes=left_bytes, us_per_gb=pace)
    node.fetching[model_id] = until_us


def told(ctx: Context, column: Column, node_index: int, model_id: ModelId, left_bytes: int, total_bytes: int) -> None:
    """A site tells how much of a fetch has yet to come."""
    known = column.pool.nodes[node_index].flights[model_id]
    came = known.left_bytes - left_bytes
    if came > 0:
        prior_bytes = max(total_bytes // _PRIOR_PARTS, 1)
        pace = (known.us_per_gb * prior_bytes + (ctx.now_us - known.told_us) * _GB) // (prior_bytes + came)
        known = replace(known, told_us=ctx.now_us, left_bytes=left_bytes, us_per_gb=pace)
    _expect(ctx, column, node_index, model_id, known)


def shared(ctx: Context, site: Site, *, copying: bool, before: int, after: int) -> None:
    """So many fetches share the site's way to its sources (or, `copying`, that between its nodes) where `before` did: what is left of the
    others takes as much longer or shorter."""
    if not 0 < min(before, after) <= _SHARED_MAX:
        return
    for column in ctx.columns.of_site(site):
        for model_id, nodes in list(column.fetching.items()):
            for node_index in sorted(nodes):
                node = column.pool.nodes[node_index]
                known = node.flights[model_id]
                if (model_id in node.copying) is copying:
                    left_us = max(node.fetching[model_id] - ctx.now_us, 0) * after // before
                    slower = replace(known, us_per_gb=known.us_per_gb * after // before)
                    _put(ctx, column, node_index, model_id, slower, ctx.now_us + min(left_us, FETCH_MAX_US))


def _expect(ctx: Context, column: Column, node_index: int, model_id: ModelId, flight: Flight) -> None:
    """The end that follows from what is left and the pace; one that is late has some time left."""
    should_us = flight.told_us + min(flight.left_bytes * flight.us_per_gb // _GB, FETCH_MAX_US)
    _put(ctx, column, node_index, model_id, flight, max(should_us, ctx.now_us + (ctx.now_us - flight.told_us) // _LEFT_PARTS))


def _put(ctx: Context, column: Column, node_index: int, model_id: ModelId, flight: Flight, until_us: int) -> None:
    node = column.pool.nodes[node_index]
    node.flights[model_id] = flight
    if has_moved(node.fetching[model_id], until_us, ctx.now_us):
        node.fetching[model_id] = until_us
        ctx.columns.node_changed(column, node_index, "fetching", model_id, present=True)
        loading.fetch_moved(ctx, column, node_index, model_id)
