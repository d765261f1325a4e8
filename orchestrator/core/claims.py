"""Claims: a block is kept together for a gang that waits, so that single jobs which never leave a whole block do not starve it.

Decides which block, and when it is given for a better one. A class of gangs claims when it is its turn or it is aged, as many blocks as
its turn is worth (`yielding`): of the pools that are best for it the blocks that should be free first, weights and all. What executes
there ends, and little else begins (`lending` says what), so the wait ends with the longest of what was bound there. A block in which a gang
executes comes free as a whole: it is kept for the next one at nobody's cost, and a tenant whose gangs have their turn goes on there. Work
of a lower priority is stopped where that pays. A claim holds no GPU of an attempt: it is no part of one. Must not know how an attempt is
bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.ids import JobId, SlotRef
from atoll.model.placement import Claim
from atoll.model.site import SiteAdmin
from orchestrator.core import bettered, claiming, preempting, yielding
from orchestrator.core.claimed import ClaimDropped, Claimed, Kept
from orchestrator.core.claiming import Place, free_at_us
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.fairness import normalised_us
from orchestrator.core.placement import supposing
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.rows import COLD, OVERDUE_US, READY, Out, State
from orchestrator.core.placement.supposing import Cost, cost_of
from orchestrator.core.preemption import Waiter
from orchestrator.core.queue import JobClass
from orchestrator.core.state import Slot

_WHOLE_MILLI: Final = 1_000
_NOBODY_WAITS: Final = "nobody of its class waits any more"


def consider(ctx: Context, waiting: JobClass, board: Board) -> Claimed | None:
    """A class of gangs is about to rest: of the blocks that are kept for it from now on, if any, the one that should be whole first. One
    that waits for its weights beside a block that is free claims no other."""
    if not ctx.policy.claims_share_milli:
        return None
    _reconsider(ctx, waiting, board)
    if len(ctx.state.claims.of(waiting.key)) < len(waiting.members) and not _awaits_flight(board):
        _claim_next(ctx, waiting, board)
    held = [ctx.state.claims[kept] for kept in ctx.state.claims.of(waiting.key)]
    return min(held, key=lambda one: one.block.begins_us, default=None)


def _awaits_flight(board: Board) -> bool:
    return board.patient is not None and board.awaits_flight(board.patient)


def looks_again(ctx: Context, waiting: JobClass) -> bool:
    """Whether a class that claimed a block just now should soon look whether it has its turn for another: first others have theirs."""
    own = ctx.state.claims.of(waiting.key)
    return len(own) < len(waiting.members) and any(ctx.state.claims[kept].block.since_us == ctx.now_us for kept in own)


def _claim_next(ctx: Context, waiting: JobClass, board: Board) -> None:
    """One more block for a class, if it has its turn for one more."""
    key = waiting.key
    position = len(ctx.state.claims.of(key))
    places = claiming.places(ctx, waiting, board, lambda column: yielding.room(ctx, waiting, board, column))
    if not places:
        return
    done_us = min(_loaded_us(ctx, place) for place in places)
    best: Place = places[0]
    best_clearing: preempting.Clearing | None = None
    for place in places:
        found = _clearing(ctx, key, board, place, done_us - place.load_us)
        if found is not None and (best_clearing is None or found.worth > best_clearing.worth):
            best, best_clearing = place, found
    if best_clearing is not None and best_clearing.is_early:
        best_clearing = None
    if best_clearing is not None:
        best = replace(best, begins_us=ctx.now_us + best_clearing.stop_us)
    _claim(ctx, waiting, board, best, moves=0)
    if best_clearing is not None:
        preempting.clear(ctx, best.column, best_clearing, waiting.nth(position), key)


def _reconsider(ctx: Context, waiting: JobClass, board: Board) -> None:
    """Keep what is held, unless it is of no use, or the worst of it is worse than another place by as much as work is moved for, and not
    too often; it may pay to clear it now."""
    own = [(kept, _own_place(ctx, board, kept)) for kept in ctx.state.claims.of(waiting.key)]
    if not own:
        return
    worst, its_place = max(own, key=lambda one: one[1].cost)
    others = claiming.places(ctx, waiting, board, lambda column: yielding.room(ctx, waiting, board, column, worst))
    for position, (kept, place) in enumerate(own):
        closed = bool(others) and not ctx.columns.accepting_at(place.column.index)
        if closed or not claiming.takes(ctx, board.estimate, place):
            drop(ctx, kept, "its pool takes no work now" if closed else "what is in its memory must stay there", waking=False)
            continue
        clearing = _clearing(ctx, waiting.key, board, place, _loaded_us(ctx, place) - place.load_us)
        if clearing is not None and not clearing.is_early:
            preempting.clear(ctx, place.column, clearing, waiting.nth(position), waiting.key)
    held = ctx.state.claims.get(worst)
    # Of several claims one for a block that drains is there so that there be more blocks: it is not given for what comes free as a whole.
    better = next((place for place in others if len(own) == 1 or place.drains == its_place.drains), None)
    if held is None or better is None or held.moves >= ctx.policy.moves_max or not _is_much_better(ctx, better.cost, its_place.cost):
        return
    drop(ctx, worst, "another block should be free sooner", waking=False)
    _claim(ctx, waiting, board, better, moves=held.moves + 1)


def _own_place(ctx: Context, board: Board, kept: Kept) -> Place:
    found = members(ctx, ctx.state.claims[kept].block)
    assert found is not None, "claims of pools that are gone are dropped before the round"
    return claiming.place_of(ctx, kept.key, board, found[0], tuple(found[1]))


def _is_much_better(ctx: Context, cost: Cost, own: Cost) -> bool:
    if cost.late != own.late:
        return own.late
    enough_us = max(ctx.policy.move_gain_min_ms * 1_000, own.total_us * ctx.policy.move_gain_milli // _WHOLE_MILLI)
    return own.total_us - cost.total_us > enough_us


def _loaded_us(ctx: Context, place: Place) -> int:
    """When the gang is loaded there if nothing is stopped."""
    return place.arrives.begins_us(place.begins_us - ctx.now_us) + place.load_us


def _clearing(ctx: Context, key: ClassKey, board: Board, place: Place, wait_us: int) -> preempting.Clearing | None:
    """What emptying a block takes, if it pays for a gang that would else begin after so long, or there to be loaded as soon."""
    if wait_us < ctx.policy.preempt_gain_min_ms * 1_000 or _awaits_flight(board):
        return None
    waiter = Waiter(
        rank=key.rank,
        weight_milli=ctx.policy.weight_milli(key.priority),
        wait_us=wait_us,
        hold_us=place.load_us + place.execution_us,
        arrives=place.arrives,
    )
    return preempting.clearing(ctx, place.column, place.slots, key, waiter, board.estimate.memory_bytes)


def _claim(ctx: Context, waiting: JobClass, board: Board, place: Place, *, moves: int) -> None:
    """Keep a block; weaker claims give way where they must."""
    lead, size = place.slots[0].ref, waiting.key.gang_size
    for weaker in yielding.in_the_way(ctx, waiting, place):
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
    claimed = Claimed(
        block=block,
        until_us=place.begins_us + place.hold_us,
        moves=moves,
        candidate=candidate,
        tenant=yielding.tenant_of(ctx, waiting),
        charge_us=normalised_us(int(board.estimate.execution_us[place.row]), place.column.pool.gpu, size),
        drains=place.drains,
    )
    ctx.state.claims.put(Kept(waiting.key, block.site_id, lead), claimed)
    for slot in place.slots:
        ctx.columns.claim_changed(place.column, slot, claimed.until_us)
    if all(slot.idle for slot in place.slots):
        ctx.arm(ctx.now_us, TimerKind.PLACING)  # what it took from a weaker claim is whole


def restore(ctx: Context, job_id: JobId, claimed: Claimed) -> None:
    """A claim is as a snapshot tells, if the policy still means it. What a store promised tells of none: they are made anew."""
    key, there, share_milli = ctx.queue.class_key(job_id), members(ctx, claimed.block), ctx.policy.claims_share_milli
    if key is None or there is None or not share_milli:
        return
    others = [held for held in ctx.state.claims.values() if yielding.is_at(held.block, there[0])]
    if not claimed.drains or yielding.may_drain(ctx, there[0], others, claimed.block.slots):
        ctx.state.claims.put(Kept(key, claimed.block.site_id, there[1][0].ref), claimed)
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
    for kept in ctx.state.claims.of(key):
        found = members(ctx, ctx.state.claims[kept].block)
        if found is None:
            continue
        column, slots = found
        row = (READY if claiming.holds(key, tuple(slots)) else COLD) * board.pools + column.index
        # A microsecond more than what says that somebody is late: that is reckoned already.
        wait_us = max(max(free_at_us(ctx, column, slot) for slot in slots) - board.now_us, OVERDUE_US + 1)
        if board.out[row, Out.STATE] == State.WAITS and wait_us < board.wait_us(row):
            supposing.wait_less(ctx.scorer, key, board, row, wait_us)
            if board.keys is None and (board.patient is None or cost_of(board, row) < cost_of(board, board.patient)):
                board.patient = row


def is_at(ctx: Context, key: ClassKey, board: Board, row: int) -> bool:
    """Whether a class has claimed a block in the pool of a row."""
    column = board.column(row)
    return any(yielding.is_at(ctx.state.claims[kept].block, column) for kept in ctx.state.claims.of(key))


# --- until the gang begins --------------------------------------------------------------------------------------------------------


def ripe(ctx: Context) -> list[Kept]:
    """Claims whose blocks are whole. Those that have lost their reason are dropped; those whose gang should have ended are renewed."""
    found = []
    for kept, held in list(ctx.state.claims.items()):
        there = members(ctx, held.block)
        if kept.key not in ctx.queue.classes:
            drop(ctx, kept, _NOBODY_WAITS)
        elif there is None or not all(slot.claimed_until_us and slot.ready for slot in there[1]):
            drop(ctx, kept, "its slots are gone")
        elif there[0].site.record.admin is not SiteAdmin.OPEN:
            drop(ctx, kept, "its site is closed")
        elif _is_whole(ctx, kept.key, there):
            found.append(kept)
        elif held.until_us <= ctx.now_us:
            _renew(ctx, kept, held, there)
    for key in {kept.key: None for kept, _ in ctx.state.claims.items()}:
        shed(ctx, key, _NOBODY_WAITS)
    return [kept for kept in found if ctx.state.claims.get(kept) is not None]


def shed(ctx: Context, key: ClassKey, reason: str) -> None:
    """A class has fewer jobs that wait than blocks: those that should be whole last are kept no longer."""
    known, own = ctx.queue.classes.get(key), ctx.state.claims.of(key)
    spare = len(own) - (len(known.members) if known is not None else 0)
    if spare > 0:
        for kept in sorted(own, key=lambda one: ctx.state.claims[one].block.begins_us)[-spare:]:
            drop(ctx, kept, reason)


def _is_whole(ctx: Context, key: ClassKey, there: tuple[Column, list[Slot]]) -> bool:
    """Whether the gang can begin in its block, as far as that is the block's to say."""
    column, slots = there
    if not all(slot.idle for slot in slots) or not ctx.columns.accepting_at(column.index):
        return False
    return not claiming.awaits_flight(ctx, key, column, tuple(slots))


def _renew(ctx: Context, kept: Kept, held: Claimed, there: tuple[Column, list[Slot]]) -> None:
    """Others would take the block for free at any moment: it is kept for as long again as it has been."""
    until_us = ctx.now_us + max(ctx.now_us - held.block.since_us, ctx.policy.recheck_min_ms * 1_000)
    ctx.state.claims.put(kept, replace(held, until_us=until_us))
    for slot in there[1]:
        ctx.columns.claim_changed(there[0], slot, until_us)


def lift(ctx: Context, kept: Kept) -> tuple[Column, list[Slot]] | None:
    """A claim ends; its slots are there for anybody."""
    held = ctx.state.claims.pop(kept)
    found = members(ctx, held.block)
    if found is not None:
        for slot in found[1]:
            if slot.claimed_until_us:
                ctx.columns.claim_changed(found[0], slot, 0)
    return found


def drop(ctx: Context, kept: Kept, reason: str, *, waking: bool = True) -> None:
    """A claim ends before its gang began: said, and whoever waits for the pool looks at the slots that are idle."""
    held = ctx.state.claims.get(kept)
    if held is None:
        return
    ctx.decisions.append(ClaimDropped(claim=held.block, reason=reason))
    found = lift(ctx, kept)
    offer_idle(ctx, found)
    if waking:
        ctx.queue.wake(kept.key)


def drop_all(ctx: Context, key: ClassKey, reason: str) -> None:
    """All claims of a class that is looked at now end."""
    for kept in ctx.state.claims.of(key):
        drop(ctx, kept, reason, waking=False)


def offer_idle(ctx: Context, found: tuple[Column, list[Slot]] | None) -> None:
    """Slots that were claimed and are idle came free for others."""
    if found is not None:
        for slot in found[1]:
            if slot.ready and slot.idle:
                bettered.slot_free(ctx, found[0], slot, took_loads=False)
                ctx.queue.wake_for_slot(found[0].index)
