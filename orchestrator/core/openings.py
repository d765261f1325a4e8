"""What the slots of a pool offer a job that waits for one of them, if they are emptied: it begins there when its weights are there too.

Decides when that is, slot by slot, and when the job begins if nothing is emptied. A pool's row tells of the first slot that comes free and
of the nearest weights, which may be of two nodes. Must not know what is in a slot, nor whether emptying it pays.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from atoll.model.replica import ReplicaState
from orchestrator.core.claiming import fetch_of
from orchestrator.core.context import Context
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.nearness import HERE, Arrival, arrival, source_at, source_beside
from orchestrator.core.placement.rows import COLD, UNREACHABLE, Fix, Out, Source, State
from orchestrator.core.preemption import Waiter
from orchestrator.core.state import Node, ReplicaKey, Slot

# What begins to come only when a job has a slot; the rest is there, or comes by itself.
_FROM_AFAR: Final = (Source.ORIGIN, Source.SITE)


class Openings:
    """Of one look, for a class of single jobs that is about to wait for a row."""

    __slots__ = (
        "_arrivals",
        "_begins_us",
        "_board",
        "_column",
        "_ctx",
        "_fetch",
        "_key",
        "_near",
        "_row",
        "_serial_us",
        "_without_us",
        "is_cold",
    )

    def __init__(self, ctx: Context, key: ClassKey, board: Board, row: int) -> None:
        self._ctx, self._key, self._board, self._row = ctx, key, board, row
        self._column, self.is_cold = board.column(row), board.is_cold(row)
        self._fetch = fetch_of(ctx, board.estimate, self._column)
        self._near = ctx.columns.where.near(self._column, key.model_id)
        self._arrivals: dict[int, Arrival] = {}
        begins_us = max(board.wait_us(row), board.fetch_us(row), int(board.estimate.fix[row, Fix.INPUT]))
        saved_us = self._saved_us(board.source(row)) if self.is_cold else 0
        # What follows when slot and weights are there, as if these were on disk: host memory saves something.
        self._serial_us = max(board.delay_us(row) - begins_us + saved_us, 0)
        self._begins_us = begins_us - saved_us
        self._without_us: int | None = None

    def waiter(self, slot: Slot) -> Waiter:
        """A job of the class, as it stands to this slot."""
        here = self._arrival(slot)
        saved_us = self._saved_us(here.source)
        return Waiter(
            rank=self._key.rank,
            weight_milli=self._ctx.policy.weight_milli(self._key.priority),
            wait_us=self.without_us() + saved_us,
            hold_us=max(self._serial_us - saved_us, 0),
            arrives=here,
        )

    def without_us(self) -> int:
        """When a job begins if nothing is emptied for it: in the pool, or at the next best place, whichever is sooner."""
        if self._without_us is None:
            self._without_us = min(self._in_pool_us(), self._elsewhere_us()) if self.is_cold else self._begins_us
        return self._without_us

    def _in_pool_us(self) -> int:
        """When it begins in the first slot of the pool of which that can be said, as if from disk."""
        board, column, model_id, now_us = self._board, self._column, self._key.model_id, self._ctx.now_us
        found = [arrival(source_beside(self._near), self._fetch, now_us).begins_us(board.wait_us(self._row))]
        for nodes in (column.host.get(model_id, ()), column.disk.get(model_id, ()), column.fetching.get(model_id, ())):
            for node_index in nodes:
                free_us = _first_free_us(column.pool.nodes[node_index])
                if free_us is not None:
                    here = self._at(node_index)
                    found.append(here.begins_us(max(free_us - now_us, 0)) - self._saved_us(here.source))
        return min(found)

    def _elsewhere_us(self) -> int:
        """When it would have to begin here to cost what the next best row does, whose fetch begins when its wait is over."""
        out, pools, row = self._board.out, self._board.pools, self._row
        totals = np.where(out[:, Out.STATE] == State.IMPOSSIBLE, UNREACHABLE, out[:, Out.TOTAL])
        totals[row] = UNREACHABLE
        cold = out[COLD * pools : (COLD + 1) * pools]
        late_us = np.minimum(cold[:, Out.WAIT], cold[:, Out.FETCH])
        totals[COLD * pools : (COLD + 1) * pools] += np.where(np.isin(cold[:, Out.SOURCE], _FROM_AFAR), late_us, 0)
        return self._begins_us + max(int(totals.min()) - self._board.total_us(row), 0)

    def _arrival(self, slot: Slot) -> Arrival:
        return self._at(slot.node_index) if self.is_cold else arrival_in(self._ctx, self._column, slot, ReplicaKey(self._key.model_id))

    def _at(self, node_index: int) -> Arrival:
        found = self._arrivals.get(node_index)
        if found is None:
            way = source_at(self._column, self._key.model_id, node_index, self._near)
            found = self._arrivals[node_index] = arrival(way, self._fetch, self._ctx.now_us)
        return found

    def _saved_us(self, source: Source) -> int:
        """What loading from host memory takes less than from disk."""
        return int(self._board.estimate.fix[self._row, Fix.SAVING]) if self.is_cold and source == Source.HOST else 0


def arrival_in(ctx: Context, column: Column, slot: Slot, key: ReplicaKey) -> Arrival:
    """When the weights are there of a replica that a slot has, or loads as soon as they are."""
    fetched_us = column.pool.nodes[slot.node_index].fetching.get(key.model_id, 0)
    if not fetched_us or slot.replicas[key].state is not ReplicaState.ABSENT:
        return HERE
    return Arrival(Source.FETCHING, max(fetched_us - ctx.now_us, 0), 0)


def _first_free_us(node: Node) -> int | None:
    """When the first slot of a node should be free; None: none works."""
    return min((slot.free_from_us for slot in node.slots if slot.ready), default=None)
