"""The host memory of a twin's node: weights that left a GPU stay there until the room is needed.

Decides which weights give way: the least recently used, never pinned ones. Must not know slots, disks or time.
"""

from __future__ import annotations

from collections import OrderedDict

from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec


class HostMemory:
    """Weights in the memory of one node."""

    __slots__ = ("_capacity_bytes", "_held", "pinned")

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._held: OrderedDict[ModelId, tuple[int, str]] = OrderedDict()  # bytes, digest; least recently used first
        self.pinned: frozenset[ModelId] = frozenset()

    @property
    def free_bytes(self) -> int:
        """What nothing takes."""
        return self._capacity_bytes - sum(size for size, _ in self._held.values())

    @property
    def models(self) -> tuple[tuple[ModelId, str], ...]:
        """All that is held, with digests, least recently used first."""
        return tuple((model_id, digest) for model_id, (_, digest) in self._held.items())

    def holds(self, model: ModelSpec) -> bool:
        """Whether this very version is held; it counts as used now."""
        held = self._held.get(model.model_id)
        if held is None or held[1] != model.weights_digest:
            return False
        self._held.move_to_end(model.model_id)
        return True

    def hold(self, model: ModelSpec) -> bool:
        """Take weights in, dropping others if that makes enough room. Whether they are held now."""
        self._held.pop(model.model_id, None)
        droppable = sum(size for model_id, (size, _) in self._held.items() if model_id not in self.pinned)
        if self.free_bytes + droppable < model.weights_bytes:
            return False
        for model_id in list(self._held):
            if self.free_bytes >= model.weights_bytes:
                break
            if model_id not in self.pinned:
                del self._held[model_id]
        self._held[model.model_id] = (model.weights_bytes, model.weights_digest)
        return True

    def clear(self) -> bool:
        """Let everything go. Whether anything was held."""
        held = bool(self._held)
        self._held.clear()
        return held

    def drop(self, model_id: ModelId) -> bool:
        """Let weights go. Whether they were held."""
        return self._held.pop(model_id, None) is not None
