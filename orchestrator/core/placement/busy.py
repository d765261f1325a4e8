"""The busy slot that a row waits for, if it waits for one.

Decides nothing: `choose` says which slots a row means. Must not change any state of the fleet.
"""

from __future__ import annotations

from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.state import Slot


def awaited_slot(board: Board, row: int) -> Slot | None:
    """The slot whose work's end a row waits for; None where it waits for something else, such as a load or a gang that has yet to begin."""
    slot = busy_slot(board, row)
    return slot if slot is not None and slot.attempts else None


def busy_slot(board: Board, row: int) -> Slot | None:
    """The slot that a row waits for until it has ended, or loaded; None where it waits for something else."""
    if board.awaits_flight(row):
        return None
    column = board.column(row)
    if board.estimate.variant.gang_size > 1:
        block = slots_of(board, row)
        if any(slot.claimed_until_us for slot in block):
            return None
        busy = [slot for slot in block if not slot.idle]
        return max(busy, key=lambda slot: slot.busy_until_us, default=None)
    if not board.is_cold(row):
        slot = next(iter(slots_of(board, row)), None)
    else:
        slot = None if column.free_slots > 0 else column.top(column.busy)
    return slot if slot is not None and not slot.idle and not slot.claimed_until_us else None
