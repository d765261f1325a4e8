"""Claims: a block is kept together for a gang that waits, so that single jobs which never leave a whole block do not starve it.

Decides which block, when it is given for a better one, and what may still begin there. A gang claims when it is its turn or it is aged,
one block for a class at a time: of the pools that are best for it the block that should be free first, weights and all. What executes
there ends; what would begin there must be over before the gang is to begin, as it was predicted when the claim was made (`lenders`), or be
of a higher priority than a gang that is not aged. So the wait ends with the longest of what was bound there, and nothing that is let in
puts it off but by its own delay. Work of a lower priority is stopped where that pays. A claim holds no GPU of an attempt: it is no part of
one. Must not know how an attempt is bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from atoll.model.ids import JobId, SlotRef
from atoll.model.placement import Claim
from atoll.model.site import SiteAdmin
from orchestrator.core import preempting
from orchestrator.core.claimed import ClaimDropped, Claimed
from orchestrator.core.context import Context
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.gangs import Block, blocks, cleared, near_nodes
from orchestrator.core.placement.rows import COLD, FORBIDDEN_US, READY, Dyn, Fix, Out, State
from orchestrator.core.queue import JobClass
from orchestrator.core.state import ReplicaKey, Slot

# Claims of the fleet: each is looked at in every step. A fleet of thirty sites has some forty pools, and few gangs wait at a time; who
# comes later claims when another was served, the aged before.
_CLAIMS_MAX: Final = 128
# Pools looked at for a claim, the best first, and blocks of them whose work is weighed against the gang.
_POOLS_MAX: Final = 8
_CLEARED_MAX: Final = 64
_WHOLE_MILLI: Final = 1_000

# What goes before in claiming: the aged by age, then by priority.
Strength = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A block, when it should be whole, for how long the gang holds it then, and what beginning there costs (as the terms reckon)."""

    column: Column
    row: int
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
    places = sorted(_places(ctx, waiting, board), key=lambda place: (place.cost_us, place.column.index, place.slots[0].node_index))
    if held is not None:
        return _reconsider(ctx, waiting, board, held, places)
    if not places:
        return None
    wait_us = min(place.begins_us for place in places) - ctx.now_us
    best, best_clearing = places[0], None
    for place in places[:_CLEARED_MAX]:
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
    begins_us = max(_free_at_us(ctx, column, slot) for slot in slots)
    own = _place_of(ctx, waiting.key, board, column, Block(slots=tuple(slots)), begins_us)
    closed = bool(places) and not ctx.columns.accepting_at(column.index)
    if own is None or closed:
        drop(ctx, waiting.key, "its pool takes no work now" if closed else "what is in its memory must stay there", waking=False)
        return consider(ctx, waiting, board)
    if places and held.moves < ctx.policy.moves_max:
        enough_us = max(ctx.policy.move_gain_min_ms * 1_000, own.cost_us * ctx.policy.move_gain_milli // _WHOLE_MILLI)
        if own.cost_us - places[0].cost_us > enough_us:
            drop(ctx, waiting.key, "another block should be free sooner", waking=False)
            return _claim(ctx, waiting, board, places[0], moves=held.moves + 1)
    clearing = _clearing(ctx, waiting.key, own, begins_us - ctx.now_us)
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
    return claimed


def restore(ctx: Context, job_id: JobId, claimed: Claimed) -> None:
    """A claim is as a snapshot tells. What a store promised tells of none: they are made anew."""
    key, there = ctx.queue.class_key(job_id), members(ctx, claimed.block)
    if key is not None and there is not None:
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


# --- which block ---------------------------------------------------------------------------------------------------------------


def _places(ctx: Context, waiting: JobClass, board: Board) -> Iterator[_Place]:
    """Blocks that the class may claim, in the pools that are best for it."""
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
        for block in blocks(column, size):
            if not any((slot.node_index, slot.index) in firm or _is_kept(column, slot) for slot in block.slots):
                begins_us = max(_free_at_us(ctx, column, slot) for slot in block.slots)
                place = _place_of(ctx, key, board, column, block, begins_us)
                if place is not None:
                    yield place


def _place_of(ctx: Context, key: ClassKey, board: Board, column: Column, block: Block, begins_us: int) -> _Place | None:
    """What a block offers; None where something must stay in it."""
    estimate = board.estimate
    replica = ReplicaKey(key.model_id, key.gang_size)
    is_ready = all(replica in slot.replicas for slot in block.slots)
    row = (READY if is_ready else COLD) * board.pools + column.index
    ready_row = READY * board.pools + column.index
    fetch_us = 0
    if not is_ready:
        if cleared(column, block, estimate.memory_bytes, ctx.columns.prices).price_us >= FORBIDDEN_US:
            return None
        if block.slots[0].node_index not in near_nodes(column, estimate.variant):
            fetch_us = int(estimate.fix[row, Fix.FETCH]) * (int(ctx.columns.dyn[column.index, Dyn.FLOWS]) + 1)
    load_us = max(int(estimate.fix[row, Fix.SERIAL] - estimate.fix[ready_row, Fix.SERIAL]), 0)
    late_us = max(begins_us - ctx.now_us, fetch_us) - (begins_us - ctx.now_us)
    return _Place(
        column=column,
        row=row,
        slots=block.slots,
        begins_us=begins_us,
        hold_us=late_us + load_us + int(estimate.execution_us[row]),
        cost_us=begins_us - ctx.now_us + late_us + int(estimate.fix[row, Fix.SERIAL] + estimate.fix[row, Fix.PRICE]),
    )


def _free_at_us(ctx: Context, column: Column, slot: Slot) -> int:
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
        at_pool = column is None or (held.block.site_id, held.block.pool_id) == (column.site.site_id, column.pool.pool_id)
        if known is not None and known is not waiting and at_pool:
            yield strength(ctx, known), key, held


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


# --- what is let in before it does --------------------------------------------------------------------------------------------------


def lenders(ctx: Context, waiting: JobClass, estimate: Estimate) -> list[ClassKey]:
    """Claims with idle slots where a job of this class is likely to be done before the gang is to begin."""
    if waiting.key.gang_size != 1:
        return []
    found = []
    for key, held in ctx.state.claims.items():
        passes = _passes(ctx, waiting, key)
        if not passes and held.block.begins_us <= ctx.now_us:
            continue
        there = members(ctx, held.block)
        if there is None or not estimate.fix[there[0].index, Fix.FEASIBLE] or all(slot.attempts for slot in there[1]):
            continue
        if passes or _is_over_in_time(ctx, held, there, int(estimate.execution_us[there[0].index])):
            found.append(key)
    return found


def fits(ctx: Context, waiting: JobClass, key: ClassKey, delay_us: int) -> bool:
    """Whether a job that should take `delay_us` in the block that a class claims may begin there."""
    held = ctx.state.claims[key]
    there = members(ctx, held.block)
    return there is not None and (_passes(ctx, waiting, key) or _is_over_in_time(ctx, held, there, delay_us))


def _passes(ctx: Context, waiting: JobClass, key: ClassKey) -> bool:
    """Whether a class goes before a gang that claims, as it does everywhere: it is of a higher priority, and the gang is not aged."""
    known = ctx.queue.classes.get(key)
    return waiting.key.rank < key.rank and known is not None and not ctx.queue.is_aged(known)


def _is_over_in_time(ctx: Context, held: Claimed, there: tuple[Column, list[Slot]], delay_us: int) -> bool:
    """Never measured against a later beginning than the claim was made with: work that is late would else make room for more of it."""
    column, slots = there
    begins_us = min(held.block.begins_us, max(_free_at_us(ctx, column, slot) for slot in slots))
    return delay_us * ctx.policy.spread_milli < (begins_us - ctx.now_us) * _WHOLE_MILLI


def lend(ctx: Context, key: ClassKey) -> Column:
    """The idle slots of a block are there for anybody until `take_back`."""
    found = members(ctx, ctx.state.claims[key].block)
    assert found is not None, "a lender's slots are there"
    for slot in found[1]:
        if not slot.attempts:
            ctx.columns.claim_changed(found[0], slot, 0)
    return found[0]


def take_back(ctx: Context, key: ClassKey) -> None:
    """The block is kept again, with what was let in."""
    held = ctx.state.claims[key]
    found = members(ctx, held.block)
    assert found is not None, "a lender's slots are there"
    for slot in found[1]:
        if not slot.claimed_until_us:
            ctx.columns.claim_changed(found[0], slot, held.until_us)
