"""What a block that is kept for a gang is lent to until the gang begins, so that its slots stand idle no longer than they must.

Decides who may begin there: work that is over before the gang is to begin, as it was predicted when the claim was made, and work of a
higher priority than a gang that is not aged. So nothing that is let in puts the gang off but by its own delay. Must not know how a block
is chosen.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core.claimed import Claimed, Kept
from orchestrator.core.claiming import free_at_us
from orchestrator.core.claims import members
from orchestrator.core.context import Context
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.rows import Fix
from orchestrator.core.queue import JobClass
from orchestrator.core.state import Slot

_WHOLE_MILLI: Final = 1_000


def lenders(ctx: Context, waiting: JobClass, estimate: Estimate) -> list[Kept]:
    """Claims with idle slots where a job of this class is likely to be done before the gang is to begin."""
    if waiting.key.gang_size != 1:
        return []
    found = []
    for kept, held in ctx.state.claims.items():
        passes = _passes(ctx, waiting, kept.key)
        if not passes and held.block.begins_us <= ctx.now_us:
            continue
        there = members(ctx, held.block)
        if there is None or not estimate.fix[there[0].index, Fix.FEASIBLE] or all(slot.attempts for slot in there[1]):
            continue
        if passes or _is_over_in_time(ctx, held, there, int(estimate.execution_us[there[0].index])):
            found.append(kept)
    return found


def fits(ctx: Context, waiting: JobClass, kept: Kept, delay_us: int) -> bool:
    """Whether a job that should take `delay_us` in the block of a claim may begin there."""
    held = ctx.state.claims[kept]
    there = members(ctx, held.block)
    return there is not None and (_passes(ctx, waiting, kept.key) or _is_over_in_time(ctx, held, there, delay_us))


def _passes(ctx: Context, waiting: JobClass, key: ClassKey) -> bool:
    """Whether a class goes before a gang that claims, as it does everywhere: it is of a higher priority, and the gang is not aged."""
    known = ctx.queue.classes.get(key)
    return waiting.key.rank < key.rank and known is not None and not ctx.queue.is_aged(known)


def _is_over_in_time(ctx: Context, held: Claimed, there: tuple[Column, list[Slot]], delay_us: int) -> bool:
    """Never measured against a later beginning than the claim was made with: work that is late would else make room for more of it."""
    column, slots = there
    begins_us = min(held.block.begins_us, max(free_at_us(ctx, column, slot) for slot in slots))
    return delay_us * ctx.policy.spread_milli < (begins_us - ctx.now_us) * _WHOLE_MILLI


def lend(ctx: Context, kept: Kept) -> Column:
    """The idle slots of a block are there for anybody until `take_back`."""
    found = members(ctx, ctx.state.claims[kept].block)
    assert found is not None, "a lender's slots are there"
    for slot in found[1]:
        if not slot.attempts:
            ctx.columns.claim_changed(found[0], slot, 0)
    return found[0]


def take_back(ctx: Context, kept: Kept) -> None:
    """The block is kept again, with what was let in."""
    held = ctx.state.claims[kept]
    found = members(ctx, held.block)
    assert found is not None, "a lender's slots are there"
    for slot in found[1]:
        if not slot.claimed_until_us:
            ctx.columns.claim_changed(found[0], slot, held.until_us)
