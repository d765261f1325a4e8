"""Which replicas leave a slot so that a model fits.

Decides victims within one slot: the least recently used first, and no more than needed. What an eviction costs others is not priced yet.
"""

from __future__ import annotations

from atoll.model.ids import ModelId
from orchestrator.core.state import Slot


def victims(slot: Slot, model_id: ModelId, memory_bytes: int) -> tuple[ModelId, ...]:
    """Models to unload from an idle slot before `model_id` with `memory_bytes` (weights and activations) runs there."""
    others = [replica for replica in slot.replicas.values() if replica.model_id != model_id]
    excess = sum(replica.memory_bytes for replica in others) + memory_bytes - slot.memory_bytes
    chosen: list[ModelId] = []
    for replica in sorted(others, key=lambda replica: (replica.last_used_us, replica.model_id)):
        if excess <= 0:
            break
        chosen.append(replica.model_id)
        excess -= replica.memory_bytes
    return tuple(chosen)
