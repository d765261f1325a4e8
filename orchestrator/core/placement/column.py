"""One pool with the indexes that make scoring it O(1): its slots in heaps by what they offer, its models by node.

Decides which slot is meant where a pool is chosen. Heaps hold primary figures only and are cleaned lazily: an entry counts while the
slot's version is the one it was made for, so contents and not history decide. Must not know jobs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final

from atoll.model.ids import ModelId, PoolId, SiteId
from orchestrator.core.state import Pool, ReplicaKey, Site, Slot

# (key, second key, node index, slot index, version): valid while the slot's version is this one.
Entry = tuple[int, int, int, int, int]
# A heap is rebuilt from its valid entries when it holds this many times more than there are slots.
_STALE_FACTOR: Final = 8
_STALE_SPARE: Final = 64


@dataclass(slots=True, kw_only=True)
class WarmIndex:
    """Slots of one pool where one model is resident or about to be, by how much is bound to them."""

    free: list[Entry] = field(default_factory=list)  # by -last_used: the most recently used first, so that others stay evictable
    open: list[Entry] = field(default_factory=list)  # by busy_until: may take one more
    full: list[Entry] = field(default_factory=list)  # by busy_until: takes no more now, or executes another model
    slots: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class Free:
    """Free slots of a pool or a node: by what clearing them would cost others, then the longest idle; those that hold what must stay by
    how much can be had; and all of them, the emptiest first."""

    cheap: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    roomy: list[Entry] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Column:
    """One pool with its indexes. `index` is its place in the tables, `first_node` that of its nodes; -1: not indexed yet."""

    index: int
    site: Site
    pool: Pool
    depth: int  # attempts that may be bound to a slot
    first_node: int = -1
    free: Free = field(default_factory=Free)
    free_on: list[Free] = field(default_factory=list)  # by node
    busy: list[Entry] = field(default_factory=list)  # by busy_until
    warm: dict[ReplicaKey, WarmIndex] = field(default_factory=dict)
    disk: dict[ModelId, set[int]] = field(default_factory=dict)  # nodes by index
    host: dict[ModelId, set[int]] = field(default_factory=dict)
    fetching: dict[ModelId, set[int]] = field(default_factory=dict)
    replicas: dict[ModelId, Counter[ReplicaKey]] = field(default_factory=dict)  # of each model, by the slots that hold them
    resident: dict[tuple[int, int], set[ReplicaKey]] = field(default_factory=dict)  # of each ready slot, as indexed
    gangs: Counter[int] = field(default_factory=Counter)  # shares of gangs' replicas, by the size of the gang
    free_slots: int = 0
    node_free: list[int] = field(default_factory=list)  # free slots per node
    place: tuple[SiteId, PoolId] = field(init=False)

    def __post_init__(self) -> None:
        self.place = (self.site.site_id, self.pool.pool_id)

    def slot(self, node_index: int, index: int) -> Slot:
        """The slot at these coordinates."""
        return self.pool.nodes[node_index].slots[index]

    def rates(self) -> tuple[int, int, int]:
        """From disk, to GPUs, and from the origin, bytes per second: as measured, else as declared."""
        told, node = self.site.rates, self.pool.spec.node
        return (
            told.disk_bytes_per_s or node.disk_bytes_per_s,
            told.h2d_bytes_per_s or node.h2d_bytes_per_s or self.pool.gpu.h2d_bytes_per_s,
            told.origin_bytes_per_s or self.site.record.spec.origin_bytes_per_s,
        )

    def changed(self, slot: Slot) -> None:
        """What was indexed of a slot, or known of its node, is old."""
        slot.version += 1
        self.pool.nodes[slot.node_index].version += 1

    def top(self, heap: list[Entry]) -> Slot | None:
        """The first valid slot of a heap; stale entries before it are dropped."""
        nodes = self.pool.nodes
        while heap:
            _, _, node_index, index, version = heap[0]
            slot = nodes[node_index].slots[index]
            if slot.version == version:
                return slot
            heappop(heap)
        return None

    def is_open(self, slot: Slot, key: ReplicaKey) -> bool:
        """Whether a busy slot executes on this replica, or loads it, and may take one more behind that. One that is being emptied for
        somebody may not."""
        if slot.claimed_until_us or slot.kept_until_us:
            return False
        if not slot.attempts:
            return slot.loading is not None and slot.loading.key == key
        first = self.site.attempts[slot.attempts[0]]
        if len(slot.attempts) >= self.depth or first.gives_way_to is not None:
            return False
        return (first.spec.model_id, first.spec.gang_size) == key

    def add_entry(self, heap: list[Entry], entry: Entry) -> None:
        """Put a slot at its place in a heap, and drop stale entries when there are many."""
        heappush(heap, entry)
        if len(heap) > _STALE_FACTOR * self.pool.spec.slots + _STALE_SPARE:
            heap[:] = [entry for entry in heap if self.slot(entry[2], entry[3]).version == entry[4]]
            heapify(heap)

    def has(self, model_id: ModelId) -> bool:
        """Whether anything of the model is in this pool or on its way."""
        return model_id in self.replicas or model_id in self.disk or model_id in self.host or model_id in self.fetching

    def copies(self, model_id: ModelId) -> int:
        """Replicas of the model, a gang's as one."""
        held = self.replicas.get(model_id)
        return sum([slots // key.gang_size for key, slots in held.items()]) if held else 0

    def hold(self, key: ReplicaKey, where: tuple[int, int], step: int) -> None:
        """One slot more (or, with -1, fewer) holds this replica."""
        if step > 0:
            warm = self.warm.get(key)
            if warm is None:
                warm = self.warm[key] = WarmIndex()
            warm.slots.add(where)
        else:
            self.warm[key].slots.discard(where)
            if not self.warm[key].slots:
                del self.warm[key]
        held = self.replicas.get(key.model_id)
        if held is None:
            held = self.replicas[key.model_id] = Counter()
        held[key] += step
        if key.gang_size > 1:
            self.gangs[key.gang_size] += step
            if not self.gangs[key.gang_size]:
                del self.gangs[key.gang_size]
        if not held[key]:
            del held[key]
        if not held:
            del self.replicas[key.model_id]


def free_bytes(slot: Slot) -> int:
    """Memory that no replica of the slot holds or will hold."""
    left = slot.memory_bytes
    for replica in slot.replicas.values():
        left -= replica.memory_bytes
    return left


def is_free(slot: Slot) -> bool:
    """Whether the slot can begin at once, for anybody: what loads is not free, nor is what is kept for a gang, or for a job that comes."""
    return not slot.attempts and slot.ready and not slot.claimed_until_us and not slot.kept_until_us and slot.loading is None
