"""Where one model is, as a table with a line for each pool that has something of it; kept in step lazily.

Decides what a line says. A line is computed again only when something of the model changed in its pool (`stale`), so that a decision
about a model that is everywhere does not walk the fleet. Must not know jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from atoll.model.ids import ModelId
from orchestrator.core.placement.column import Column, WarmIndex
from orchestrator.core.placement.rows import Ints, Pres, Slots, Source

_LINES_AT_FIRST: Final = 4


@dataclass(slots=True)
class Presence:
    """Lines of one model. `lines[:used]` count; `at` says which line is of which pool."""

    model_id: ModelId
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


def line_of(column: Column, model_id: ModelId, flight_us: int | None) -> list[int]:
    """The line of a pool. `flight_us`: when the earliest fetch of the model anywhere at the site should be done, None: there is none."""
    state, until_us = _warm(column, column.warm.get(model_id))
    node_index, source, ready_us = cold_source(column, model_id)
    if source is Source.ORIGIN and flight_us is not None:
        source, ready_us = Source.SITE_FETCHING, flight_us
    node = -1 if node_index is None else column.first_node + node_index
    return [column.index, state, until_us, Slots.NONE, 0, source, ready_us, node, -1, 0]


def _warm(column: Column, warm: WarmIndex | None) -> tuple[Slots, int]:
    if warm is None:
        return Slots.NONE, 0
    if column.top(warm.free) is not None:
        return Slots.FREE, 0
    slot = column.top(warm.open)
    if slot is not None:
        return Slots.OPEN, slot.busy_until_us
    slot = column.top(warm.full)
    return (Slots.FULL, slot.busy_until_us) if slot is not None else (Slots.NONE, 0)


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

