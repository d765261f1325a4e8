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


class Arrival(NamedTuple):
    """When weights are on a node, from now on: `there_us` passes at least, whoever has a slot there, and `fetch_us` after that, or after a
    slot is free, whichever is later. What is under way comes by itself; a fetch, or a copy, begins for who has a slot."""

    source: Source
    there_us: int
    fetch_us: int

    def begins_us(self, free_us: int) -> int:
        """When a job begins in a slot that is free after this time: slot and weights are there."""
        return min(max(free_us, self.there_us) + self.fetch_us, FETCH_MAX_US)


HERE: Final = Arrival(Source.DISK, 0, 0)


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


def arrival(way: Way, fetch: Fetch, now_us: int) -> Arrival:
    """When the weights come that way."""
    match way.source:
        case Source.HOST | Source.DISK:
            return Arrival(way.source, 0, 0)
        case Source.FETCHING:
            return Arrival(way.source, max(way.until_us - now_us, 0), 0)
        case Source.SITE if fetch.copy_us < fetch.outside_us:
            return Arrival(way.source, 0, fetch.copy_us)
        case Source.SITE_FETCHING if way.until_us > now_us:
            return Arrival(way.source, way.until_us - now_us, fetch.landed_us)
        case _:
            return Arrival(Source.ORIGIN, 0, fetch.outside_us)
