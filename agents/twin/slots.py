"""What a twin's slots and nodes hold.

Decides what fits. Must not know how anything got there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.core.state import ReplicaKey
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, FormId, ModelId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.site import PoolSpec


@dataclass(slots=True, kw_only=True)
class TwinSlot:
    """One GPU."""

    gpu: GpuType
    memory_bytes: int
    replicas: dict[ReplicaKey, ModelSpec] = field(default_factory=dict)
    adapters: dict[ReplicaKey, dict[AdapterId, int]] = field(default_factory=dict)  # bytes of those on each replica
    code: dict[ReplicaKey, set[FormId]] = field(default_factory=dict)  # forms whose code runs in each replica
    fresh: bool = False  # its process has generated nothing yet: one that was there when the twin began is taken to have worked before
    loads: int = 0
    adaptations: int = 0
    lives: int = 0  # how often all that it held was lost: what was begun before does not end

    def has_room(self, model: ModelSpec) -> bool:
        """Whether a model fits beside what is loaded."""
        return sum(held.resident_bytes for held in self.replicas.values()) + model.resident_bytes <= self.memory_bytes

    @property
    def facts(self) -> tuple[ReplicaFact, ...]:
        """Its replicas, as they are told of."""
        return tuple(
            ReplicaFact(model_id=key.model_id, state=ReplicaState.WARM, memory_bytes=model.resident_bytes)
            for key, model in self.replicas.items()
        )


@dataclass(slots=True, kw_only=True)
class TwinNode:
    """One host: its slots, and the compiled code on its disk."""

    pool: PoolSpec
    slots: list[TwinSlot] = field(default_factory=list)
    forms: dict[FormId, None] = field(default_factory=dict)  # whose code lies on its disk, the one used last at the end

    def uses(self, model_id: ModelId) -> bool:
        """Whether a slot holds the model."""
        return any(key.model_id == model_id for slot in self.slots for key in slot.replicas)
