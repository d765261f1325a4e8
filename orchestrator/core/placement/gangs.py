"""What single jobs must mind where gangs run: whole blocks that they would break.

Decides which slot breaks the least. Must not know jobs or what anything costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.placement.column import Column, free_bytes, is_free
from orchestrator.core.state import Slot


def is_last_block(column: Column) -> bool:
    """Whether all free slots of a pool are one whole block of gangs that have a replica there: whoever takes one of them breaks it."""
    size = column.free_slots
    if size not in column.gangs or size not in column.node_free:
        return False
    slots = column.pool.nodes[column.node_free.index(size)].slots
    first = next((number for number, slot in enumerate(slots) if is_free(slot)), 0)
    return first % size == 0 and all(is_free(slot) for slot in slots[first : first + size])


def spare_slot(column: Column, need_bytes: int, node_index: int | None) -> Slot | None:
    """The free slot where a job of its own fits with nobody leaving, and which breaks the least: the smallest block that is whole around
    it, then the longest idle. `node_index`: only on this node."""
    sizes = sorted(column.gangs)
    best: tuple[tuple[int, int, int, int], Slot] | None = None
    for number in range(len(column.node_free)) if node_index is None else (node_index,):
        slots = column.pool.nodes[number].slots if column.node_free[number] else ()
        for slot in slots:
            if is_free(slot) and free_bytes(slot) >= need_bytes:
                rank = (_whole_around(slots, slot.index, sizes), slot.last_used_us, number, slot.index)
                if best is None or rank < best[0]:
                    best = rank, slot
    return None if best is None else best[1]


def _whole_around(slots: Sequence[Slot], index: int, sizes: list[int]) -> int:
    """The largest of these sizes whose block around a free slot is whole; 1 if none is."""
    found = 1
    for size in sizes:
        first = index - index % size
        if first + size > len(slots) or not all(is_free(slot) for slot in slots[first : first + size]):
            break
        found = size
    return found
