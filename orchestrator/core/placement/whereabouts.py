"""Which pools have what of a model, and which fetches are in flight; the tables of single models, made when asked for.

Decides nothing; an index that can be rebuilt from the sites' state at any time. Must not know jobs or costs.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from atoll.model.ids import ModelId, PoolId, SiteId
from atoll.model.site import SiteRuntime
from orchestrator.core.placement.adapting import Adapting
from orchestrator.core.placement.classes import Variant
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.gang_tables import GangTables
from orchestrator.core.placement.nearness import NOTHING_NEAR, Near
from orchestrator.core.placement.presence import Presence, Residents, line_of, residents, spots_in
from orchestrator.core.state import Site

# Models with a table of their own; the oldest is dropped beyond it. A table of a model that is everywhere is some 10 KB.
_PRESENCES_MAX: Final = 4_096


class Whereabouts:
    """The index of models."""

    __slots__ = ("_by_pool", "_columns", "_flights", "_holding", "_presences", "_variants", "by_model")

    def __init__(self) -> None:
        self.by_model: dict[ModelId, dict[int, None]] = {}
        self._columns: list[Column] = []
        self._by_pool: dict[tuple[SiteId, PoolId], Column] = {}
        self._presences: dict[Variant, Presence] = {}
        self._variants: dict[ModelId, dict[Variant, Presence]] = {}
        # By site and model: when each fetch should be done, by pool and node.
        self._flights: dict[tuple[SiteId, ModelId], dict[tuple[PoolId, int], int]] = {}
        # By site and model: how many disks and host memories have it.
        self._holding: Counter[tuple[SiteId, ModelId]] = Counter()

    def renumber(self, columns: list[Column], by_pool: dict[tuple[SiteId, PoolId], Column]) -> None:
        """Pools have other numbers from now on; what they have must be `seen` again. Flights and holdings stay."""
        self._columns, self._by_pool = columns, by_pool
        self.by_model, self._presences, self._variants = {}, {}, {}

    def fly(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """A fetch to a node began, or should be over at another time than was thought."""
        flights = self._flights.setdefault((column.site.site_id, model_id), {})
        place = (column.pool.pool_id, node_index)
        known, flights[place] = place in flights, column.pool.nodes[node_index].fetching[model_id]
        if not known:
            column.fetching.setdefault(model_id, set()).add(node_index)
            self._moved(model_id, column)
            return
        presences = self._variants.get(model_id)
        if presences:
            for presence in presences.values():
                presence.stale_spots[column.index] = None
            for pool_id in column.site.pools:
                other = self._by_pool.get((column.site.site_id, pool_id))
                if other is not None:
                    self.stale(model_id, other)

    def land(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """A fetch to a node is over."""
        nodes = column.fetching.get(model_id, set())
        nodes.discard(node_index)
        if not nodes:
            column.fetching.pop(model_id, None)
        self.end_flight(column, model_id, node_index)
        self._moved(model_id, column)

    def held(self, column: Column, model_id: ModelId, step: int) -> None:
        """A disk or memory of the site has a model now, or (-1) no more: other nodes of the site can copy it."""
        self.count_held(column, model_id, step)
        self._moved(model_id, column)

    def holds(self, column: Column, model_id: ModelId) -> bool:
        """Whether a node of the pool's site has the model, and others copy it from there."""
        return _copies(column.site) and (column.site.site_id, model_id) in self._holding

    def count_held(self, column: Column, model_id: ModelId, step: int) -> None:
        """As `held`, for a pool that comes or goes as a whole."""
        key = (column.site.site_id, model_id)
        self._holding[key] += step
        if not self._holding[key]:
            del self._holding[key]

    def end_flight(self, column: Column, model_id: ModelId, node_index: int) -> None:
        """Nobody at the site waits for this fetch any more."""
        key = (column.site.site_id, model_id)
        flights = self._flights.get(key, {})
        flights.pop((column.pool.pool_id, node_index), None)
        if not flights:
            self._flights.pop(key, None)

    def _moved(self, model_id: ModelId, column: Column) -> None:
        """Other nodes of the pool have the weights now, or fetch them."""
        for presence in self._variants.get(model_id, {}).values():
            presence.stale_spots[column.index] = None
        self.site_seen(model_id, column)

    def site_seen(self, model_id: ModelId, column: Column) -> None:
        """What one node has or fetches matters to all pools of its site: they may copy it."""
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
        key = (column.site.site_id, model_id)
        if column.has(model_id) or key in self._flights or key in self._holding:
            return
        known = self.by_model.get(model_id)
        if known is not None:
            known.pop(column.index, None)
            if not known:
                del self.by_model[model_id]

    def stale(self, model_id: ModelId, column: Column) -> None:
        """What the model's tables say of the pool is old."""
        for presence in self._variants.get(model_id, {}).values():
            presence.stale[column.index] = None

    def untrue(self, gangs: GangTables, turn: int) -> list[tuple[Variant, int]]:
        """Pools of which a table says something else than is so, and does not know it: for checks, one table at a time."""
        if not self._presences:
            return []
        variant = list(self._presences)[turn % len(self._presences)]
        presence, untrue = self._presences[variant], []
        for index, line in presence.at.items():
            if index not in presence.stale:
                column = self._columns[index]
                if presence.lines[line].tolist() != line_of(column, presence, self.near(column, variant.model_id), gangs):
                    untrue.append((variant, index))
        return untrue

    def presence(self, variant: Variant, gangs: GangTables, adapting: Adapting | None) -> Presence:
        """Where the model is now, in this form; `adapting`: what bringing the variant's adapters takes, None where it has none."""
        presence = self._presences.get(variant)
        if presence is None:
            presence = self._begin(variant)
        if presence.adapting is not adapting:
            presence.adapting = adapting
            presence.stale.update(self.by_model.get(variant.model_id, {}))
        if presence.stale:
            pools = self.by_model.get(variant.model_id, {})
            for index in presence.stale:
                if index in pools:
                    column = self._columns[index]
                    presence.put(index, line_of(column, presence, self.near(column, variant.model_id), gangs))
                else:
                    presence.drop(index)
            presence.stale = {}
        if presence.stale_spots:
            presence.put_spots({index: spots_in(self._columns[index], variant.model_id) for index in presence.stale_spots})
            presence.stale_spots = {}
        return presence

    def residents(self, column: Column, variant: Variant, adapting: Adapting) -> Residents:
        """The replicas of a pool that the table means while it is true, else those that are meant now."""
        presence = self._presences.get(variant)
        if presence is not None and presence.adapting is adapting and column.index not in presence.stale:
            known = presence.meant.get(column.index)
            if known is not None:
                return known
        return residents(column, variant, adapting)

    def near(self, column: Column, model_id: ModelId) -> Near:
        """What the pool's site has of a model for those of its nodes that have nothing of it."""
        if not _copies(column.site):
            return NOTHING_NEAR
        key = (column.site.site_id, model_id)
        flights = self._flights.get(key)
        return Near(key in self._holding, min(flights.values()) if flights else None)

    def _begin(self, variant: Variant) -> Presence:
        if len(self._presences) >= _PRESENCES_MAX:
            oldest = next(iter(self._presences))
            del self._presences[oldest]
            del self._variants[oldest.model_id][oldest]
        presence = self._presences[variant] = Presence(variant)
        self._variants.setdefault(variant.model_id, {})[variant] = presence
        presence.stale = dict(self.by_model.get(variant.model_id, {}))
        presence.stale_spots = dict(presence.stale)
        return presence


def _copies(site: Site) -> bool:
    """Whether nodes of a site copy weights from each other. A real site is one host with one disk: it has nothing to copy within."""
    return site.hello is not None and site.hello.runtime is SiteRuntime.TWIN
