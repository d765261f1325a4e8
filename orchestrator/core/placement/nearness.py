"""Where the weights of a model come from for a node: what the node has of them, else what its site has.

Decides the source of one node; from how far away the origin store or a peer site is, `sources` says. Must not know slots or costs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from atoll.model.ids import ModelId
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.rows import FETCH_MAX_US, Source


class Near(NamedTuple):
    """What a site has of a model: whether a node holds it, and when the earliest fetch in flight should be done (None: there is none)."""

    held: bool
    flight_us: int | None


NOTHING_NEAR: Final = Near(held=False, flight_us=None)


class Way(NamedTuple):
    """Where weights come from, and when a fetch in flight that they are waited for should be done (0: there is none)."""

    source: Source
    until_us: int


class Fetch(NamedTuple):
    """Of one pool, how long a fetch from outside of the site takes as the links are now, how long a copy within it, and what follows where
    another node's fetch has landed."""

    outside_us: int
    copy_us: int
    landed_us: int


def source_beside(near: Near) -> Way:
    """For a node that has nothing of the model itself."""
    if near.held:
        return Way(Source.SITE, 0)
    return Way(Source.ORIGIN, 0) if near.flight_us is None else Way(Source.SITE_FETCHING, near.flight_us)


def source_at(column: Column, model_id: ModelId, node_index: int, near: Near) -> Way:
    """For a node of the pool, whatever it has."""
    if node_index in column.host.get(model_id, ()):
        return Way(Source.HOST, 0)
    if node_index in column.disk.get(model_id, ()):
        return Way(Source.DISK, 0)
    if node_index in column.fetching.get(model_id, ()):
        return Way(Source.FETCHING, column.pool.nodes[node_index].fetching[model_id])
    return source_beside(near)


def fetch_us(way: Way, fetch: Fetch, now_us: int) -> tuple[Source, int]:
    """How long until the weights are there, as the tables reckon (`kernel`), and from where that is."""
    match way.source:
        case Source.HOST | Source.DISK:
            return way.source, 0
        case Source.FETCHING:
            return way.source, max(way.until_us - now_us, 0)
        case Source.SITE if fetch.copy_us < fetch.outside_us:
            return way.source, fetch.copy_us
        case Source.SITE_FETCHING if way.until_us > now_us:
            return way.source, min(way.until_us - now_us + fetch.landed_us, FETCH_MAX_US)
        case _:
            return Source.ORIGIN, fetch.outside_us
