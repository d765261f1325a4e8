"""Gangs: which aligned block of a node's slots a job on several GPUs gets, all or nothing.

A gang of g slots takes the block that begins at a multiple of g: blocks nest, so that what one gang leaves is whole for the next, and
two gangs never hold halves of what both need. What is kept for a gang that waits is `claims`' to say.
Decides which block of a pool is meant. Must not know jobs or what anything costs beyond the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from atoll.model.limits import NEEDED_BYTES_MAX
from orchestrator.core.placement.classes import Variant
from orchestrator.core.placement.column import Column, free_bytes, is_free
from orchestrator.core.placement.eviction import Prices, Victim, leaving
from orchestrator.core.placement.rows import FORBIDDEN_US, Slots, Source, State
from orchestrator.core.state import ReplicaKey, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The slots of a gang, the first leads; what leaves them so that it fits, by slot, and what that costs others in microseconds."""

    slots: tuple[Slot, ...]
    victims: tuple[tuple[Victim, ...], ...] = ()
    price_us: int = 0

    @property
    def busy_until_us(self) -> int:
        """When others should have the last of them."""
        return max(slot.free_from_us for slot in self.slots)

    @property
    def is_free(self) -> bool:
        """Whether all of them could begin at once."""
        return all(is_free(slot) for slot in self.slots)

    @property
    def evicted_bytes(self) -> int:
        """Memory of all that would leave."""
        return min(sum(victim.memory_bytes for gone in self.victims for victim in gone), NEEDED_BYTES_MAX)


def blocks(column: Column, gang_size: int) -> Iterator[Block]:
    """All blocks of the pool whose slots work, in order."""
    for node in column.pool.nodes:
        for first in range(0, len(node.slots) - gang_size + 1, gang_size):
            members = tuple(node.slots[first : first + gang_size])
            if all(slot.ready for slot in members):
                yield Block(slots=members)


def ready_block(column: Column, variant: Variant) -> Block | None:
    """The block whose slots all hold the gang's replica: a free one that was used last, else the one that should be free first."""
    key = ReplicaKey(variant.model_id, variant.gang_size)
    warm = column.warm.get(key)
    best: tuple[tuple[int, int, int, int], Block] | None = None
    for node_index, first in warm.slots if warm is not None else ():
        members = column.pool.nodes[node_index].slots[first : first + variant.gang_size]
        if first % variant.gang_size or not all(slot.ready and key in slot.replicas for slot in members):
            continue
        block = Block(slots=tuple(members))
        free = block.is_free
        used_us = members[0].replicas[key].last_used_us
        rank = (0, -used_us, node_index, first) if free else (1, block.busy_until_us, node_index, first)
        if best is None or rank < best[0]:
            best = rank, block
    return None if best is None else best[1]


def cold_block(column: Column, variant: Variant, need_bytes: int, prices: Prices) -> Block | None:
    """The free block that a new replica of the gang would take: where the weights are, the cheapest to clear, on the fullest node, so that
    whole nodes stay whole; without a free one the block that should be free first; None if the pool has no block at all."""
    near = near_nodes(column, variant)
    best: tuple[tuple[int, ...], Block] | None = None
    for block in blocks(column, variant.gang_size):
        lead = block.slots[0]
        if block.is_free:
            block = cleared(column, block, need_bytes, prices)  # noqa: PLW2901 - the same block, priced
            free_there = column.node_free[lead.node_index]
            # Whole, but for what must stay in it: worse than any that somebody works in.
            stuck = 2 if block.price_us >= FORBIDDEN_US else 0
            rank = (stuck, lead.node_index not in near, block.price_us, free_there, lead.last_used_us, lead.node_index, lead.index)
        else:
            rank = (1, lead.node_index not in near, block.busy_until_us, 0, 0, lead.node_index, lead.index)
        if best is None or rank < best[0]:
            best = rank, block
    return None if best is None else best[1]


def is_last_block(column: Column) -> bool:
    """Whether all free slots of a pool are one whole block of gangs that have a replica there: whoever takes one of them breaks it."""
    size = column.free_slots
    if size not in column.gangs or size not in column.node_free:
        return False
    slots = column.pool.nodes[column.node_free.index(size)].slots
    first = next((number for number, slot in enumerate(slots) if is_free(slot)), 0)
    return first % size == 0 and all(is_free(slot) for slot in slots[first : first + size])


def spare_slot(column: Column, need_bytes: int, node_index: int | None) -> Slot | None:
    """The free slot where a job of its own fits with nobody leaving, and which breaks the least: the smallest block that is whole around
    it, then the longest idle. `node_index`: only on this node."""
    sizes = sorted(column.gangs)
    best: tuple[tuple[int, int, int, int], Slot] | None = None
    for number in range(len(column.node_free)) if node_index is None else (node_index,):
        slots = column.pool.nodes[number].slots if column.node_free[number] else ()
        for slot in slots:
            if is_free(slot) and free_bytes(slot) >= need_bytes:
                rank = (_whole_around(slots, slot.index, sizes), slot.last_used_us, number, slot.index)
                if best is None or rank < best[0]:
                    best = rank, slot
    return None if best is None else best[1]


def _whole_around(slots: Sequence[Slot], index: int, sizes: list[int]) -> int:
    """The largest of these sizes whose block around a free slot is whole; 1 if none is."""
    found = 1
    for size in sizes:
        first = index - index % size
        if first + size > len(slots) or not all(is_free(slot) for slot in slots[first : first + size]):
            break
        found = size
    return found


def near_nodes(column: Column, variant: Variant) -> set[int]:
    """Nodes that have the weights already."""
    return column.host.get(variant.model_id, set()) | column.disk.get(variant.model_id, set())


def cleared(column: Column, block: Block, need_bytes: int, prices: Prices) -> Block:
    """The block with what would leave it for a new replica of a gang, and the price of that."""
    gone: list[tuple[Victim, ...]] = []
    price_us = 0
    for slot in block.slots:
        victims = prices.victims(slot, column.pool)
        out = leaving(victims, need_bytes - free_bytes(slot))
        gone.append(out)
        fits = free_bytes(slot) + sum(victim.memory_bytes for victim in out) >= need_bytes
        price_us += sum(victim.price_us for victim in out) if fits else FORBIDDEN_US
    return Block(slots=block.slots, victims=tuple(gone), price_us=min(price_us, FORBIDDEN_US))


def gang_line(column: Column, variant: Variant, prices: Prices) -> list[int]:
    """The line of a pool in the table of a gang (`rows.Pres`): every pool has one, since any may have a free block."""
    ready = ready_block(column, variant)
    slots, until_us = Slots.NONE, 0
    if ready is not None:
        slots, until_us = (Slots.FREE, 0) if ready.is_free else (Slots.FULL, ready.busy_until_us)
    cold = cold_block(column, variant, variant.need_bytes, prices)
    state, cold_until_us, price_us, gone, source = State.IMPOSSIBLE, 0, 0, 0, Source.ORIGIN
    if cold is not None:
        price_us, gone = cold.price_us, cold.evicted_bytes
        free = cold.is_free
        state = State.BINDABLE if free and price_us < FORBIDDEN_US else State.IMPOSSIBLE if free else State.WAITS
        cold_until_us = cold.busy_until_us
        node_index = cold.slots[0].node_index
        if node_index in column.host.get(variant.model_id, ()):
            source = Source.HOST
        elif node_index in column.disk.get(variant.model_id, ()):
            source = Source.DISK
    return [column.index, slots, until_us, Slots.NONE, 0, 0, source, 0, state, cold_until_us, price_us, gone]
