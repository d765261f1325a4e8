"""Who leaves a slot so that what a row means fits.

Decides which replicas, in the order of their prices. Must not change the slot.
"""

from __future__ import annotations

from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.eviction import Victim, leaving
from orchestrator.core.state import ReplicaKey, Slot


def victims_in(board: Board, row: int, slot: Slot) -> tuple[Victim, ...]:
    """What leaves an idle slot so that the class of the board fits."""
    if slot.attempts:
        return ()
    variant = board.estimate.variant
    own = ReplicaKey(variant.model_id, variant.gang_size)
    victims = board.columns.prices.victims(slot, board.column(row).pool, besides=own)
    held = sum(victim.memory_bytes for victim in victims)
    return leaving(victims, held + board.estimate.memory_bytes - slot.memory_bytes)
