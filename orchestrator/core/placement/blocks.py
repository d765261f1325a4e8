"""The blocks of one pool for gangs of one size, in heaps by what they offer, as `column` has its slots.

A gang of g slots takes the block that begins at a multiple of g: blocks nest, so that what one gang leaves is whole for the next, and
two gangs never hold halves of what both need.
Decides which block is meant where a pool, or a node of it, is chosen. Looked at again are only blocks of slots that were touched, when
somebody asks: contents and not history decide. Must not know jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from atoll.model.ids import ModelId
from atoll.model.limits import NEEDED_BYTES_MAX
from orchestrator.core.placement.column import Column, Entry, Free, free_bytes, is_free
from orchestrator.core.placement.eviction import Prices, Victim, leaving
from orchestrator.core.placement.rows import FORBIDDEN_US, ROOM_WIDTH, VICTIMS, Room
from orchestrator.core.state import Slot

# A heap is rebuilt from its valid entries when it holds this many times more than there are blocks.
_STALE_FACTOR: Final = 8
_STALE_SPARE: Final = 64
# Of the blocks that a gang fits in with nobody leaving, so many of the emptiest are compared by how full their nodes are.
_COMPARED_MAX: Final = 8
_NOTHING_KEPT: Final = [0] * (Room.FRESH - Room.KEPT_LEAST)
_NO_ROOM: Final = [0] * ROOM_WIDTH

Members = tuple[Slot, ...]
# Node and first slot.
Where = tuple[int, int]


class _Figures(NamedTuple):
    """What a block offers: of its fullest slot the free bytes, and those that can be had; what clearing it all would cost."""

    is_free: bool
    room: int
    to_be_had: int
    stays: bool  # something in it must stay
    price_us: int
    used_us: int
    until_us: int


@dataclass(slots=True)
class _Ready:
    """Blocks that hold a gang's replica: free ones, the most recently used first, and others, the first to be free first."""

    free: list[Entry] = field(default_factory=list)
    busy: list[Entry] = field(default_factory=list)


class Blocks:
    """All blocks of a pool whose slots work. `dirty`: where a pool that was touched is noted, by its number."""

    __slots__ = (
        "_column",
        "_dirty",
        "_figures",
        "_free",
        "_prices",
        "_ready",
        "_soonest",
        "_stale",
        "_versions",
        "free_count",
        "size",
        "stale_nodes",
    )

    def __init__(self, column: Column, size: int, prices: Prices, dirty: dict[int, None]) -> None:
        self.size = size
        self._column, self._prices, self._dirty = column, prices, dirty
        self._figures: dict[Where, _Figures] = {}
        self._versions: dict[Where, int] = {}
        self._free = Free()
        self._soonest: list[Entry] = []
        self._ready: dict[ModelId, _Ready] = {}
        self.free_count = 0
        self.stale_nodes: dict[int, None] = {}
        self._stale: dict[Where, None] = {
            (number, first): None for number, node in enumerate(column.pool.nodes) for first in range(0, len(node.slots) - size + 1, size)
        }
        dirty[column.index] = None

    def touch(self, slot: Slot) -> None:
        """A slot changed, or what leaves it has another price."""
        first = slot.index - slot.index % self.size
        self._stale[slot.node_index, first] = None
        self._dirty[self._column.index] = None

    def at(self, where: Where) -> Members:
        """The slots of a block."""
        node_index, first = where
        return tuple(self._column.pool.nodes[node_index].slots[first : first + self.size])

    def refresh(self) -> None:
        """Look at what was touched."""
        while self._stale:
            where, _ = self._stale.popitem()
            self._index(where)

    def _index(self, where: Where) -> None:
        slots, old = self.at(where), self._figures.pop(where, None)
        self.free_count -= old is not None and old.is_free
        self.stale_nodes[where[0]] = None
        version = self._versions[where] = self._versions.get(where, 0) + 1
        found = self._measure(slots) if len(slots) == self.size else None
        if found is None:
            return
        self._figures[where] = found
        entry = (*where, version)
        if found.is_free:
            self.free_count += 1
            if found.stays:
                self._add(self._free.kept, (-found.to_be_had, found.used_us, *entry))
            else:
                self._add(self._free.cheap, (found.price_us, found.used_us, *entry))
            self._add(self._free.roomy, (-found.room, found.used_us, *entry))
        else:
            self._add(self._soonest, (found.until_us, 0, *entry))
        for key, replica in slots[0].replicas.items():
            if key.gang_size == self.size and all(key in slot.replicas for slot in slots):
                ready = self._ready.setdefault(key.model_id, _Ready())
                if found.is_free:
                    self._add(ready.free, (-replica.last_used_us, 0, *entry))
                else:
                    self._add(ready.busy, (found.until_us, 0, *entry))

    def _measure(self, slots: Members) -> _Figures | None:
        """None: a slot does not work. What clearing would cost is told of free blocks."""
        free, until_us = True, 0
        for slot in slots:
            if not slot.ready:
                return None
            free = free and is_free(slot)
            until_us = max(until_us, slot.free_from_us)
        room, to_be_had, price_us, stays = 2**62, 2**62, 0, False
        pool, price_of = self._column.pool, self._prices.price_us
        for slot in slots:
            left = had = slot.memory_bytes
            for replica in slot.replicas.values():
                left -= replica.memory_bytes
                cost_us = price_of(replica, pool) if free else 0
                if cost_us >= FORBIDDEN_US:
                    stays = True
                    had -= replica.memory_bytes
                else:
                    price_us += cost_us
            # An agent may claim replicas of any size: none is larger than what no GPU has.
            room, to_be_had = min(room, max(left, -NEEDED_BYTES_MAX)), min(to_be_had, max(had, -NEEDED_BYTES_MAX))
        return _Figures(
            is_free=free,
            room=room,
            to_be_had=to_be_had,
            stays=stays,
            price_us=price_us,
            used_us=slots[0].last_used_us,
            until_us=until_us,
        )

    def _add(self, heap: list[Entry], entry: Entry) -> None:
        heappush(heap, entry)
        if len(heap) > _STALE_FACTOR * len(self._versions) + _STALE_SPARE:
            heap[:] = [one for one in heap if self._versions[one[2], one[3]] == one[4]]
            heapify(heap)

    def _top(self, heap: list[Entry]) -> Where | None:
        while heap:
            _, _, node_index, first, version = heap[0]
            if self._versions[node_index, first] == version:
                return node_index, first
            heappop(heap)
        return None

    def _first(self, heap: list[Entry], most: int) -> list[Where]:
        """The first few of a heap."""
        taken: list[Entry] = []
        while len(taken) < most and self._top(heap) is not None:
            taken.append(heappop(heap))
        for entry in taken:
            heappush(heap, entry)
        return [(entry[2], entry[3]) for entry in taken]

    # --- which block -----------------------------------------------------------------------------------------------------------

    def ready(self, model_id: ModelId) -> Members | None:
        """The block whose slots all hold a gang's replica: a free one that was used last, else the one that should be free first."""
        self.refresh()
        known = self._ready.get(model_id)
        if known is None:
            return None
        where = self._top(known.free) or self._top(known.busy)
        if where is None:
            del self._ready[model_id]
        return None if where is None else self.at(where)

    def soonest(self) -> Members | None:
        """The block that should be free first, of those that are not."""
        self.refresh()
        where = self._top(self._soonest)
        return None if where is None else self.at(where)

    def in_turn(self, most: int) -> Iterator[Members]:
        """The first blocks that should be free."""
        self.refresh()
        for where in self._first(self._soonest, most):
            yield self.at(where)

    def on(self, node_index: int) -> Iterator[Members]:
        """The blocks of a node."""
        self.refresh()
        for first in range(0, len(self._column.pool.nodes[node_index].slots) - self.size + 1, self.size):
            if (node_index, first) in self._figures:
                yield self.at((node_index, first))

    def to_load_in(self, need_bytes: int, node_index: int | None) -> Members | None:
        """The free block that a new replica would take: one that it fits in with nobody leaving, on the fullest node, so that whole nodes
        stay whole; else the cheaper to clear. `node_index`: only on this node."""
        self.refresh()
        if node_index is not None:
            return self._to_load_on(need_bytes, node_index)
        roomy = self._first(self._free.roomy, _COMPARED_MAX)
        fitting = [where for where in roomy if self._figures[where].room >= need_bytes]
        if fitting:
            return self.at(min(fitting, key=self._fullest))
        return self._cheaper(need_bytes, self._top(self._free.cheap), self._top(self._free.kept))

    def _to_load_on(self, need_bytes: int, node_index: int) -> Members | None:
        free = self._free_on(node_index)
        fitting = [where for where in free if self._figures[where].room >= need_bytes]
        if fitting:
            return self.at(min(fitting, key=self._fullest))
        return self._cheaper(need_bytes, *self._best_on(free))

    def _fullest(self, where: Where) -> tuple[int, int, int, int]:
        return (self._column.node_free[where[0]], self._figures[where].used_us, *where)

    def _cheaper(self, need_bytes: int, *found: Where | None) -> Members | None:
        blocks = [self.at(where) for where in found if where is not None]
        return min(blocks, key=lambda slots: self.price_us(slots, need_bytes), default=None)

    def price_us(self, slots: Members, need_bytes: int) -> int:
        """What it costs others that a new replica takes so much of each of these slots; FORBIDDEN_US where it cannot."""
        price_us = 0
        for slot in slots:
            short_bytes = need_bytes - free_bytes(slot)
            gone: tuple[Victim, ...] = ()
            if short_bytes > 0:
                gone = leaving(self._prices.victims(slot, self._column.pool), short_bytes)
                if sum(victim.memory_bytes for victim in gone) < short_bytes:
                    return FORBIDDEN_US
            price_us += sum(victim.price_us for victim in gone)
        return min(price_us, FORBIDDEN_US)

    # --- as lines of tables (`rows.Room`) ------------------------------------------------------------------------------------------

    def line(self) -> list[int]:
        """The line of the pool; where no block is free, of the one that is first."""
        if self.free_count:
            roomy = self._top(self._free.roomy)
            assert roomy is not None, "a free block is among the free ones"
            return self._told(self.free_count, roomy, self._top(self._free.cheap), self._top(self._free.kept))
        soonest = self._top(self._soonest)
        if soonest is None:
            return _NO_ROOM
        return [0, self._figures[soonest].room, *self._clearing(soonest), *_NOTHING_KEPT, 3 * self._first_in(soonest)]

    def until_us(self) -> int | None:
        """When the first block that is not free should be."""
        soonest = self._top(self._soonest)
        return None if soonest is None else self._figures[soonest].until_us

    def line_of(self, node_index: int) -> list[int]:
        """The line of a node."""
        free = self._free_on(node_index)
        if not free:
            return _NO_ROOM
        roomy = max(free, key=lambda where: self._figures[where].room)
        return self._told(len(free), roomy, *self._best_on(free))

    def told(self) -> tuple[object, ...]:
        """All that the index tells: for checks, since it looks at all."""
        self.refresh()
        lines = [self.line_of(number) for number in range(len(self._column.pool.nodes))]
        ready = {model_id: where for model_id, known in self._ready.items() if (where := self._top(known.free) or self._top(known.busy))}
        firsts = self._first(self._soonest, len(self._versions)), self._first(self._free.roomy, len(self._versions))
        return self.free_count, self.until_us(), self.line(), lines, ready, firsts, self._figures

    def _free_on(self, node_index: int) -> list[Where]:
        firsts = range(0, len(self._column.pool.nodes[node_index].slots), self.size)
        found = ((node_index, first) for first in firsts)
        return [where for where in found if (figures := self._figures.get(where)) is not None and figures.is_free]

    def _best_on(self, free: list[Where]) -> tuple[Where | None, Where | None]:
        """The one that is cheapest to clear, and of those that hold what must stay the one where most can be had."""
        told = [(self._figures[where], where) for where in free]
        cheap = min(((one.price_us, one.used_us, where) for one, where in told if not one.stays), default=None)
        kept = min(((-one.to_be_had, one.used_us, where) for one, where in told if one.stays), default=None)
        return None if cheap is None else cheap[2], None if kept is None else kept[2]

    def _told(self, count: int, roomy: Where, cheap: Where | None, kept: Where | None) -> list[int]:
        return [
            count,
            self._figures[roomy].room,
            *(self._clearing(cheap) if cheap is not None else _NOTHING_KEPT),
            *(self._clearing(kept) if kept is not None else _NOTHING_KEPT),
            self._first_in(roomy) + 2 * self._first_in(cheap) + 4 * self._first_in(kept),
        ]

    def _first_in(self, where: Where | None) -> bool:
        """Whether a gang's generation would be the first of a process there: then all members wait for that one."""
        return where is not None and any(slot.awaits_first for slot in self.at(where))

    def _clearing(self, where: Where) -> list[int]:
        """How much of each slot is free, and what more of it costs, step by step: what leaves any of the slots for that."""
        steps: dict[int, int] = {}  # by the room that there is before: what has to be paid for more
        most = 2**62
        for slot in self.at(where):
            room = max(free_bytes(slot), -NEEDED_BYTES_MAX)
            for victim in self._prices.victims(slot, self._column.pool) if slot.replicas else ():
                steps[room] = steps.get(room, 0) + victim.price_us
                room = min(room + victim.memory_bytes, NEEDED_BYTES_MAX)
            most = min(most, room)
        rooms = sorted(room for room in steps if room < most)
        line = [rooms[0] if rooms else most]
        for number, room in enumerate(rooms[: VICTIMS - 1]):
            line += ((rooms[number + 1] if number + 1 < len(rooms) else most) - room, min(steps[room], FORBIDDEN_US))
        rest = rooms[VICTIMS - 1 :]
        if rest:
            line += (min(most - rest[0], NEEDED_BYTES_MAX), min(sum(steps[room] for room in rest), FORBIDDEN_US))
        return line + [0] * (1 + 2 * VICTIMS - len(line))
