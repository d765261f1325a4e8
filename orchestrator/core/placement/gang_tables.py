"""The fleet's blocks as tables, one set for each size of gangs that somebody asks for: what `kernel` reads in the place of the slots' own.

Decides nothing; keeps indexes (`blocks`) and tables that can be rebuilt from the sites' state at any time. A size that nobody asks for
costs nothing; of one that is in use a slot that changes is noted, and its block looked at when the next gang is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from atoll.model.ids import PoolId, SiteId
from orchestrator.core.placement.blocks import Blocks
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.eviction import Prices
from orchestrator.core.placement.rows import FORBIDDEN_US, ROOM_WIDTH, Bools, Dyn, Ints, Room, Spot
from orchestrator.core.placement.vectors import room
from orchestrator.core.state import Slot

_NEVER: Final = 2**62


@dataclass(slots=True)
class _Size:
    """Blocks of one size: by pool, and as tables by pool and node."""

    blocks: list[Blocks]
    free: Ints
    soonest: Ints
    rooms: Ints
    node_rooms: Ints
    dirty: dict[int, None]
    is_stale: Bools  # nodes whose lines are old


class GangTables:
    """Blocks of all sizes in use."""

    __slots__ = ("_columns", "_prices", "_sizes")

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._columns: list[Column] = []
        self._sizes: dict[int, _Size] = {}

    def rebuild(self, columns: list[Column]) -> None:
        """Pools came or went, or have other numbers."""
        self._columns, self._sizes = columns, {}

    def touch(self, column: Column, slot: Slot) -> None:
        """A slot changed, or what leaves it has another price."""
        for known in self._sizes.values():
            known.blocks[column.index].touch(slot)

    def blocks(self, column: Column, size: int) -> Blocks:
        """The blocks of a pool."""
        return self._of(size).blocks[column.index]

    def untrue(self, turn: int) -> tuple[int, SiteId, PoolId] | None:
        """A pool whose blocks are indexed as they are not: for checks, one pool and size at a time."""
        if not self._sizes or not self._columns:
            return None
        size = list(self._sizes)[turn % len(self._sizes)]
        column = self._columns[turn // len(self._sizes) % len(self._columns)]
        known, fresh = self._sizes[size].blocks[column.index], Blocks(column, size, self._prices, {})
        return None if known.told() == fresh.told() else (size, *column.place)

    def tables(self, size: int, need_bytes: int, dyn: Ints, spots: Ints) -> tuple[Ints, Ints, Ints]:
        """What a gang of this size, which needs so much of each slot, reads in the place of `dyn`, `rooms` and `node_rooms`. `spots`: nodes
        with its weights; of others the lines may be old."""
        known = self._of(size)
        for index in known.dirty:
            self._refresh(known, index)
        known.dirty.clear()
        old = spots[known.is_stale[spots[:, Spot.NODE]]]
        for pool, node in old[:, (Spot.POOL, Spot.NODE)].tolist():
            known.is_stale[node] = False
            known.node_rooms[node] = known.blocks[pool].line_of(node - self._columns[pool].first_node)
        own = dyn.copy()
        price_us, _, _ = room(known.rooms, need_bytes)
        # Free blocks in which what must stay is in the way are worse than any that somebody works in.
        own[:, Dyn.FREE] = np.where(price_us < FORBIDDEN_US, known.rooms[:, Room.FREE], np.where(known.soonest < _NEVER, 0, known.free))
        own[:, Dyn.SOONEST] = known.soonest
        return own, known.rooms, known.node_rooms

    def _refresh(self, known: _Size, index: int) -> None:
        blocks, first_node = known.blocks[index], self._columns[index].first_node
        blocks.refresh()
        until_us = blocks.until_us()
        known.free[index], known.soonest[index] = blocks.free_count, _NEVER if until_us is None else until_us
        known.rooms[index] = blocks.line()
        for node_index in blocks.stale_nodes:
            known.is_stale[first_node + node_index] = True
        blocks.stale_nodes.clear()

    def _of(self, size: int) -> _Size:
        known = self._sizes.get(size)
        if known is None:
            pools, nodes = len(self._columns), sum(len(column.pool.nodes) for column in self._columns)
            dirty: dict[int, None] = {}
            known = self._sizes[size] = _Size(
                blocks=[Blocks(column, size, self._prices, dirty) for column in self._columns],
                free=np.zeros(pools, dtype=np.int64),
                soonest=np.full(pools, _NEVER, dtype=np.int64),
                rooms=np.zeros((pools, ROOM_WIDTH), dtype=np.int64),
                node_rooms=np.zeros((nodes + 1, ROOM_WIDTH), dtype=np.int64),
                dirty=dirty,
                is_stale=np.zeros(nodes + 1, dtype=np.bool_),
            )
        return known
