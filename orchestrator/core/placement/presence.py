"""Where one model is, as a table with a line for each pool that has something of it; kept in step lazily.

Decides what a line says. A line is computed again only when something of the model changed in its pool (`stale`), and the nodes that
have the weights only when these changed, so that a decision about a model that is everywhere does not walk the fleet. Must not know jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from atoll.model.ids import AdapterId, ModelId
from orchestrator.core.placement.adapting import Adapting
from orchestrator.core.placement.blocks import Members
from orchestrator.core.placement.classes import Variant
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.gang_tables import GangTables
from orchestrator.core.placement.nearness import Near, source_beside
from orchestrator.core.placement.rows import Ints, Pres, Slots, Source, Spot
from orchestrator.core.state import ReplicaKey, Slot

_LINES_AT_FIRST: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A slot with a resident replica, and what bringing the adapters takes that the replica lacks. Lower ranks go first."""

    rank: tuple[int, ...]
    adapt_us: int
    slot: Slot


# The best slot where the replica holds all adapters, and the best where it lacks some; None: there is none.
Residents = tuple[Resident | None, Resident | None]


@dataclass(slots=True)
class Presence:
    """Lines of one model in one form. `lines[:used]` count; `at` says which line is of which pool."""

    variant: Variant
    adapting: Adapting | None = None  # what bringing the variant's adapters takes
    lines: Ints = field(default_factory=lambda: np.zeros((_LINES_AT_FIRST, len(Pres)), dtype=np.int64))
    used: int = 0
    at: dict[int, int] = field(default_factory=dict)
    stale: dict[int, None] = field(default_factory=dict)
    stale_spots: dict[int, None] = field(default_factory=dict)  # apart: slots change at each decision, disks and memories seldom
    spots_of: dict[int, list[list[int]]] = field(default_factory=dict)  # of each pool, in the order in which they are looked at
    spots: Ints = field(default_factory=lambda: np.zeros((0, len(Spot)), dtype=np.int64))
    meant: dict[int, Residents] = field(default_factory=dict)  # of a variant with adapters: by pool, the replicas that its line tells of

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
        self.meant.pop(pool, None)
        if line != self.used:
            self.lines[line] = self.lines[self.used]
            self.at[int(self.lines[line, Pres.POOL])] = line

    @property
    def table(self) -> Ints:
        """The lines that count."""
        return self.lines[: self.used]


def line_of(column: Column, presence: Presence, near: Near, gangs: GangTables) -> list[int]:
    """The line of a pool. `near`: what the rest of its site has of the model."""
    variant, adapting = presence.variant, presence.adapting
    ready, ready_us, ready_adapt_us, bare, bare_us, bare_adapt_us = Slots.NONE, 0, 0, Slots.NONE, 0, 0
    ready_first = bare_first = False
    if variant.gang_size > 1:
        block = gangs.blocks(column, variant.gang_size).ready(variant.model_id)
        ready, ready_us = _block_standing(block)
        ready_first = any(slot.awaits_first for slot in block or ())
        ready_adapt_us = _of_block(column, variant, adapting, block) if block is not None and adapting is not None else 0
    elif adapting is not None:
        full, lacking = presence.meant[column.index] = residents(column, variant, adapting)
        if full is not None:
            ready, ready_us = _standing(column, variant, full.slot)
            ready_first = full.slot.awaits_first
        if lacking is not None:
            bare, bare_us = _standing(column, variant, lacking.slot)
            bare_adapt_us, bare_first = lacking.adapt_us, lacking.slot.awaits_first
    else:
        warm = warm_slot(column, variant.model_id)
        ready, ready_us = _standing(column, variant, warm)
        ready_first = warm is not None and warm.awaits_first
    found = [column.index, ready, ready_us, ready_adapt_us, bare, bare_us, bare_adapt_us, *source_beside(near)]
    return [*found, ready_first, bare_first]


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


def residents(column: Column, variant: Variant, adapting: Adapting) -> Residents:
    """The replicas of a pool that are meant. As `warm_slot`, but of those that lack some adapters the one that is adapted soonest: when it
    is free, and what it lacks."""
    key, bringing = ReplicaKey(variant.model_id), adapting.bringing(column.index)
    warm, nodes = column.warm.get(key), column.pool.nodes
    full: Resident | None = None
    lacking: Resident | None = None
    known: dict[tuple[int, tuple[AdapterId, ...]], int] = {}  # most slots of a node hold the same
    for where in warm.slots if warm is not None else ():
        slot = column.slot(*where)
        replica = slot.replicas[key]
        held = (where[0], replica.adapters)
        adapt_us = known.get(held)
        if adapt_us is None:
            adapt_us = known[held] = bringing(replica.adapters, nodes[where[0]].disk_adapters)
        if is_free(slot):
            rank = (0, adapt_us, -replica.last_used_us, *where)
        else:
            rank = (1 if column.is_open(slot, key) else 2, slot.free_from_us + adapt_us, 0, *where)
        if adapt_us:
            if lacking is None or rank < lacking.rank:
                lacking = Resident(rank=rank, adapt_us=adapt_us, slot=slot)
        elif full is None or rank < full.rank:
            full = Resident(rank=rank, adapt_us=0, slot=slot)
    return full, lacking


def _of_block(column: Column, variant: Variant, adapting: Adapting, block: Members) -> int:
    """What a gang's block lacks: its slots are adapted beside each other, with files that their node fetches once."""
    key, bringing = ReplicaKey(variant.model_id, variant.gang_size), adapting.bringing(column.index)
    return max(bringing(slot.replicas[key].adapters, column.pool.nodes[slot.node_index].disk_adapters) for slot in block)


def lacked(variant: Variant, slots: Sequence[Slot]) -> tuple[AdapterId, ...]:
    """The adapters that a resident replica in these slots lacks."""
    held = [slot.replicas[ReplicaKey(variant.model_id, variant.gang_size)].adapters for slot in slots]
    return tuple([adapter_id for adapter_id in variant.adapters if not all(adapter_id in one for one in held)])
