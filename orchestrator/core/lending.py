"""What a block that is kept for a gang is lent to until the gang begins, so that its slots stand idle no longer than they must.

Decides who may begin there: work that is over before the gang is to begin, as it was predicted when the claim was made, and work of a
higher priority than a gang that is not aged. So nothing that is let in puts the gang off but by its own delay. It is let in where that is
the best place for it, as any other is taken. Must not know how a block is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from orchestrator.core.claimed import Claimed, Kept
from orchestrator.core.claiming import free_at_us
from orchestrator.core.claims import members
from orchestrator.core.context import Context
from orchestrator.core.placement import supposing
from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.rows import COLD, READY, Fix
from orchestrator.core.placement.victims import victims_in
from orchestrator.core.state import ReplicaKey, Slot

# The table in which a class is scored against what is lent: what it was scored without that stays readable.
LENT_TABLE: Final = -1
# Blocks of waiting gangs whose idle slots a class is scored against in one look.
_LENDERS_MAX: Final = 2


def lenders(ctx: Context, key: ClassKey, board: Board, otherwise: int | None) -> list[Kept]:
    """Claims with idle slots where a job of this class is likely to be done before the gang is to begin, the cheapest first. `otherwise`:
    the row that it is bound to if nobody lends, None if it waits; only what can cost less than that is worth a look."""
    if key.gang_size != 1 or (otherwise is not None and board.keys is not None):
        return []
    estimate, limit = board.estimate, supposing.cost_of(board, otherwise) if otherwise is not None else None
    found: list[tuple[supposing.Cost, int, Kept]] = []
    for lender, held in ctx.state.claims.items():
        column = ctx.columns.by_pool.get((held.block.site_id, held.block.pool_id))
        if column is None or not estimate.fix[column.index, Fix.FEASIBLE]:
            continue
        passes, exec_us = _passes(ctx, key, lender.key), int(estimate.execution_us[column.index])
        if not passes and held.block.begins_us - ctx.now_us <= exec_us:
            continue
        there = members(ctx, held.block)
        idle = [slot for slot in there[1] if slot.idle] if there is not None else []
        if there is None or not idle or not (passes or _is_over_in_time(ctx, held, there, exec_us)):
            continue
        is_ready = any(ReplicaKey(key.model_id) in slot.replicas for slot in idle)
        row = (READY if is_ready else COLD) * board.pools + column.index
        cost = supposing.after(ctx.scorer, key, board, row, wait_us=0)
        if limit is None or cost < limit:
            found.append((cost, len(found), lender))
    return [lender for _, _, lender in sorted(found)[:_LENDERS_MAX]]


def takes(ctx: Context, key: ClassKey, board: Board, row: int, lender: Kept, column: Column) -> bool:
    """Whether the row is in the block of a lender, leaves the gang's model where it is loaded, and is free in time."""
    if board.column(row) is not column:
        return False
    spares = all(victim.model_id != lender.key.model_id for slot in slots_of(board, row) for victim in victims_in(board, row, slot))
    held = ctx.state.claims[lender]
    there = members(ctx, held.block)
    if not spares or there is None:
        return False
    return _passes(ctx, key, lender.key) or _is_over_in_time(ctx, held, there, supposing.latest_us(ctx.scorer, key, board, row))


def _passes(ctx: Context, key: ClassKey, lender: ClassKey) -> bool:
    """Whether a class goes before a gang that claims, as it does everywhere: it is of a higher priority, and the gang is not aged."""
    known = ctx.queue.classes.get(lender)
    return key.rank < lender.rank and known is not None and not ctx.queue.is_aged(known)


def _is_over_in_time(ctx: Context, held: Claimed, there: tuple[Column, list[Slot]], latest_us: int) -> bool:
    """Never measured against a later beginning than the claim was made with: work that is late would else make room for more of it."""
    column, slots = there
    begins_us = min(held.block.begins_us, max(free_at_us(ctx, column, slot) for slot in slots))
    return latest_us < begins_us - ctx.now_us


@contextmanager
def lent(ctx: Context, lender: Kept) -> Iterator[Column]:
    """The idle slots of a block are there for anybody; afterwards the block is kept again, with what was let in."""
    held = ctx.state.claims[lender]
    found = members(ctx, held.block)
    assert found is not None, "a lender's slots are there"
    column, slots = found
    for slot in slots:
        if slot.idle:
            ctx.columns.claim_changed(column, slot, 0)
    try:
        yield column
    finally:
        for slot in slots:
            if not slot.claimed_until_us:
                ctx.columns.claim_changed(column, slot, held.until_us)
