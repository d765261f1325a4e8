"""The fleet as tables: a line per pool with what it is like now, and where each model is.

Decides nothing; keeps tables and heaps in step with the sites' state. Everything here can be rebuilt from it at any time, and
choices depend on its contents only, never on the order in which it was filled.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, GpuTypeId, ModelId, PoolId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Reason
from atoll.model.report import RateFacts
from atoll.model.site import SiteRuntime
from orchestrator.core.placement import rates, rooms
from orchestrator.core.placement.closed import closed_reason
from orchestrator.core.placement.code import CodeIndex
from orchestrator.core.placement.column import Column, Free, free_bytes, is_free
from orchestrator.core.placement.eviction import Prices, Wishes
from orchestrator.core.placement.gang_tables import GangTables
from orchestrator.core.placement.gangs import is_last_block
from orchestrator.core.placement.peers import Peers
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import FLOWS_MAX, FORBIDDEN_US, ROOM_WIDTH, Bools, Dyn, Ints
from orchestrator.core.placement.whereabouts import Whereabouts
from orchestrator.core.state import Pool, ReplicaKey, Site, Slot

# Every reason by a small number, so that rejections are counted in arrays. 0: none.
REASONS: Final[tuple[Reason | None, ...]] = (None, *Reason)
REASON_CODE: Final = {reason: code for code, reason in enumerate(REASONS) if reason is not None}
_NEVER: Final = 2**62
# As plain integers: a member of an IntEnum costs a look-up each time, and these are written at every decision.
_FREE, _SOONEST, _WHOLE, _ACCEPTING = int(Dyn.FREE), int(Dyn.SOONEST), int(Dyn.WHOLE), int(Dyn.ACCEPTING)


class Columns:
    """Tables over all pools of the fleet; `where` says which has what of a model. `dyn`, `rooms`, `node_rooms`: as in `rows`."""

    disk_rate: Ints
    dyn: Ints
    rooms: Ints
    node_rooms: Ints
    gpu: Ints  # index into gpu_types
    gpus_per_node: Ints
    h2d_rate: Ints
    lan_rate: Ints  # between nodes of the site
    wan_rate: Ints  # of the site to others
    known: Bools  # an agent has said what the site is
    memory: Ints  # of one GPU
    node_disk: Ints
    origin_rate: Ints
    price: Ints  # micro-dollars per GPU and hour
    reason: Ints  # index into REASONS: why the pool cannot be bound just now, if its slots are not the reason
    simulated: Bools
    slots: Ints

    def __init__(self, policy: Policy, models: Mapping[ModelId, ModelSpec], wishes: Wishes) -> None:
        self.depth = policy.slot_depth
        self.layout = 0  # grows when sites, pools or what was declared of them change
        self.version = 0  # grows when anything that class estimates depend on changes
        self.changes = 0  # grows when anything changes that a decision reads, but for what is learned
        self.columns: list[Column] = []
        self.by_pool: dict[tuple[SiteId, PoolId], Column] = {}
        self.where = Whereabouts()
        self.code = CodeIndex()
        self.peers = Peers[ModelId](lambda node: node.disk_models)
        self.adapter_peers = Peers[AdapterId](lambda node: node.disk_adapters)
        self.prices = Prices(policy, models, wishes)
        self.gangs = GangTables(self.prices)
        self.rebuild([])

    @property
    def free(self) -> Ints:
        """Slots without an attempt, by pool."""
        return self.dyn[:, Dyn.FREE]

    @property
    def accepting(self) -> Bools:
        """Whether the pool's site takes new work, by pool."""
        return np.asarray(self.dyn[:, Dyn.ACCEPTING] != 0)

    def accepting_at(self, index: int) -> bool:
        """Whether the site of this pool takes new work."""
        return self.dyn.item(index, _ACCEPTING) != 0

    def after(self, place: tuple[SiteId, PoolId] | None) -> int:
        """The number of the pool whose names follow those of a place that was, or still is; 0 after the last."""
        if place is None or not self.columns:
            return 0
        return bisect_right(self.columns, place, key=lambda column: (column.site.site_id, column.pool.pool_id)) % len(self.columns)

    # --- the fleet's shape -----------------------------------------------------------------------------------------------------

    def rebuild(self, sites: list[Site]) -> None:
        """Number the pools anew: some came or went. Order is that of site and pool names; what is known of a pool that stayed is kept."""
        old = self.columns
        self.columns = [
            self._kept(site, site.pools[pool_id]) for site in sorted(sites, key=lambda site: site.site_id) for pool_id in sorted(site.pools)
        ]
        fresh = [column for column in self.columns if column.index < 0]
        self.by_pool = {(column.site.site_id, column.pool.pool_id): column for column in self.columns}
        repriced: dict[ModelId, None] = {}
        for column in old:
            if self.by_pool.get((column.site.site_id, column.pool.pool_id)) is not column:
                repriced.update(dict.fromkeys(self._count_out(column)))
        self.where.renumber(self.columns, self.by_pool)
        self.gangs.rebuild([])  # numbers and prices move below
        self._allot(len(self.columns))
        gpu_index: dict[GpuTypeId, int] = {}
        nodes = 0
        for index, column in enumerate(self.columns):
            column.index, column.first_node = index, nodes
            pool = column.pool
            nodes += len(pool.nodes)
            if pool.gpu.gpu_type not in gpu_index:
                gpu_index[pool.gpu.gpu_type] = len(self.gpu_types)
                self.gpu_types.append(pool.gpu)
            self.gpu[index] = gpu_index[pool.gpu.gpu_type]
            self.gpus_per_node[index] = pool.spec.gpus_per_node
            self.memory[index] = pool.spec.gpu_memory_bytes or pool.gpu.memory_bytes
            self.price[index] = pool.spec.usd_micros_per_gpu_hour or pool.gpu.usd_micros_per_hour
            self.slots[index] = pool.spec.slots
            self.node_disk[index] = pool.spec.node.disk_cache_bytes
        for column in self.columns:
            for model_id in column.replicas:
                self.where.seen(model_id, column)
            for model_id in {**column.disk, **column.host, **column.fetching}:
                self.where.site_seen(model_id, column)
        for column in fresh:
            self._index_column(column)
        self.code.rebuild(self.columns)
        self.peers.rebuild(sites)
        self.adapter_peers.rebuild(sites)
        for model_id in repriced:
            self.reprice(model_id)
        for column in self.columns:
            self._refresh_pool(column)
            for node_index in range(len(column.pool.nodes)):
                self._refresh_node(column, node_index)
        for site in sites:
            self.refresh_site(site)
        self.gangs.rebuild(self.columns)
        self.version += 1
        self.layout += 1

    def _allot(self, count: int) -> None:
        self.dyn = np.zeros((count, len(Dyn)), dtype=np.int64)
        self.dyn[:, [Dyn.WIDE_BEFORE, Dyn.WIDE_EXECUTION]] = 1_000
        self.rooms = np.zeros((count, ROOM_WIDTH), dtype=np.int64)
        # One line more than there are nodes, so that a table of no nodes can be looked at too.
        self.node_rooms = np.zeros((sum(len(column.pool.nodes) for column in self.columns) + 1, ROOM_WIDTH), dtype=np.int64)
        self.disk_rate, self.h2d_rate, self.lan_rate, self.origin_rate, self.wan_rate = (np.zeros(count, dtype=np.int64) for _ in range(5))
        self.gpu, self.gpus_per_node, self.memory = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.node_disk, self.price, self.slots = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.simulated, self.known = (np.zeros(count, dtype=np.bool_) for _ in range(2))
        self.reason = np.full(count, REASON_CODE[Reason.NOT_CONNECTED], dtype=np.int64)
        self.gpu_types: list[GpuType] = []
        self._sites: dict[SiteId, tuple[object, ...]] = {}  # what each was when its columns were last written
        self.rated: dict[SiteId, RateFacts] = {}
        self.site_ids = [column.site.site_id for column in self.columns]
        self.regions = [column.site.record.spec.region for column in self.columns]

    def _kept(self, site: Site, pool: Pool) -> Column:
        """The column of this very pool, or a new one."""
        known = self.by_pool.get((site.site_id, pool.pool_id))
        return known if known is not None and known.pool is pool else Column(index=-1, site=site, pool=pool, depth=self.depth)

    def _count_out(self, column: Column) -> list[ModelId]:
        """A pool is gone, and with it its copies and flights. The models whose price that changed."""
        changed = [
            key.model_id
            for key, warm in column.warm.items()
            for where in warm.slots
            if self._counts(key, where) and self.prices.count(key.model_id, -1)
        ]
        for model_id, nodes in column.fetching.items():
            for node_index in nodes:
                self.where.end_flight(column, model_id, node_index)
        for index in (column.disk, column.host):
            for model_id, nodes in index.items():
                self.where.count_held(column, model_id, -len(nodes))
        return changed

    def _index_column(self, column: Column) -> None:
        column.node_free = [0] * len(column.pool.nodes)
        column.free_on = [Free() for _ in column.pool.nodes]
        for node_index, node in enumerate(column.pool.nodes):
            for index, models in ((column.disk, node.disk_models), (column.host, node.host_models)):
                for model_id in models:
                    index.setdefault(model_id, set()).add(node_index)
                    self.where.held(column, model_id, 1)
            for model_id in node.fetching:
                self.where.fly(column, model_id, node_index)
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
        """Whether the site takes new work, and what it is."""
        told = site.connection, site.reported, site.record, site.hello, site.fetches, site.copies, list(site.breakers.items())
        if self._sites.get(site.site_id) == told:
            return
        self._sites[site.site_id] = told
        self.peers.heard(site)
        self.adapter_peers.heard(site)
        reason, known, spec = closed_reason(site), site.hello is not None, site.record.spec
        simulated = site.hello is not None and site.hello.runtime is SiteRuntime.TWIN
        for column in self.of_site(site):
            index = column.index
            self.changes += 1
            breaker = site.breakers.get(column.pool.pool_id)
            closed = reason or (Reason.BREAKER_OPEN if breaker is not None and breaker.blocks else None)
            self.dyn[index, Dyn.ACCEPTING] = closed is None
            self.dyn[index, Dyn.FLOWS], self.dyn[index, Dyn.COPIES] = min(site.fetches, FLOWS_MAX), min(site.copies, FLOWS_MAX)
            self.lan_rate[index], self.wan_rate[index] = spec.lan_bytes_per_s, spec.wan_bytes_per_s
            self.reason[index] = REASON_CODE[closed or Reason.NO_SLOT]
            if not self.disk_rate[index]:
                rates.take_of(self, column)
            if bool(self.simulated[index]) != simulated or bool(self.known[index]) != known:
                self.simulated[index], self.known[index] = simulated, known
                self.version += 1

    def flows_changed(self, site: Site) -> None:
        """A fetch to the site, or a copy within it, began or ended: all of its pools share the rate."""
        self.changes += 1
        for column in self.of_site(site):
            line = self.dyn[column.index]
            line[Dyn.FLOWS], line[Dyn.COPIES] = min(site.fetches, FLOWS_MAX), min(site.copies, FLOWS_MAX)

    # --- slots -----------------------------------------------------------------------------------------------------------------

    def slot_changed(self, column: Column, slot: Slot, was_free: bool) -> None:
        """Put a changed slot at its new places. `was_free`: whether it was ready and idle before the change."""
        self._reindex(column, slot, was_free and not slot.claimed_until_us and not slot.kept_until_us)

    def claim_changed(self, column: Column, slot: Slot, until_us: int) -> None:
        """A slot is kept for a gang until then, or (0) no longer."""
        was_free, slot.claimed_until_us = is_free(slot), until_us
        self._reindex(column, slot, was_free)

    def keep_changed(self, column: Column, slot: Slot, until_us: int) -> None:
        """A slot is kept for a job that is moved there until then, or (0) no longer."""
        was_free, slot.kept_until_us = is_free(slot), until_us
        self._reindex(column, slot, was_free)

    def _reindex(self, column: Column, slot: Slot, was_free: bool) -> None:
        column.changed(slot)
        free = is_free(slot)
        if free != was_free:
            step = 1 if free else -1
            column.free_slots += step
            column.node_free[slot.node_index] += step
        self._push(column, slot)
        self._refresh_pool(column)
        self._refresh_node(column, slot.node_index)
        self.gangs.touch(column, slot)

    def _push(self, column: Column, slot: Slot) -> None:
        """Index a slot as it is now."""
        where = (slot.node_index, slot.index)
        known = column.resident.get(where, set())
        present = set(slot.replicas) if slot.ready else set()
        repriced: list[ModelId] = []
        if present != known:
            column.resident[where] = present
            repriced = [key.model_id for key in known - present if self._held(column, key, where, -1)]
            repriced += [key.model_id for key in present - known if self._held(column, key, where, 1)]
        if slot.ready:
            self._push_entries(column, slot)
        # Only now: the slot itself may be among those that are sorted again.
        for model_id in repriced:
            self.reprice(model_id)

    def _push_entries(self, column: Column, slot: Slot) -> None:
        entry = (slot.node_index, slot.index, slot.version)
        free = is_free(slot)
        if not free:
            column.add_entry(column.busy, (slot.free_from_us, 0, *entry))
        else:
            room = to_be_had = free_bytes(slot)
            cost_us, stays = 0, False
            for replica in slot.replicas.values():
                price_us = self.prices.price_us(replica, column.pool)
                cost_us, stays = cost_us + price_us, stays or price_us >= FORBIDDEN_US
                to_be_had += replica.memory_bytes if price_us < FORBIDDEN_US else 0
            for heaps in (column.free, column.free_on[slot.node_index]):
                if stays:
                    column.add_entry(heaps.kept, (-to_be_had, slot.last_used_us, *entry))
                else:
                    column.add_entry(heaps.cheap, (cost_us, slot.last_used_us, *entry))
                column.add_entry(heaps.roomy, (-room, slot.last_used_us, *entry))
        for key, replica in slot.replicas.items():
            warm = column.warm[key]
            if free:
                column.add_entry(warm.free, (-replica.last_used_us, 0, *entry))
            else:
                column.add_entry(warm.open if column.is_open(slot, key) else warm.full, (slot.free_from_us, 0, *entry))
            self.where.stale(key.model_id, column)

    def reprice(self, model_id: ModelId) -> None:
        """The price of a model's replicas changed: free slots that hold one are sorted again."""
        for index in self.where.by_model.get(model_id, ()):
            column = self.columns[index]
            held = column.replicas.get(model_id)
            if held:  # what is only on a disk has no price
                self._sort_again(column, {where for key in held for where in column.warm[key].slots})

    def residence_changed(self, column: Column) -> None:
        """Replicas stay longer in a pool than was thought, or shorter: all that its slots hold has another price."""
        self._sort_again(column, {where for where, held in column.resident.items() if held})

    def _sort_again(self, column: Column, places: set[tuple[int, int]]) -> None:
        for node_index, slot_index in sorted(places):
            slot = column.slot(node_index, slot_index)
            if is_free(slot):
                column.changed(slot)
                self._push(column, slot)
            self._refresh_node(column, node_index)
            self.gangs.touch(column, slot)
        self._refresh_pool(column)

    def _held(self, column: Column, key: ReplicaKey, where: tuple[int, int], step: int) -> bool:
        """A slot holds a replica now, or (-1) no more. Whether that changed the price of the model's other copies."""
        column.hold(key, where, step)
        if step > 0:
            self.where.seen(key.model_id, column)
        else:
            self.where.gone(key.model_id, column)
        return self._counts(key, where) and self.prices.count(key.model_id, step)

    @staticmethod
    def _counts(key: ReplicaKey, where: tuple[int, int]) -> bool:
        """Whether this slot stands for the replica: the first of its gang does."""
        return where[1] % key.gang_size == 0

    def _refresh_pool(self, column: Column) -> None:
        self.changes += 1
        busy = column.top(column.busy)
        line = self.dyn[column.index]
        line[_FREE] = column.free_slots
        line[_WHOLE] = is_last_block(column)
        line[_SOONEST] = busy.free_from_us if busy is not None else _NEVER
        self.rooms[column.index] = rooms.of_pool(column, busy, self.prices)

    def _refresh_node(self, column: Column, node_index: int) -> None:
        self.node_rooms[column.first_node + node_index] = rooms.of_node(column, node_index, self.prices)

    # --- models ----------------------------------------------------------------------------------------------------------------

    def node_changed(self, column: Column, node_index: int, kind: str, model_id: ModelId, present: bool) -> None:
        """A model came to or left a node's `disk`, `host` memory or list of fetches (`fetching`)."""
        self.changes += 1
        if kind == "fetching":
            if present:
                self.where.fly(column, model_id, node_index)
            else:
                self.where.land(column, model_id, node_index)
            return
        index = column.disk if kind == "disk" else column.host
        if kind == "disk":
            self.peers.held(column.site.site_id, model_id, 1 if present else -1)
        if present:
            index.setdefault(model_id, set()).add(node_index)
            self.where.held(column, model_id, 1)
            return
        nodes = index.get(model_id, set())
        nodes.discard(node_index)
        if not nodes:
            index.pop(model_id, None)
        self.where.held(column, model_id, -1)

    def adapters_changed(self, column: Column) -> None:
        """Other adapters are on a node's disk, or on a replica."""
        self.changes += 1
        for model_id in column.replicas:
            self.where.stale(model_id, column)

    def demand_changed(self, model_id: ModelId) -> None:
        """A model is asked for more often than was told, or less: prices go in coarser steps, so that most changes move none."""
        if self.prices.refresh(model_id):
            self.reprice(model_id)

    def model_changed(self, model_id: ModelId) -> None:
        """The catalogue says something else of a model than before."""
        self.prices.refresh(model_id)
        self.reprice(model_id)
