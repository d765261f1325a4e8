"""Which pools have what of a model, and which fetches are in flight; the tables of single models, made when asked for.

Decides nothing; an index that can be rebuilt from the sites' state at any time. Must not know jobs or costs.
"""

from __future__ import annotations

from typing import Final

from atoll.model.ids import ModelId, PoolId, SiteId
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.presence import Presence, line_of

# Models with a table of their own; the oldest is dropped beyond it. A table of a model that is everywhere is some 10 KB.
_PRESENCES_MAX: Final = 4_096


class Whereabouts:
    """The index of models."""

    __slots__ = ("_by_pool", "_columns", "_flights", "_presences", "by_model")

    def __init__(self) -> None:
        self.by_model: dict[ModelId, dict[int, None]] = {}
        self._columns: list[Column] = []
        self._by_pool: dict[tuple[SiteId, PoolId], Column] = {}
        self._presences: dict[ModelId, Presence] = {}
        # By site and model: when each fetch should be done, by pool and node.
        self._flights: dict[tuple[SiteId, ModelId], dict[tuple[PoolId, int], int]] = {}

    def renumber(self, columns: list[Column], by_pool: dict[tuple[SiteId, PoolId], Column]) -> None:
        """Pools have other numbers from now on; what they have must be `seen` again. Flights stay."""
        self._columns, self._by_pool = columns, by_pool
        self.by_model, self._presences = {}, {}

    def fly(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """A fetch to a node began."""
        column.fetching.setdefault(model_id, set()).add(node_index)
        flights = self._flights.setdefault((column.site.site_id, model_id), {})
        flights[(column.pool.pool_id, node_index)] = column.pool.nodes[node_index].fetching[model_id]
        self.site_seen(model_id, column)

    def land(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """A fetch to a node is over."""
        nodes = column.fetching.get(model_id, set())
        nodes.discard(node_index)
        if not nodes:
            column.fetching.pop(model_id, None)
        self.end_flight(column, model_id, node_index)
        self.site_seen(model_id, column)

    def end_flight(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """Nobody at the site waits for this fetch any more."""
        key = (column.site.site_id, model_id)
        flights = self._flights.get(key, {})
        flights.pop((column.pool.pool_id, node_index), None)
        if not flights:
            self._flights.pop(key, None)

    def site_seen(self, model_id: ModelId, column: Column) -> None:
        """A fetch to one node matters to all pools of its site: they may wait for it."""
        for pool_id in column.site.pools:
            other = self._by_pool.get((column.site.site_id, pool_id))
            if other is not None:
                self.seen(model_id, other)
                self.gone(model_id, other)

    def seen(self, model_id: ModelId, column: Column) -> None:
        """The pool has something of the model, or more of it."""
        self.by_model.setdefault(model_id, {})[column.index] = None
        self.stale(model_id, column)

    def gone(self, model_id: ModelId, column: Column) -> None:
        """Something of the model left the pool: forget the pool if that was all."""
        self.stale(model_id, column)
        if column.has(model_id) or (column.site.site_id, model_id) in self._flights:
            return
        known = self.by_model.get(model_id)
        if known is not None:
            known.pop(column.index, None)
            if not known:
                del self.by_model[model_id]

    def stale(self, model_id: ModelId, column: Column) -> None:
        """What the model's table says of the pool is old."""
        presence = self._presences.get(model_id)
        if presence is not None:
            presence.stale[column.index] = None

    def presence(self, model_id: ModelId) -> Presence:
        """Where the model is now."""
        presence = self._presences.get(model_id)
        if presence is None:
            if len(self._presences) >= _PRESENCES_MAX:
                del self._presences[next(iter(self._presences))]
            presence = self._presences[model_id] = Presence(model_id)
            presence.stale = dict(self.by_model.get(model_id, {}))
        if presence.stale:
            pools = self.by_model.get(model_id, {})
            for index in presence.stale:
                if index in pools:
                    column = self._columns[index]
                    flights = self._flights.get((column.site.site_id, model_id))
                    presence.put(index, line_of(column, model_id, min(flights.values()) if flights else None))
                else:
                    presence.drop(index)
            presence.stale = {}
        return presence
