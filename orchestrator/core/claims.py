"""Claims: a block is kept together for a gang that waits, so that single jobs which never leave a whole block do not starve it.

Decides which block, and when it is given for a better one. A gang claims when it is its turn or it is aged,
one block for a class at a time: of the pools that are best for it the block that should be free first, weights and all. What executes
there ends, and little else begins (`lending` says what), so the wait ends with the longest of what was bound there. Work of a lower
priority is stopped where that pays. A claim holds no GPU of an attempt: it is no part of one. Must not know how an attempt is bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np

from atoll.model.ids import JobId, SlotRef
from atoll.model.placement import Claim
from atoll.model.site import SiteAdmin
from orchestrator.core import preempting
from orchestrator.core.claimed import ClaimDropped, Claimed
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.gangs import Block, blocks, cleared, near_nodes
from orchestrator.core.placement.rows import COLD, FORBIDDEN_US, OVERDUE_US, READY, Dyn, Fix, Out, State
from orchestrator.core.queue import JobClass
from orchestrator.core.state import ReplicaKey, Slot

# Claims of the fleet: each is looked at in every step. A fleet of thirty sites has some forty pools, and few gangs wait at a time; who
# comes later claims when another was served, the aged before.
_CLAIMS_MAX: Final = 128
# Pools looked at for a claim, the best first, and blocks of them that would take the gang: the work in these is weighed against it.
_POOLS_MAX: Final = 8
_BLOCKS_MAX: Final = 64
_WHOLE_MILLI: Final = 1_000

# What goes before in claiming: the aged by age, then by priority.
Strength = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A block, when it should be whole, for how long the gang holds it then, and what beginning there costs (as the terms reckon)."""

    column: Column
    row: int
    is_ready: bool  # the gang's replica is there
    slots: tuple[Slot, ...]
    begins_us: int
    hold_us: int
    cost_us: int


def consider(ctx: Context, waiting: JobClass, board: Board) -> Claimed | None:
    """A class of gangs is about to rest: the block that is kept for it from now on, if one is."""
    if not ctx.policy.claims_share_milli:
        return None
    key = waiting.key
    held = ctx.state.claims.get(key)
    places = _places(ctx, waiting, board)
    if held is not None:
        return _reconsider(ctx, waiting, board, held, places)
    if not places:
        return None
    wait_us = min(place.begins_us for place in places) - ctx.now_us
    best, best_clearing = places[0], None
    for place in places:
        found = _clearing(ctx, key, place, wait_us)
        if found is not None and (best_clearing is None or found.worth > best_clearing.worth):
            best, best_clearing = place, found
    if best_clearing is not None:
        best = replace(best, begins_us=ctx.now_us + best_clearing.stop_us)
    claimed = _claim(ctx, waiting, board, best, moves=0)
    if best_clearing is not None:
        preempting.clear(ctx, best.column, best_clearing, waiting.head[1], key)
    return claimed


def _reconsider(ctx: Context, waiting: JobClass, board: Board, held: Claimed, places: list[_Place]) -> Claimed | None:
    """Keep what is held, unless another place is better by as much as work is moved for, and not too often; it may pay to clear it now."""
    found = members(ctx, held.block)
    assert found is not None, "claims of pools that are gone are dropped before the round"
    column, slots = found
    own = _place_of(ctx, waiting.key, board, column, tuple(slots), near_nodes(column, board.estimate.variant))
    closed = bool(places) and not ctx.columns.accepting_at(column.index)
    if closed or not _takes(ctx, board.estimate, own):
        drop(ctx, waiting.key, "its pool takes no work now" if closed else "what is in its memory must stay there", waking=False)
        return consider(ctx, waiting, board)
    if places and held.moves < ctx.policy.moves_max:
        enough_us = max(ctx.policy.move_gain_min_ms * 1_000, own.cost_us * ctx.policy.move_gain_milli // _WHOLE_MILLI)
        if own.cost_us - places[0].cost_us > enough_us:
            drop(ctx, waiting.key, "another block should be free sooner", waking=False)
            return _claim(ctx, waiting, board, places[0], moves=held.moves + 1)
    clearing = _clearing(ctx, waiting.key, own, own.begins_us - ctx.now_us)
    if clearing is not None:
        preempting.clear(ctx, column, clearing, waiting.head[1], waiting.key)
    return held


def _clearing(ctx: Context, key: ClassKey, place: _Place, wait_us: int) -> preempting.Clearing | None:
    if wait_us < ctx.policy.preempt_gain_min_ms * 1_000:
        return None
    return preempting.clearing(ctx, place.column, place.slots, key, wait_us=wait_us, hold_us=place.hold_us)


def _claim(ctx: Context, waiting: JobClass, board: Board, place: _Place, *, moves: int) -> Claimed:
    """Keep a block; weaker claims give way where they must."""
    lead, size = place.slots[0].ref, waiting.key.gang_size
    for weaker in _in_the_way(ctx, waiting, place):
        drop(ctx, weaker, "a gang of a higher priority or age needs it")
    block = Claim(
        site_id=place.column.site.site_id,
        pool_id=place.column.pool.pool_id,
        node_id=lead.node_id,
        first=lead.index,
        slots=size,
        since_us=ctx.now_us,
        begins_us=place.begins_us,
    )
    kinds = (place.row, (READY + COLD - place.row // board.pools) * board.pools + place.column.index)
    (candidate,) = board.candidates([next((row for row in kinds if board.out[row, Out.STATE] == State.WAITS), place.row)])
    claimed = Claimed(block=block, until_us=place.begins_us + place.hold_us, moves=moves, candidate=candidate)
    ctx.state.claims[waiting.key] = claimed
    for slot in place.slots:
        ctx.columns.claim_changed(place.column, slot, claimed.until_us)
    if not any(slot.attempts for slot in place.slots):
        ctx.arm(ctx.now_us, TimerKind.PLACING)  # what it took from a weaker claim is whole
    return claimed


def restore(ctx: Context, job_id: JobId, claimed: Claimed) -> None:
    """A claim is as a snapshot tells, if the policy still means it. What a store promised tells of none: they are made anew."""
    key, there, share_milli = ctx.queue.class_key(job_id), members(ctx, claimed.block), ctx.policy.claims_share_milli
    if key is None or there is None or not share_milli:
        return
    others = [held.block.slots for held in ctx.state.claims.values() if _is_at(held.block, there[0])]
    if not others or _within_share(ctx, there[0], sum(others) + claimed.block.slots):
        ctx.state.claims[key] = claimed
        for slot in there[1]:
            ctx.columns.claim_changed(there[0], slot, claimed.until_us)


def members(ctx: Context, block: Claim) -> tuple[Column, list[Slot]] | None:
    """The slots of a block, if the fleet (still) has them."""
    column = ctx.columns.by_pool.get((block.site_id, block.pool_id))
    if column is None:
        return None
    slots = column.pool.members(SlotRef(pool_id=block.pool_id, node_id=block.node_id, index=block.first), block.slots)
    return (column, slots) if slots else None


def correct(ctx: Context, board: Board, key: ClassKey) -> None:
    """To a class that has claimed its block is free when what is bound there is over. The tables tell everybody else's view: when the
    gang that it is kept for should be done, which is this one."""
    held = ctx.state.claims.get(key)
    found = members(ctx, held.block) if held is not None else None
    if found is None:
        return
    column, slots = found
    is_ready = all(ReplicaKey(key.model_id, key.gang_size) in slot.replicas for slot in slots)
    row = (READY if is_ready else COLD) * board.pools + column.index
    # A microsecond more than what says that somebody is late: that is reckoned already.
    wait_us = max(max(free_at_us(ctx, column, slot) for slot in slots) - board.now_us, OVERDUE_US + 1)
    if board.out[row, Out.STATE] == State.WAITS and wait_us < board.wait_us(row):
        beside_us = max(board.fetch_us(row), int(board.estimate.fix[row, Fix.INPUT]))
        sooner_us = max(board.wait_us(row), beside_us) - max(wait_us, beside_us)
        board.out[row, Out.WAIT] = wait_us
        board.out[row, Out.DELAY] -= sooner_us
        board.out[row, Out.TOTAL] -= sooner_us
        if board.keys is None and (board.patient is None or board.total_us(row) < board.total_us(board.patient)):
            board.patient = row


def is_at(ctx: Context, key: ClassKey, board: Board, row: int) -> bool:
    """Whether a class has claimed a block in the pool of a row."""
    held = ctx.state.claims.get(key)
    return held is not None and _is_at(held.block, board.column(row))


# --- which block ---------------------------------------------------------------------------------------------------------------


def _places(ctx: Context, waiting: JobClass, board: Board) -> list[_Place]:
    """The best of the blocks that the class may claim, in the pools that are best for it."""
    found = _in_pools(ctx, waiting, board)
    ordered = sorted(found, key=lambda place: (place.cost_us, place.column.index, place.slots[0].node_index, place.slots[0].index))
    return list(islice((place for place in ordered if _takes(ctx, board.estimate, place)), _BLOCKS_MAX))


def _in_pools(ctx: Context, waiting: JobClass, board: Board) -> Iterator[_Place]:
    """Blocks that the class may claim, whatever is in their memory."""
    key, size = waiting.key, waiting.key.gang_size
    states = board.out[:, Out.STATE]
    rows = np.flatnonzero(states == State.WAITS)
    pools = dict.fromkeys((rows[np.argsort(board.out[rows, Out.TOTAL], kind="stable")] % board.pools).tolist())
    looked_at = 0
    for pool in pools:
        column = board.columns.columns[pool]
        if looked_at == _POOLS_MAX or not ctx.queue.has_turn(waiting, pool):
            continue
        looked_at += 1
        firm = _firm(ctx, waiting, column)
        if firm is None:
            continue
        near = near_nodes(column, board.estimate.variant)
        for block in blocks(column, size):
            if not any((slot.node_index, slot.index) in firm or _is_kept(column, slot) for slot in block.slots):
                yield _place_of(ctx, key, board, column, block.slots, near)


def _takes(ctx: Context, estimate: Estimate, place: _Place) -> bool:
    """Whether nothing that must stay is in the way."""
    if place.is_ready:
        return True
    return cleared(place.column, Block(slots=place.slots), estimate.memory_bytes, ctx.columns.prices).price_us < FORBIDDEN_US


def _place_of(ctx: Context, key: ClassKey, board: Board, column: Column, slots: tuple[Slot, ...], near: set[int]) -> _Place:
    """What a block offers. `near`: nodes of the pool that have the weights."""
    estimate = board.estimate
    replica = ReplicaKey(key.model_id, key.gang_size)
    begins_us = max(free_at_us(ctx, column, slot) for slot in slots)
    is_ready = all(replica in slot.replicas for slot in slots)
    row = (READY if is_ready else COLD) * board.pools + column.index
    ready_row = READY * board.pools + column.index
    fetch_us = 0
    if not is_ready and slots[0].node_index not in near:
        fetch_us = int(estimate.fix[row, Fix.FETCH]) * (int(ctx.columns.dyn[column.index, Dyn.FLOWS]) + 1)
    load_us = max(int(estimate.fix[row, Fix.SERIAL] - estimate.fix[ready_row, Fix.SERIAL]), 0)
    late_us = max(begins_us - ctx.now_us, fetch_us) - (begins_us - ctx.now_us)
    return _Place(
        column=column,
        row=row,
        is_ready=is_ready,
        slots=slots,
        begins_us=begins_us,
        hold_us=late_us + load_us + int(estimate.execution_us[row]),
        cost_us=ctx.scorer.cost_us(key, estimate, row, begins_us - ctx.now_us, fetch_us),
    )


def free_at_us(ctx: Context, column: Column, slot: Slot) -> int:
    """When what is bound to a slot should be over; what should be by now takes as long again as it has taken."""
    if not slot.attempts:
        return ctx.now_us
    if slot.busy_until_us > ctx.now_us:
        return slot.busy_until_us
    taken_us = ctx.now_us - column.site.attempts[slot.attempts[0]].attempt.leased_us
    return ctx.now_us + max(taken_us, ctx.policy.recheck_min_ms * 1_000)


def _is_kept(column: Column, slot: Slot) -> bool:
    """Whether a slot is being emptied for somebody."""
    return any(column.site.attempts[key].gives_way_to is not None for key in slot.attempts)


def strength(ctx: Context, waiting: JobClass) -> Strength:
    """Lower goes first, and takes from who is not aged: the aged by age, then by priority."""
    return (0, waiting.oldest[0]) if ctx.queue.is_aged(waiting) else (1, waiting.key.rank)


def _others(ctx: Context, waiting: JobClass, column: Column | None) -> Iterator[tuple[Strength, ClassKey, Claimed]]:
    """Claims of other classes, of a pool or all, with their strength."""
    for key, held in ctx.state.claims.items():
        known = ctx.queue.classes.get(key)
        if known is not None and known is not waiting and (column is None or _is_at(held.block, column)):
            yield strength(ctx, known), key, held


def _is_at(block: Claim, column: Column) -> bool:
    return (block.site_id, block.pool_id) == (column.site.site_id, column.pool.pool_id)


def _firm(ctx: Context, waiting: JobClass, column: Column) -> set[tuple[int, int]] | None:
    """Slots of a pool whose claims do not give way to this class; None if they leave it no share of the pool, or of the fleet's claims."""
    own, size = strength(ctx, waiting), waiting.key.gang_size
    if len(ctx.state.claims) >= _CLAIMS_MAX and not any(other > own for other, _, _ in _others(ctx, waiting, None)):
        return None
    firm = [held.block for other, _, held in _others(ctx, waiting, column) if other <= own]
    if firm and not _within_share(ctx, column, sum(block.slots for block in firm) + size):
        return None
    return {(column.pool.node_index[block.node_id], index) for block in firm for index in range(block.first, block.first + block.slots)}


def _within_share(ctx: Context, column: Column, slots: int) -> bool:
    return slots * _WHOLE_MILLI <= ctx.policy.claims_share_milli * column.pool.spec.slots


def _in_the_way(ctx: Context, waiting: JobClass, place: _Place) -> list[ClassKey]:
    """Weaker claims that give way: those of the same slots, then the weakest until there is room among the pool's and the fleet's."""
    first, size = place.slots[0].index, waiting.key.gang_size
    node_id = place.slots[0].ref.node_id
    there = {key: held.block for _, key, held in sorted(_others(ctx, waiting, place.column), key=lambda found: found[0], reverse=True)}
    going = [
        key
        for key, block in there.items()
        if block.node_id == node_id and block.first < first + size and first < block.first + block.slots
    ]
    for key in going:
        del there[key]
    while there and not _within_share(ctx, place.column, sum(block.slots for block in there.values()) + size):
        going.append(next(iter(there)))
        del there[going[-1]]
    if not going and len(ctx.state.claims) >= _CLAIMS_MAX:
        going.append(max(_others(ctx, waiting, None), key=lambda found: found[0])[1])
    return going


# --- until the gang begins --------------------------------------------------------------------------------------------------------


def ripe(ctx: Context) -> list[ClassKey]:
    """Classes whose blocks are whole. Claims that have lost their reason are dropped; those whose gang should have ended are renewed."""
    found = []
    for key, held in list(ctx.state.claims.items()):
        there = members(ctx, held.block)
        if key not in ctx.queue.classes:
            drop(ctx, key, "nobody of its class waits any more")
        elif there is None or any(not slot.claimed_until_us or not slot.ready for slot in there[1]):
            drop(ctx, key, "its slots are gone")
        elif there[0].site.record.admin is not SiteAdmin.OPEN:
            drop(ctx, key, "its site is closed")
        elif ctx.columns.accepting_at(there[0].index) and not any(slot.attempts for slot in there[1]):
            found.append(key)
        elif held.until_us <= ctx.now_us:
            _renew(ctx, key, held, there)
    return found


def _renew(ctx: Context, key: ClassKey, held: Claimed, there: tuple[Column, list[Slot]]) -> None:
    """Others would take the block for free at any moment: it is kept for as long again as it has been."""
    until_us = ctx.now_us + max(ctx.now_us - held.block.since_us, ctx.policy.recheck_min_ms * 1_000)
    ctx.state.claims[key] = replace(held, until_us=until_us)
    for slot in there[1]:
        ctx.columns.claim_changed(there[0], slot, until_us)


def lift(ctx: Context, key: ClassKey) -> tuple[Column, list[Slot]] | None:
    """The claim of a class ends; its slots are there for anybody."""
    held = ctx.state.claims.pop(key)
    found = members(ctx, held.block)
    if found is not None:
        for slot in found[1]:
            if slot.claimed_until_us:
                ctx.columns.claim_changed(found[0], slot, 0)
    return found


def drop(ctx: Context, key: ClassKey, reason: str, *, waking: bool = True) -> None:
    """The claim of a class ends before its gang began: said, and whoever waits for the pool looks at the slots that are idle."""
    held = ctx.state.claims.get(key)
    if held is None:
        return
    ctx.decisions.append(ClaimDropped(claim=held.block, reason=reason))
    found = lift(ctx, key)
    offer_idle(ctx, found)
    if waking:
        ctx.queue.wake(key)


def offer_idle(ctx: Context, found: tuple[Column, list[Slot]] | None) -> None:
    """Slots that were claimed and are idle came free for others."""
    if found is not None:
        for slot in found[1]:
            if slot.ready and not slot.attempts:
                ctx.queue.wake_for_slot(found[0].index)
