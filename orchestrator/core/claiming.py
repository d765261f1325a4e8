"""Which blocks a gang that waits could have kept for it, when each should be whole, and what beginning there would cost.

Decides which blocks are looked at and their order: of the pools that are best for the gang those that it is cheapest to begin in, weights
and all, of a gang with a deadline those first where it is in time. Must not know whose claims give way to whose (`claims`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from orchestrator.core.context import Context
from orchestrator.core.placement import supposing
from orchestrator.core.placement.blocks import Members
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.nearness import HERE, Arrival, Fetch, arrival, source_at
from orchestrator.core.placement.rows import COLD, FORBIDDEN_US, READY, Dyn, Fix, Out, Source, State
from orchestrator.core.placement.supposing import Cost
from orchestrator.core.queue import JobClass
from orchestrator.core.state import ReplicaKey, Slot

# Pools looked at for a claim, the best first, and blocks of them that would take the gang: the work in these is weighed against it.
_POOLS_MAX: Final = 8
_BLOCKS_MAX: Final = 64
# Blocks of a pool that are weighed: those that should be free first, and those of so many nodes that have the weights.
_FIRST_MAX: Final = 16
_NEAR_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a class may claim of a pool: not these slots (node and index); of the others blocks whose slots come free one after the other,
    or those that are whole, or will be at once."""

    kept: set[tuple[int, int]]
    draining: bool
    whole: bool


# What a pool leaves to a class; None: nothing.
RoomOf = Callable[[Column], Room | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A block, when it should be whole, for how long the gang holds it then, and what beginning there costs (as the terms reckon).
    `arrives`: when its weights are on the node, `load_us`: what loading takes then."""

    column: Column
    row: int
    is_ready: bool  # the gang's replica is there
    slots: tuple[Slot, ...]
    begins_us: int
    hold_us: int
    arrives: Arrival
    load_us: int
    execution_us: int
    cost: Cost
    drains: bool  # its slots come free one after the other


def places(ctx: Context, waiting: JobClass, board: Board, room_of: RoomOf) -> list[Place]:
    """The best of the blocks that the class may claim, in the pools that are best for it."""
    found = _in_pools(ctx, waiting, board, room_of)
    ordered = sorted(found, key=lambda place: (place.cost, place.column.index, place.slots[0].node_index, place.slots[0].index))
    return list(islice((place for place in ordered if takes(ctx, board.estimate, place)), _BLOCKS_MAX))


def _in_pools(ctx: Context, waiting: JobClass, board: Board, room_of: RoomOf) -> Iterator[Place]:
    """Blocks that the class may claim, whatever is in their memory."""
    states = board.out[:, Out.STATE]
    rows = np.flatnonzero(states == State.WAITS)
    order = np.lexsort((board.out[rows, Out.TOTAL], board.out[rows, Out.TARDY] >= 0))
    looked_at = 0
    for pool in dict.fromkeys((rows[order] % board.pools).tolist()):
        column = board.columns.columns[pool]
        if looked_at == _POOLS_MAX:
            break
        room = room_of(column)
        looked_at += room is not None
        for slots in _looked_at(ctx, waiting.key, column) if room is not None else ():
            if room is not None and (room.draining if drains(slots) else room.whole) and _is_open(column, slots, room.kept):
                yield place_of(ctx, waiting.key, board, column, slots)


def _looked_at(ctx: Context, key: ClassKey, column: Column) -> list[Members]:
    """The blocks of a pool that should be free first, and those of some nodes that have the weights."""
    blocks = ctx.columns.gangs.blocks(column, key.gang_size)
    near = [*sorted(column.host.get(key.model_id, ())), *sorted(column.disk.get(key.model_id, ()))]
    found = [*blocks.in_turn(_FIRST_MAX), *(slots for node_index in near[:_NEAR_MAX] for slots in blocks.on(node_index))]
    return list({(slots[0].node_index, slots[0].index): slots for slots in found}.values())


def _is_open(column: Column, slots: Members, kept: set[tuple[int, int]]) -> bool:
    """Whether a block may be claimed. Where one is free already it is something else that is waited for."""
    if all(is_free(slot) for slot in slots):
        return False
    return not any((slot.node_index, slot.index) in kept or _is_emptied(column, slot) for slot in slots)


def takes(ctx: Context, estimate: Estimate, place: Place) -> bool:
    """Whether nothing that must stay is in the way."""
    if place.is_ready:
        return True
    blocks = ctx.columns.gangs.blocks(place.column, len(place.slots))
    return blocks.price_us(place.slots, estimate.memory_bytes) < FORBIDDEN_US


def place_of(ctx: Context, key: ClassKey, board: Board, column: Column, slots: tuple[Slot, ...], *, begins_us: int | None = None) -> Place:
    """What a block offers. `begins_us`: when it is free, if that is not when what is bound to it should be over."""
    estimate = board.estimate
    if begins_us is None:
        begins_us = max(free_at_us(ctx, column, slot) for slot in slots)
    is_ready = holds(key, slots)
    row = (READY if is_ready else COLD) * board.pools + column.index
    ready_row = READY * board.pools + column.index
    arrives = HERE
    if not is_ready:
        way = source_at(column, key.model_id, slots[0].node_index, ctx.columns.where.near(column, key.model_id))
        arrives = arrival(way, fetch_of(ctx, estimate, column), ctx.now_us)
    coming_us, execution_us = arrives.begins_us(0), int(estimate.execution_us[row])
    load_us = max(int(estimate.fix[row, Fix.SERIAL] - estimate.fix[ready_row, Fix.SERIAL]), 0)
    wait_us = begins_us - ctx.now_us
    return Place(
        column=column,
        row=row,
        is_ready=is_ready,
        slots=slots,
        begins_us=begins_us,
        hold_us=max(coming_us - wait_us, 0) + load_us + execution_us,
        arrives=arrives,
        load_us=load_us,
        execution_us=execution_us,
        cost=supposing.after(ctx.scorer, key, board, row, wait_us=wait_us, fetch_us=coming_us, source=arrives.source),
        drains=drains(slots),
    )


def fetch_of(ctx: Context, estimate: Estimate, column: Column) -> Fetch:
    """How long weights take to a pool's nodes, as its links are now."""
    dyn, fix = ctx.columns.dyn[column.index], estimate.fix[COLD * len(ctx.columns.columns) + column.index]
    alone_us, flows, copy_us = int(fix[Fix.FETCH]), int(dyn[Dyn.FLOWS]), int(fix[Fix.COPY]) * (int(dyn[Dyn.COPIES]) + 1)
    return Fetch(alone_us * (flows + 1), copy_us, min(copy_us, alone_us * max(flows, 1)))


def drains(slots: tuple[Slot, ...]) -> bool:
    """Whether slots come free one after the other: what is bound to them is not a gang's that holds them all."""
    return any(slot.attempts != slots[0].attempts for slot in slots)


def holds(key: ClassKey, slots: tuple[Slot, ...]) -> bool:
    """Whether the gang's replica is in these slots."""
    replica = ReplicaKey(key.model_id, key.gang_size)
    return all(replica in slot.replicas for slot in slots)


def awaits_flight(ctx: Context, key: ClassKey, column: Column, slots: tuple[Slot, ...]) -> bool:
    """Whether a gang waits for its weights to land at another node of the site, however free its block is: one flight per model and
    site."""
    if holds(key, slots):
        return False
    way = source_at(column, key.model_id, slots[0].node_index, ctx.columns.where.near(column, key.model_id))
    return way.source == Source.SITE_FETCHING and way.until_us > ctx.now_us


def free_at_us(ctx: Context, column: Column, slot: Slot) -> int:
    """When what is bound to a slot, or loads there, should be over; what should be by now is late by as much again, and takes twice as long
    at most. A block is not given away because the last of what ends there is a moment late."""
    if slot.idle:
        return ctx.now_us
    if slot.busy_until_us > ctx.now_us:
        return slot.busy_until_us
    began_us = slot.loading.from_us if slot.loading is not None else ctx.now_us
    if slot.attempts:
        began_us = column.site.attempts[slot.attempts[0]].attempt.leased_us
    taken_us = ctx.now_us - began_us
    late_us = min(ctx.now_us - slot.busy_until_us, taken_us)
    return ctx.now_us + max(late_us, ctx.policy.recheck_min_ms * 1_000)


def _is_emptied(column: Column, slot: Slot) -> bool:
    """Whether a slot is being emptied, or kept, for somebody."""
    return bool(slot.kept_until_us) or any(column.site.attempts[key].gives_way_to is not None for key in slot.attempts)
