"""What it costs that something leaves a slot: the price and the bytes of the victims that a line of a table tells (`rows.Room`).

Decides which of the slots that a line tells is cleared. Integers only; `vectors.room` does the same in numpy. Must not know who leaves.
"""

from __future__ import annotations

from orchestrator.core.placement.machine_code import jit
from orchestrator.core.placement.rows import FORBIDDEN_US, VICTIMS, Ints, Room

# As plain integers: see `kernel`.
_MOST, _LEAST, _VICTIM = int(Room.MOST), int(Room.LEAST), int(Room.VICTIM)
_KEPT_LEAST, _KEPT_VICTIM, _FRESH = int(Room.KEPT_LEAST), int(Room.KEPT_VICTIM), int(Room.FRESH)


@jit
def _clearing(rooms: Ints, line: int, least: int, victim: int, need: int) -> tuple[int, int]:
    """(price, bytes) of making room in one slot: its victims leave in their order until it fits."""
    short = need - rooms[line, least]
    price, gone = 0, 0
    for number in range(VICTIMS):
        if short <= 0:
            break
        size = rooms[line, victim + 2 * number]
        price += rooms[line, victim + 2 * number + 1]
        gone += size
        short -= size
    if short > 0:
        return FORBIDDEN_US, gone
    return min(price, FORBIDDEN_US), gone


@jit
def room(rooms: Ints, line: int, need: int) -> tuple[int, int, int]:
    """(price, bytes) of making room among the free slots of a line, the cheapest of the three that it tells of; and 1 if the process of
    that slot has generated nothing yet."""
    if need <= rooms[line, _MOST]:
        return 0, 0, rooms[line, _FRESH] & 1
    price, gone = _clearing(rooms, line, _LEAST, _VICTIM, need)
    kept, kept_gone = _clearing(rooms, line, _KEPT_LEAST, _KEPT_VICTIM, need)
    if kept < price:
        return kept, kept_gone, rooms[line, _FRESH] >> 2 & 1
    return price, gone, rooms[line, _FRESH] >> 1 & 1
