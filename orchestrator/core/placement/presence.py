"""Where one model is, as a table with a line for each pool that has something of it; kept in step lazily.

Decides what a line says. A line is computed again only when something of the model changed in its pool (`stale`), so that a decision
about a model that is everywhere does not walk the fleet. Must not know jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from atoll.model.ids import ModelId
from orchestrator.core.placement.classes import Variant
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.eviction import Prices
from orchestrator.core.placement.gangs import gang_line
from orchestrator.core.placement.rows import Ints, Pres, Slots, Source
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

    def drop(self, pool: int) -> None:
        """Nothing of the model is in this pool any more: the last line takes the place of its line."""
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


def line_of(column: Column, presence: Presence, flight_us: int | None, prices: Prices) -> list[int]:
    """The line of a pool. `flight_us`: when the earliest fetch of the model anywhere at the site should be done, None: there is none."""
    variant = presence.variant
    if variant.gang_size > 1:
        return gang_line(column, variant, prices)
    ready, ready_us, bare, bare_us, saved = Slots.NONE, 0, Slots.NONE, 0, 0
    if variant.adapters:
        ready, ready_us = _standing(column, variant, ready_slot(column, variant))
        slot = bare_slot(column, variant)
        bare, bare_us = _standing(column, variant, slot)
        saved = int(slot is not None and column.pool.nodes[slot.node_index].disk_adapters.issuperset(variant.adapters))
    else:
        ready, ready_us = _standing(column, variant, warm_slot(column, variant.model_id))
    node_index, source, ready_at_us = cold_source(column, variant.model_id)
    if source is Source.ORIGIN and flight_us is not None:
        source, ready_at_us = Source.SITE_FETCHING, flight_us
    node = -1 if node_index is None else column.first_node + node_index
    return [column.index, ready, ready_us, bare, bare_us, saved, source, ready_at_us, node, -1, 0, 0, 0]


def _standing(column: Column, variant: Variant, slot: Slot | None) -> tuple[Slots, int]:
    """How a slot that was chosen for a resident replica stands, and until when it is busy."""
    if slot is None:
        return Slots.NONE, 0
    if is_free(slot):
        return Slots.FREE, 0
    return (Slots.OPEN if column.is_open(slot, ReplicaKey(variant.model_id)) else Slots.FULL), slot.busy_until_us


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
            rank = (1 if column.is_open(slot, key) else 2, slot.busy_until_us, *where)
        if found is None or rank < found[0]:
            found = rank, slot
    return None if found is None else found[1]


def cold_source(column: Column, model_id: ModelId) -> tuple[int | None, Source, int]:
    """(node with a free slot where the weights are nearest, how near, when a fetch in flight there should be done).

    Without a node of that kind: (None, ORIGIN, 0). While no slot is free at all, any node that holds the weights counts, since it is
    waiting that is being priced.
    """
    anywhere = column.free_slots == 0
    for nodes, source in ((column.host.get(model_id), Source.HOST), (column.disk.get(model_id), Source.DISK)):
        if nodes:
            fitting = [node for node in nodes if anywhere or column.node_free[node]]
            if fitting:
                return min(fitting), source, 0
    fetching = column.fetching.get(model_id)
    if fetching:
        fitting = [node for node in fetching if anywhere or column.node_free[node]]
        if fitting:
            node = min(fitting, key=lambda node: (column.pool.nodes[node].fetching[model_id], node))
            return node, Source.FETCHING, column.pool.nodes[node].fetching[model_id]
    return None, Source.ORIGIN, 0

