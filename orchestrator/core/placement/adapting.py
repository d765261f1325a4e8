"""What bringing a job's adapters onto a replica takes, one by one: of each pool, before what was learned of it.

Decides what a replica lacks and what that comes to. Which replica is meant is `presence`'s to say. Must not know jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, SiteId
from atoll.physics.coldstart import patch_us
from orchestrator.core.placement.rows import FETCH_MAX_US, Ints
from orchestrator.core.placement.sets import NOBODY

# What a replica that holds some adapters, on a node whose disk has some, takes until it holds all: microseconds, a year at most.
Bringing = Callable[[Collection[AdapterId], Collection[AdapterId]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWays:
    """How long an adapter takes to each pool, and where it comes from; as `sources.Ways`, but it is read from one source."""

    us: Ints
    sites: tuple[SiteId, ...] = ()
    peers: Ints | None = None
    adapter: AdapterSpec
    version: int
    held: int

    def source(self, pool: int) -> SiteId | None:
        """The peer site from which a pool gets the adapter; None: the origin store."""
        return None if self.peers is None or self.peers[pool] == NOBODY else self.sites[int(self.peers[pool])]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapting:
    """The adapters of a class. One of them is compared by identity: the tables of `presence` are made anew where it is another."""

    ways: tuple[AdapterWays, ...]  # of those that the fleet (still) knows
    all_us: Ints  # per pool: fetching and patching every one of them

    def bringing(self, pool: int) -> Bringing:
        """What it takes in this pool. What is asked is kept: most of a pool's replicas hold the same."""
        costs = [(way.adapter.adapter_id, patch_us(way.adapter), int(way.us[pool])) for way in self.ways]
        known: dict[tuple[tuple[bool, bool], ...], int] = {}

        def us(held: Collection[AdapterId], disk: Collection[AdapterId]) -> int:
            has = tuple([(name in held, name in disk) for name, _, _ in costs])
            if has not in known:
                lacking = (patch + (0 if near else fetch) for (here, near), (_, patch, fetch) in zip(has, costs, strict=True) if not here)
                known[has] = min(sum(lacking), FETCH_MAX_US)
            return known[has]

        return us


def adapting(ways: Sequence[AdapterWays], pools: int) -> Adapting:
    """Of adapters with their ways to each of so many pools."""
    all_us = np.full(pools, sum(patch_us(way.adapter) for way in ways), dtype=np.int64)
    for way in ways:
        all_us += way.us
    return Adapting(ways=tuple(ways), all_us=np.minimum(all_us, FETCH_MAX_US))
