"""Where one model is, as a table with a line for each pool that has something of it; kept in step lazily.

Decides what a line says. A line is computed again only when something of the model changed in its pool (`stale`), and the nodes that
have the weights only when these changed, so that a decision about a model that is everywhere does not walk the fleet. Must not know jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from atoll.model.ids import ModelId
from orchestrator.core.placement.blocks import Members
from orchestrator.core.placement.classes import Variant
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.gang_tables import GangTables
from orchestrator.core.placement.nearness import Near, source_beside
from orchestrator.core.placement.rows import Ints, Pres, Slots, Source, Spot
from orchestrator.core.state import ReplicaKey, Slot

_LINES_AT_FIRST: Final = 4


@dataclass(slots=True)
class Presence:
    """Lines of one model in one form. `lines[:used]` count; `at` says which line is of which pool."""

    variant: Variant
    lines: Ints = field(default_factory=lambda: np.zeros((_LINES_AT_FIRST, len(Pres)), dtype=np.int64))
    used: int = 0
    at: dict[int, int] = field(default_factory=dict)
    stale: dict[int, None] = field(default_factory=dict)
    stale_spots: dict[int, None] = field(default_factory=dict)  # apart: slots change at each decision, disks and memories seldom
    spots_of: dict[int, list[list[int]]] = field(default_factory=dict)  # of each pool, in the order in which they are looked at
    spots: Ints = field(default_factory=lambda: np.zeros((0, len(Spot)), dtype=np.int64))

    def put(self, pool: int, figures: list[int]) -> None:
        """Write the line of a pool."""
        line = self.at.get(pool)
        if line is None:
            if self.used == len(self.lines):
                grown = np.zeros((2 * len(self.lines), len(Pres)), dtype=np.int64)
                grown[: self.used] = self.lines
                self.lines = grown
            line = self.at[pool] = self.used
            self.used += 1
        self.lines[line] = figures

    def put_spots(self, spots: dict[int, list[list[int]]]) -> None:
        """Say which nodes of some pools have the weights, or fetch them."""
        if all(self.spots_of.get(pool, []) == found for pool, found in spots.items()):
            return
        self.spots_of.update(spots)
        for pool, found in spots.items():
            if not found:
                del self.spots_of[pool]
        told = [spot for pool in sorted(self.spots_of) for spot in self.spots_of[pool]]
        self.spots = np.array(told, dtype=np.int64).reshape(len(told), len(Spot))

    def drop(self, pool: int) -> None:
        """Nothing of the model is in this pool or near it any more: the last line takes the place of its line."""
        line = self.at.pop(pool, None)
        if line is None:
            return
        self.used -= 1
        if line != self.used:
            self.lines[line] = self.lines[self.used]
            self.at[int(self.lines[line, Pres.POOL])] = line

    @property
    def table(self) -> Ints:
        """The lines that count."""
        return self.lines[: self.used]


def line_of(column: Column, presence: Presence, near: Near, gangs: GangTables) -> list[int]:
    """The line of a pool. `near`: what the rest of its site has of the model."""
    variant = presence.variant
    ready, ready_us, bare, bare_us, saved = Slots.NONE, 0, Slots.NONE, 0, 0
    if variant.gang_size > 1:
        ready, ready_us = _block_standing(gangs.blocks(column, variant.gang_size).ready(variant.model_id))
    elif variant.adapters:
        ready, ready_us = _standing(column, variant, ready_slot(column, variant))
        slot = bare_slot(column, variant)
        bare, bare_us = _standing(column, variant, slot)
        saved = int(slot is not None and column.pool.nodes[slot.node_index].disk_adapters.issuperset(variant.adapters))
    else:
        ready, ready_us = _standing(column, variant, warm_slot(column, variant.model_id))
    return [column.index, ready, ready_us, bare, bare_us, saved, *source_beside(near)]


def _block_standing(slots: Members | None) -> tuple[Slots, int]:
    """How a block that was chosen for a resident replica stands, and until when it is busy."""
    if slots is None:
        return Slots.NONE, 0
    return (Slots.FREE, 0) if all(is_free(slot) for slot in slots) else (Slots.FULL, max(slot.free_from_us for slot in slots))


def spots_in(column: Column, model_id: ModelId) -> list[list[int]]:
    """The nodes of a pool that have the weights in memory, on disk, or on their way; in this order, and by number."""
    nodes, first, index = column.pool.nodes, column.first_node, column.index
    host = column.host.get(model_id, set())
    disk = column.disk.get(model_id, set()) - host
    fetching = column.fetching.get(model_id, set()) - host - disk
    return [
        *([index, first + node, Source.HOST, 0] for node in sorted(host)),
        *([index, first + node, Source.DISK, 0] for node in sorted(disk)),
        *([index, first + node, Source.FETCHING, nodes[node].fetching[model_id]] for node in sorted(fetching)),
    ]


def _standing(column: Column, variant: Variant, slot: Slot | None) -> tuple[Slots, int]:
    """How a slot that was chosen for a resident replica stands, and until when it is busy."""
    if slot is None:
        return Slots.NONE, 0
    if is_free(slot):
        return Slots.FREE, 0
    return (Slots.OPEN if column.is_open(slot, ReplicaKey(variant.model_id)) else Slots.FULL), slot.free_from_us


def warm_slot(column: Column, model_id: ModelId) -> Slot | None:
    """The slot of a resident replica that is free and was used last, else the one that may take one more soonest, else the first to end."""
    warm = column.warm.get(ReplicaKey(model_id))
    if warm is None:
        return None
    return column.top(warm.free) or column.top(warm.open) or column.top(warm.full)


def ready_slot(column: Column, variant: Variant) -> Slot | None:
    """As `warm_slot`, of the replicas that hold all adapters."""
    return _best_of(column, variant, with_adapters=True)


def bare_slot(column: Column, variant: Variant) -> Slot | None:
    """As `warm_slot`, of the replicas that lack an adapter."""
    return _best_of(column, variant, with_adapters=False)


def _best_of(column: Column, variant: Variant, *, with_adapters: bool) -> Slot | None:
    key = ReplicaKey(variant.model_id)
    warm = column.warm.get(key)
    found: tuple[tuple[int, int, int, int], Slot] | None = None
    for where in warm.slots if warm is not None else ():
        slot = column.slot(*where)
        replica = slot.replicas[key]
        if set(variant.adapters).issubset(replica.adapters) is not with_adapters:
            continue
        if is_free(slot):
            rank = (0, -replica.last_used_us, *where)
        else:
            rank = (1 if column.is_open(slot, key) else 2, slot.free_from_us, *where)
        if found is None or rank < found[0]:
            found = rank, slot
    return None if found is None else found[1]
