"""The fleet as tables: a line per pool with what it is like now, and where each model is.

Decides nothing; keeps tables and heaps in step with the sites' state. Everything here can be rebuilt from it at any time, and
choices depend on its contents only, never on the order in which it was filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId, PoolId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Reason
from atoll.model.site import SiteAdmin, SiteConnection, SiteRuntime
from orchestrator.core.placement.column import Column, WarmIndex, free_bytes, is_free
from orchestrator.core.placement.eviction import Prices, as_figures
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.presence import Presence, line_of
from orchestrator.core.placement.rows import DYN_WIDTH, Bools, Dyn, Ints
from orchestrator.core.state import Pool, Site, Slot

# Every reason by a small number, so that rejections are counted in arrays. 0: none.
REASONS: Final[tuple[Reason | None, ...]] = (None, *Reason)
REASON_CODE: Final = {reason: code for code, reason in enumerate(REASONS) if reason is not None}
_NEVER: Final = 2**62
# Models with a table of their own; the longest unasked one is dropped beyond it. A table of a model that is everywhere is some 20 KB.
_PRESENCES_MAX: Final = 4_096


class Columns:
    """Tables over all pools of the fleet, and the index of models. `dyn` is as `rows.Dyn` says."""

    disk_rate: Ints
    dyn: Ints
    gpu: Ints  # index into gpu_types
    gpus_per_node: Ints
    h2d_rate: Ints
    known: Bools  # an agent has said what the site is
    memory: Ints  # of one GPU
    node_disk: Ints
    origin_rate: Ints
    price: Ints  # micro-dollars per GPU and hour
    reason: Ints  # index into REASONS: why the pool cannot be bound just now, if its slots are not the reason
    simulated: Bools

    def __init__(
        self, policy: Policy, models: Mapping[ModelId, ModelSpec], rate_per_hour_milli: Callable[[ModelId], int]
    ) -> None:
        self.depth = policy.slot_depth
        self.version = 0  # grows when anything that class estimates depend on changes
        self.columns: list[Column] = []
        self.by_pool: dict[tuple[SiteId, PoolId], Column] = {}
        self.by_model: dict[ModelId, dict[int, None]] = {}
        self.prices = Prices(models=models, rate_per_hour_milli=rate_per_hour_milli, residence_ms=policy.residence_ms)
        self._presences: dict[ModelId, Presence] = {}
        # Fetches in flight by site and model: when each should be done, by pool and node.
        self._flights: dict[tuple[SiteId, ModelId], dict[tuple[PoolId, int], int]] = {}
        self.rebuild([])

    @property
    def free(self) -> Ints:
        """Slots without an attempt, by pool."""
        return self.dyn[:, Dyn.FREE]

    @property
    def accepting(self) -> Bools:
        """Whether the pool's site takes new work, by pool."""
        return np.asarray(self.dyn[:, Dyn.ACCEPTING] != 0)

    # --- the fleet's shape -----------------------------------------------------------------------------------------------------

    def rebuild(self, sites: list[Site]) -> None:
        """Number the pools anew: some came or went. Order is that of site and pool names; what is known of a pool that stayed is kept."""
        kept = {id(column) for column in self.columns}
        old = self.columns
        self.columns = [
            self._kept(site, site.pools[pool_id])
            for site in sorted(sites, key=lambda site: site.site_id)
            for pool_id in sorted(site.pools)
        ]
        staying = {id(column) for column in self.columns}
        repriced: dict[ModelId, None] = {}
        for column in old:
            if id(column) not in staying:
                repriced.update(dict.fromkeys(self._count_out(column)))
        self.by_pool, self.by_model, self._presences = {}, {}, {}
        self._allot(len(self.columns))
        gpu_index: dict[GpuTypeId, int] = {}
        for index, column in enumerate(self.columns):
            column.index = index
            pool = column.pool
            self.by_pool[(column.site.site_id, pool.pool_id)] = column
            if pool.gpu.gpu_type not in gpu_index:
                gpu_index[pool.gpu.gpu_type] = len(self.gpu_types)
                self.gpu_types.append(pool.gpu)
            self.gpu[index] = gpu_index[pool.gpu.gpu_type]
            self.gpus_per_node[index] = pool.spec.gpus_per_node
            self.memory[index] = pool.spec.gpu_memory_bytes or pool.gpu.memory_bytes
            self.price[index] = pool.spec.usd_micros_per_gpu_hour or pool.gpu.usd_micros_per_hour
            self.node_disk[index] = pool.spec.node.disk_cache_bytes
        for column in self.columns:
            for model_id in {**column.warm, **column.disk, **column.host}:
                self._seen(model_id, column)
            for model_id in column.fetching:
                self._site_seen(model_id, column)
        for column in self.columns:
            if id(column) not in kept:
                self._index_column(column)
        for model_id in repriced:
            self.reprice(model_id)
        for column in self.columns:
            self._refresh_pool(column)
        for site in sites:
            self.refresh_site(site)
        self.version += 1

    def _allot(self, count: int) -> None:
        self.dyn = np.zeros((count, DYN_WIDTH), dtype=np.int64)
        self.disk_rate, self.h2d_rate, self.origin_rate = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.gpu, self.gpus_per_node, self.memory = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.node_disk, self.price = (np.zeros(count, dtype=np.int64) for _ in range(2))
        self.simulated, self.known = (np.zeros(count, dtype=np.bool_) for _ in range(2))
        self.reason = np.full(count, REASON_CODE[Reason.NOT_CONNECTED], dtype=np.int64)
        self.gpu_types: list[GpuType] = []
        self.site_ids = [column.site.site_id for column in self.columns]
        self.regions = [column.site.record.spec.region for column in self.columns]

    def _kept(self, site: Site, pool: Pool) -> Column:
        """The column of this very pool, or a new one."""
        known = self.by_pool.get((site.site_id, pool.pool_id))
        return known if known is not None and known.pool is pool else Column(index=-1, site=site, pool=pool)

    def _count_out(self, column: Column) -> list[ModelId]:
        """A pool is gone, and with it its copies and flights. The models whose price that changed."""
        changed = [model_id for model_id, warm in column.warm.items() for _ in warm.slots if self.prices.count(model_id, -1)]
        for model_id, nodes in column.fetching.items():
            for node_index in nodes:
                self._end_flight(column, model_id, node_index)
        return changed

    def _index_column(self, column: Column) -> None:
        column.node_free = [0] * len(column.pool.nodes)
        for node_index, node in enumerate(column.pool.nodes):
            for index, models in ((column.disk, node.disk_models), (column.host, node.host_models)):
                for model_id in models:
                    index.setdefault(model_id, set()).add(node_index)
                    self._seen(model_id, column)
            for model_id in node.fetching:
                self._fly(column, model_id, node_index)
            for slot in node.slots:
                if is_free(slot):
                    column.free_slots += 1
                    column.node_free[node_index] += 1
                self._push(column, slot)

    def of_site(self, site: Site) -> Iterator[Column]:
        """The columns of a site."""
        for pool_id in site.pools:
            yield self.by_pool[(site.site_id, pool_id)]

    def refresh_site(self, site: Site) -> None:
        """Whether the site takes new work, and its measured rates. Rates bump the version only when they moved by more than a tenth."""
        reason = _closed_reason(site)
        simulated = site.hello is not None and site.hello.runtime is SiteRuntime.TWIN
        known = site.hello is not None
        spec = site.record.spec
        for column in self.of_site(site):
            index = column.index
            self.dyn[index, Dyn.ACCEPTING] = reason is None
            self.dyn[index, Dyn.FLOWS] = site.fetches
            self.reason[index] = REASON_CODE[reason or Reason.NO_SLOT]
            node = column.pool.spec.node
            rates = (
                site.rates.disk_bytes_per_s or node.disk_bytes_per_s,
                site.rates.h2d_bytes_per_s or node.h2d_bytes_per_s or column.pool.gpu.h2d_bytes_per_s,
                site.rates.origin_bytes_per_s or spec.origin_bytes_per_s,
            )
            for array, rate in zip((self.disk_rate, self.h2d_rate, self.origin_rate), rates, strict=True):
                if abs(int(array[index]) - rate) * 10 > int(array[index]):
                    array[index] = max(rate, 1)
                    self.version += 1
            if bool(self.simulated[index]) != simulated or bool(self.known[index]) != known:
                self.simulated[index], self.known[index] = simulated, known
                self.version += 1

    def flows_changed(self, site: Site) -> None:
        """A fetch to the site began or ended: all of its pools share the rate."""
        for column in self.of_site(site):
            self.dyn[column.index, Dyn.FLOWS] = site.fetches

    # --- slots -----------------------------------------------------------------------------------------------------------------

    def slot_changed(self, column: Column, slot: Slot, was_free: bool) -> None:
        """Put a changed slot at its new places. `was_free` is what it was before the change."""
        slot.version += 1
        free = is_free(slot)
        if free != was_free:
            step = 1 if free else -1
            column.free_slots += step
            was_any = column.node_free[slot.node_index] > 0
            column.node_free[slot.node_index] += step
            if was_any != (column.node_free[slot.node_index] > 0) or column.free_slots == (1 if free else 0):
                self._node_turned(column, slot.node_index)
        self._push(column, slot)
        self._refresh_pool(column)

    def _node_turned(self, column: Column, node_index: int) -> None:
        """A node has a free slot again, or none any more: where weights are nearest may change for all that it holds."""
        node = column.pool.nodes[node_index]
        full = column.free_slots <= 1  # with no free slot at all, any node counts
        for models in (column.disk, column.host, column.fetching) if full else (node.disk_models, node.host_models, node.fetching):
            for model_id in models:
                self._stale(model_id, column)

    def _push(self, column: Column, slot: Slot) -> None:
        where = (slot.node_index, slot.index)
        known = column.resident.get(where, set())
        present = set(slot.replicas) if slot.ready else set()
        if present != known:
            column.resident[where] = present
            for model_id in known - present:
                self._cool(column, model_id, where)
            for model_id in present - known:
                column.warm.setdefault(model_id, WarmIndex()).slots.add(where)
                self._seen(model_id, column)
                if self.prices.count(model_id, 1):
                    self.reprice(model_id)
        if not slot.ready:
            return
        entry = (*where, slot.version)
        bound = slot.attempts
        if bound:
            column.add_entry(column.busy, (slot.busy_until_us, 0, *entry))
        else:
            price_us = sum(self.prices.price_us(replica, column.pool) for replica in slot.replicas.values())
            column.add_entry(column.cheap, (price_us, slot.last_used_us, *entry))
            column.add_entry(column.roomy, (-free_bytes(slot), slot.last_used_us, *entry))
        executing = column.site.attempts[bound[0]].model_id if bound else None
        for model_id, replica in slot.replicas.items():
            warm = column.warm[model_id]
            if not bound:
                column.add_entry(warm.free, (-replica.last_used_us, 0, *entry))
            elif model_id == executing and len(bound) < self.depth:
                column.add_entry(warm.open, (slot.busy_until_us, 0, *entry))
            else:
                column.add_entry(warm.full, (slot.busy_until_us, 0, *entry))
            self._stale(model_id, column)

    def reprice(self, model_id: ModelId) -> None:
        """The price of a model's replicas changed: free slots that hold one are sorted again."""
        for index in self.by_model.get(model_id, ()):
            column = self.columns[index]
            warm = column.warm.get(model_id)
            for node_index, slot_index in sorted(warm.slots) if warm is not None else ():
                slot = column.slot(node_index, slot_index)
                if is_free(slot):
                    slot.version += 1
                    self._push(column, slot)
            self._refresh_pool(column)

    def _cool(self, column: Column, model_id: ModelId, where: tuple[int, int]) -> None:
        warm = column.warm[model_id]
        warm.slots.discard(where)
        if not warm.slots:
            del column.warm[model_id]
        self._gone(model_id, column)
        if self.prices.count(model_id, -1):
            self.reprice(model_id)

    def _refresh_pool(self, column: Column) -> None:
        line = self.dyn[column.index]
        busy, cheap, roomy = column.top(column.busy), column.top(column.cheap), column.top(column.roomy)
        line[Dyn.FREE] = column.free_slots
        line[Dyn.SOONEST] = busy.busy_until_us if busy is not None else _NEVER
        line[Dyn.ROOM] = free_bytes(roomy) if roomy is not None else 0
        line[Dyn.SLOT_FREE] = free_bytes(cheap) if cheap is not None else 0
        if cheap is not None and cheap.replicas:
            line[Dyn.VICTIM :] = as_figures(self.prices.victims(cheap, column.pool))
        else:
            line[Dyn.VICTIM :] = 0

    # --- models ----------------------------------------------------------------------------------------------------------------

    def node_changed(self, column: Column, node_index: int, kind: str, model_id: ModelId, present: bool) -> None:
        """A model came to or left a node's `disk`, `host` memory or list of fetches (`fetching`)."""
        if kind == "fetching":
            if present:
                self._fly(column, model_id, node_index)
            else:
                self._land(column, model_id, node_index)
            return
        index = column.disk if kind == "disk" else column.host
        if present:
            index.setdefault(model_id, set()).add(node_index)
            self._seen(model_id, column)
            return
        nodes = index.get(model_id, set())
        nodes.discard(node_index)
        if not nodes:
            index.pop(model_id, None)
        self._gone(model_id, column)

    def _fly(self, column: Column, model_id: ModelId, node_index: int) -> None:
        column.fetching.setdefault(model_id, set()).add(node_index)
        flights = self._flights.setdefault((column.site.site_id, model_id), {})
        flights[(column.pool.pool_id, node_index)] = column.pool.nodes[node_index].fetching[model_id]
        self._site_seen(model_id, column)

    def _land(self, column: Column, model_id: ModelId, node_index: int) -> None:
        nodes = column.fetching.get(model_id, set())
        nodes.discard(node_index)
        if not nodes:
            column.fetching.pop(model_id, None)
        self._end_flight(column, model_id, node_index)
        self._site_seen(model_id, column)

    def _end_flight(self, column: Column, model_id: ModelId, node_index: int) -> None:
        key = (column.site.site_id, model_id)
        flights = self._flights.get(key, {})
        flights.pop((column.pool.pool_id, node_index), None)
        if not flights:
            self._flights.pop(key, None)

    def _site_seen(self, model_id: ModelId, column: Column) -> None:
        """A fetch to one node matters to all pools of its site: they may wait for it."""
        for pool_id in column.site.pools:
            other = self.by_pool.get((column.site.site_id, pool_id))
            if other is not None:
                self._seen(model_id, other)
                self._gone(model_id, other)

    def _seen(self, model_id: ModelId, column: Column) -> None:
        self.by_model.setdefault(model_id, {})[column.index] = None
        self._stale(model_id, column)

    def _gone(self, model_id: ModelId, column: Column) -> None:
        """Something of the model left the pool: forget the pool if that was all."""
        self._stale(model_id, column)
        if column.has(model_id) or (column.site.site_id, model_id) in self._flights:
            return
        known = self.by_model.get(model_id)
        if known is not None:
            known.pop(column.index, None)
            if not known:
                del self.by_model[model_id]

    def _stale(self, model_id: ModelId, column: Column) -> None:
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
                    presence.put(index, self.line(model_id, index))
                else:
                    presence.drop(index)
            presence.stale = {}
        return presence

    def line(self, model_id: ModelId, index: int) -> list[int]:
        """What the model's line of a pool should say now."""
        column = self.columns[index]
        flights = self._flights.get((column.site.site_id, model_id))
        return line_of(column, model_id, min(flights.values()) if flights else None, self.prices)


def _closed_reason(site: Site) -> Reason | None:
    if site.connection is not SiteConnection.CONNECTED or not site.reported:
        return Reason.NOT_CONNECTED
    match site.record.admin:
        case SiteAdmin.OPEN:
            return None
        case SiteAdmin.DRAINING | SiteAdmin.DRAINED:
            return Reason.DRAINING
        case SiteAdmin.CORDONED | SiteAdmin.REMOVED:
            return Reason.CORDONED
