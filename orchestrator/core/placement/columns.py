"""The fleet as columns: one per pool, with the indexes that make scoring a pool O(1).

Decides nothing; keeps arrays and heaps in step with the sites' state. Everything here can be rebuilt from it at any time, and
choices depend on its contents only, never on the order in which it was filled (heaps are keyed by primary figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final

import numpy as np

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId, PoolId, SiteId
from atoll.model.placement import Reason
from atoll.model.site import SiteAdmin, SiteConnection, SiteRuntime
from orchestrator.core.placement.rows import Bools, Ints
from orchestrator.core.state import Pool, Site, Slot

# Every reason by a small number, so that rejections are counted in arrays. 0: none.
REASONS: Final[tuple[Reason | None, ...]] = (None, *Reason)
REASON_CODE: Final = {reason: code for code, reason in enumerate(REASONS) if reason is not None}

# (key, node index, slot index, version): valid while the slot's version is this one.
_Entry = tuple[int, int, int, int]
# A heap is rebuilt from its valid entries when it holds this many times more than there are slots.
_STALE_FACTOR = 8
_NEVER = 2**62


@dataclass(slots=True, kw_only=True)
class WarmIndex:
    """Slots of one pool where one model is resident or about to be, by how much is bound to them."""

    free: list[_Entry] = field(default_factory=list)  # by -last_used: the most recently used first, so that others stay evictable
    open: list[_Entry] = field(default_factory=list)  # by busy_until: may take one more
    full: list[_Entry] = field(default_factory=list)  # by busy_until: takes no more now, or executes another model
    slots: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Column:
    """One pool with its indexes. `index` is its place in the arrays."""

    index: int
    site: Site
    pool: Pool
    free: list[_Entry] = field(default_factory=list)  # by last_used: empty slots first, then the longest idle
    busy: list[_Entry] = field(default_factory=list)  # by busy_until
    warm: dict[ModelId, WarmIndex] = field(default_factory=dict)
    disk: dict[ModelId, set[int]] = field(default_factory=dict)  # nodes by index
    host: dict[ModelId, set[int]] = field(default_factory=dict)
    fetching: dict[ModelId, set[int]] = field(default_factory=dict)
    resident: dict[tuple[int, int], set[ModelId]] = field(default_factory=dict)  # models of each ready slot, as indexed
    free_slots: int = 0
    node_free: list[int] = field(default_factory=list)  # free slots per node

    def slot(self, node_index: int, index: int) -> Slot:
        """The slot at these coordinates."""
        return self.pool.nodes[node_index].slots[index]

    def top(self, heap: list[_Entry]) -> Slot | None:
        """The first valid slot of a heap; stale entries before it are dropped."""
        while heap:
            _, node_index, index, version = heap[0]
            slot = self.slot(node_index, index)
            if slot.version == version:
                return slot
            heappop(heap)
        return None


class Columns:
    """Arrays over all pools of the fleet, and the model index."""

    accepting: Bools
    disk_rate: Ints
    flows: Ints  # fetches from the origin in flight at the pool's site
    free: Ints  # slots without an attempt
    gpu: Ints  # index into gpu_types
    h2d_rate: Ints
    known: Bools  # an agent has said what the site is
    memory: Ints  # of one GPU
    node_disk: Ints
    origin_rate: Ints
    price: Ints  # micro-dollars per GPU and hour
    reason: Ints  # index into REASONS: why the pool cannot be bound just now, if its slots are not the reason
    simulated: Bools
    soonest: Ints  # fleet time at which the first busy slot is predicted to be free

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.version = 0  # grows when anything that class estimates depend on changes
        self.columns: list[Column] = []
        self.by_pool: dict[tuple[SiteId, PoolId], Column] = {}
        self.by_model: dict[ModelId, dict[int, None]] = {}
        self.rebuild([])

    def rebuild(self, sites: list[Site]) -> None:
        """Number the pools anew: some came or went. Order is that of site and pool names; what is known of a pool that stayed is kept."""
        self.columns = [
            self._kept(site, site.pools[pool_id])
            for site in sorted(sites, key=lambda site: site.site_id)
            for pool_id in sorted(site.pools)
        ]
        self.by_pool = {}
        self.by_model = {}
        count = len(self.columns)
        self.disk_rate, self.h2d_rate, self.origin_rate = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.flows, self.free, self.gpu, self.soonest = (np.zeros(count, dtype=np.int64) for _ in range(4))
        self.memory, self.node_disk, self.price = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.accepting = np.zeros(count, dtype=np.bool_)
        self.simulated = np.zeros(count, dtype=np.bool_)
        self.known = np.zeros(count, dtype=np.bool_)
        self.reason = np.full(count, REASON_CODE[Reason.NOT_CONNECTED], dtype=np.int64)
        self.gpu_types: list[GpuType] = []
        gpu_index: dict[GpuTypeId, int] = {}
        self.site_ids = [column.site.site_id for column in self.columns]
        self.regions = [column.site.record.spec.region for column in self.columns]
        for index, column in enumerate(self.columns):
            new, column.index = column.index < 0, index
            pool = column.pool
            self.by_pool[(column.site.site_id, pool.pool_id)] = column
            if pool.gpu.gpu_type not in gpu_index:
                gpu_index[pool.gpu.gpu_type] = len(self.gpu_types)
                self.gpu_types.append(pool.gpu)
            self.gpu[index] = gpu_index[pool.gpu.gpu_type]
            self.memory[index] = pool.spec.gpu_memory_bytes or pool.gpu.memory_bytes
            self.price[index] = pool.spec.usd_micros_per_gpu_hour or pool.gpu.usd_micros_per_hour
            self.node_disk[index] = pool.spec.node.disk_cache_bytes
            if new:
                self._index_column(column)
            for model_id in {**column.warm, **column.disk, **column.host, **column.fetching}:
                self.by_model.setdefault(model_id, {})[index] = None
            self._refresh_pool(column)
        for site in sites:
            self.refresh_site(site)
        self.version += 1

    def _kept(self, site: Site, pool: Pool) -> Column:
        """The column of this very pool, or a new one with index -1."""
        known = self.by_pool.get((site.site_id, pool.pool_id))
        return known if known is not None and known.pool is pool else Column(index=-1, site=site, pool=pool)

    def _index_column(self, column: Column) -> None:
        column.node_free = [0] * len(column.pool.nodes)
        for node_index, node in enumerate(column.pool.nodes):
            for model_id in node.disk_models:
                self._add(column, column.disk, model_id, node_index)
            for model_id in node.host_models:
                self._add(column, column.host, model_id, node_index)
            for model_id in node.fetching:
                self._add(column, column.fetching, model_id, node_index)
            for slot in node.slots:
                if slot.ready and not slot.attempts:
                    column.free_slots += 1
                    column.node_free[node_index] += 1
                self._push(column, slot)

    def _add(self, column: Column, index: dict[ModelId, set[int]], model_id: ModelId, node_index: int) -> None:
        index.setdefault(model_id, set()).add(node_index)
        self.by_model.setdefault(model_id, {})[column.index] = None

    def of_site(self, site: Site) -> Iterator[Column]:
        """The columns of a site."""
        for pool_id in site.pools:
            yield self.by_pool[(site.site_id, pool_id)]

    def refresh_site(self, site: Site) -> None:
        """Whether the site takes new work, and its measured rates. Rates bump the version only when they moved by more than a tenth."""
        reason = _closed_reason(site)
        simulated = site.hello is not None and site.hello.runtime is SiteRuntime.TWIN
        spec = site.record.spec
        for column in self.of_site(site):
            index = column.index
            self.accepting[index] = reason is None
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
            known = site.hello is not None
            if bool(self.simulated[index]) != simulated or bool(self.known[index]) != known:
                self.simulated[index], self.known[index] = simulated, known
                self.version += 1
            self.flows[index] = site.fetches

    def flows_changed(self, site: Site) -> None:
        """A fetch to the site began or ended: all of its pools share the rate."""
        for column in self.of_site(site):
            self.flows[column.index] = site.fetches

    def slot_changed(self, column: Column, slot: Slot, was_free: bool) -> None:
        """Put a changed slot at its new places. `was_free` is what it was before the change."""
        slot.version += 1
        free = slot.ready and not slot.attempts
        if free != was_free:
            step = 1 if free else -1
            column.free_slots += step
            column.node_free[slot.node_index] += step
        self._push(column, slot)
        self._refresh_pool(column)

    def _push(self, column: Column, slot: Slot) -> None:
        where = (slot.node_index, slot.index)
        known = column.resident.get(where, set())
        present = set(slot.replicas) if slot.ready else set()
        for model_id in known - present:
            self._cool(column, model_id, where)
        if present != known:
            column.resident[where] = present
        if not slot.ready:
            return
        entry = (*where, slot.version)
        if slot.attempts:
            self._add_entry(column, column.busy, (slot.busy_until_us, *entry))
        else:
            self._add_entry(column, column.free, (slot.last_used_us, *entry))
        bound = slot.attempts
        executing = column.site.attempts[bound[0]].model_id if bound else None
        for model_id, replica in slot.replicas.items():
            warm = column.warm.get(model_id)
            if warm is None:
                warm = column.warm[model_id] = WarmIndex()
                self.by_model.setdefault(model_id, {})[column.index] = None
            warm.slots.add(where)
            if not bound:
                self._add_entry(column, warm.free, (-replica.last_used_us, *entry))
            elif model_id == executing and len(bound) < self.depth:
                self._add_entry(column, warm.open, (slot.busy_until_us, *entry))
            else:
                self._add_entry(column, warm.full, (slot.busy_until_us, *entry))

    def _add_entry(self, column: Column, heap: list[_Entry], entry: _Entry) -> None:
        heappush(heap, entry)
        if len(heap) > _STALE_FACTOR * column.pool.spec.slots + 64:
            heap[:] = [entry for entry in heap if column.slot(entry[1], entry[2]).version == entry[3]]
            heapify(heap)

    def _cool(self, column: Column, model_id: ModelId, where: tuple[int, int]) -> None:
        warm = column.warm.get(model_id)
        if warm is None:
            return
        warm.slots.discard(where)
        if not warm.slots:
            del column.warm[model_id]
            self._forget(column, model_id)

    def _forget(self, column: Column, model_id: ModelId) -> None:
        if not (column.warm.get(model_id) or column.disk.get(model_id) or column.host.get(model_id) or column.fetching.get(model_id)):
            known = self.by_model.get(model_id)
            if known is not None:
                known.pop(column.index, None)
                if not known:
                    del self.by_model[model_id]

    def _refresh_pool(self, column: Column) -> None:
        self.free[column.index] = column.free_slots
        top = column.top(column.busy)
        self.soonest[column.index] = top.busy_until_us if top is not None else _NEVER

    def node_changed(self, column: Column, node_index: int, kind: str, model_id: ModelId, present: bool) -> None:
        """A model came to or left a node's `disk`, `host` memory or list of fetches (`fetching`)."""
        index: dict[ModelId, set[int]] = getattr(column, kind)
        if present:
            self._add(column, index, model_id, node_index)
            return
        nodes = index.get(model_id)
        if nodes is not None:
            nodes.discard(node_index)
            if not nodes:
                del index[model_id]
                self._forget(column, model_id)


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

