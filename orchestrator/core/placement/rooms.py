"""What the free slots of a pool or a node offer, as lines of a table (`rows.Room`).

Decides which slots are told: the emptiest, the cheapest to clear, and the one that holds what must stay where most can be had. Must not
know who wants room.
"""

from __future__ import annotations

from typing import Final

from atoll.model.limits import NEEDED_BYTES_MAX
from orchestrator.core.placement.column import Column, Free, free_bytes
from orchestrator.core.placement.eviction import Prices, as_figures
from orchestrator.core.placement.rows import ROOM_WIDTH, Room
from orchestrator.core.state import Slot

# No slot with victims: no free bytes, and nothing that could leave.
_NOTHING_KEPT: Final = [0] * (Room.FRESH - Room.KEPT_LEAST)
_NO_VICTIM: Final = _NOTHING_KEPT[1:]
_NO_OTHER: Final = _NO_VICTIM[2:]
_NO_ROOM: Final = [0] * ROOM_WIDTH


def of_pool(column: Column, busy: Slot | None, prices: Prices) -> list[int]:
    """The line of a pool. `busy`: its slot that is free first; where none is free, what will have to leave that one is priced meanwhile."""
    if column.free_slots or busy is None:
        return _line(column, column.free, column.free_slots, prices)
    return [0, _free_bytes(busy), *_clearing(column, busy, prices), *_NOTHING_KEPT, 3 * busy.awaits_first]


def of_node(column: Column, node_index: int, prices: Prices) -> list[int]:
    """The line of a node."""
    return _line(column, column.free_on[node_index], column.node_free[node_index], prices)


def _line(column: Column, free: Free, slots: int, prices: Prices) -> list[int]:
    if not slots:
        return _NO_ROOM
    cheap, kept, roomy = column.top(free.cheap), column.top(free.kept), column.top(free.roomy)
    assert roomy is not None, "a free slot is among the free ones"
    return [
        slots,
        _free_bytes(roomy),
        *(_clearing(column, cheap, prices) if cheap is not None else _NOTHING_KEPT),
        *(_clearing(column, kept, prices) if kept is not None else _NOTHING_KEPT),
        roomy.fresh + 2 * (cheap is not None and cheap.fresh) + 4 * (kept is not None and kept.fresh),
    ]


def _clearing(column: Column, slot: Slot, prices: Prices) -> list[int]:
    """Free bytes of a slot, and bytes and price of each victim."""
    if len(slot.replicas) == 1:  # most slots hold one, and each slot that changes is told anew
        (replica,) = slot.replicas.values()
        return [_free_bytes(slot), replica.memory_bytes, prices.price_us(replica, column.pool), *_NO_OTHER]
    return [_free_bytes(slot), *(as_figures(prices.victims(slot, column.pool)) if slot.replicas else _NO_VICTIM)]


def _free_bytes(slot: Slot) -> int:
    """What is free, as a table tells it: an agent may claim replicas of any size, and none is larger than what no GPU has."""
    return max(free_bytes(slot), -NEEDED_BYTES_MAX)
