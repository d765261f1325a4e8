"""Replicas and weights: where a model is, on which tier, and how that may change.

Decides the legal changes of a replica. Must not know how loading is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from atoll.model.ids import AdapterId, ModelId


class Tier(IntEnum):
    """Where weights are, nearest first. A lower number is a shorter cold start."""

    GPU = 0
    HOST = 1
    DISK = 2
    PEER = 3
    ORIGIN = 4


class ReplicaState(StrEnum):
    """A model in the memory of a slot. `warm`: resident and idle; `busy`: executing."""

    ABSENT = "absent"
    LOADING = "loading"
    WARM = "warm"
    BUSY = "busy"
    EVICTING = "evicting"


_R = ReplicaState
REPLICA_TABLE: Final[dict[ReplicaState, frozenset[ReplicaState]]] = {
    _R.ABSENT: frozenset({_R.LOADING}),
    _R.LOADING: frozenset({_R.WARM, _R.ABSENT}),  # absent: the load failed
    _R.WARM: frozenset({_R.BUSY, _R.EVICTING, _R.ABSENT}),  # absent: the slot's process died
    _R.BUSY: frozenset({_R.WARM, _R.ABSENT}),
    _R.EVICTING: frozenset({_R.ABSENT}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFact:
    """A replica as an agent reports it; `memory_bytes` as measured, or as the catalogue says until then.

    `adapters` are loaded on it, active or not, sorted. `gang_size` above 1: this slot's own share of a replica that the slots of a gang of
    that size hold together; it serves such gangs only. `loading_us`: of one that is loading, for how long already; a duration, since no two
    clocks agree.
    """

    model_id: ModelId
    state: ReplicaState
    memory_bytes: int
    adapters: tuple[AdapterId, ...] = ()
    gang_size: int = 1
    loading_us: int = 0
