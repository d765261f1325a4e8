"""Whose claims give way to whose, and how much room for claims a pool leaves to a class.

Decides strength: the aged by age, then priority. Blocks that drain stand partly idle, so those that are kept in a pool are at most the
policy's share of it, or one. A class has turns for as many blocks as its tenant may be charged for before it is another's turn: what it has
claimed counts as if it were charged already. Must not know which block is best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from atoll.model.ids import TenantId
from atoll.model.placement import Claim
from orchestrator.core.claimed import Claimed, Kept
from orchestrator.core.claiming import Place, Room
from orchestrator.core.context import Context
from orchestrator.core.fairness import WEIGHT_MILLI, normalised_us
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.column import Column
from orchestrator.core.queue import JobClass

# Claims of the fleet: each is looked at in every step. A fleet of thirty sites has some forty pools, and few gangs wait at a time; who
# comes later claims when another was served, the aged before.
CLAIMS_MAX: Final = 128
# Blocks that one class claims: of those that drain, and of those in which gangs execute. It claims the next when one is whole, so more
# are of use only where so many come free at one instant.
OF_CLASS_MAX: Final = 8
# A block that is whole, because a gang executes there, is kept while the tenant is ahead of its turn by no more than so many gangs. Who
# takes it from them has their turn a moment sooner, and they wait until another has drained.
_KEPT_JOBS: Final = 2
_WHOLE_MILLI: Final = 1_000

# What goes before in claiming.
Strength = tuple[int, int]


def strength(ctx: Context, waiting: JobClass) -> Strength:
    """Lower goes first, and takes from who is not aged: the aged by age, then by priority."""
    return (0, waiting.oldest[0]) if ctx.queue.is_aged(waiting) else (1, waiting.key.rank)


def tenant_of(ctx: Context, waiting: JobClass) -> TenantId:
    """Whose turn it is in a class."""
    return ctx.state.jobs[waiting.head[1]].job.spec.tenant


def _has_turn(ctx: Context, waiting: JobClass, column: Column, moving: Kept | None, ahead_us: int = 0) -> bool:
    """Whether nobody goes before a class in a pool: neither of those that rest for it, nor of the gangs that have claimed there and would
    claim more. `ahead_us`: by how much its tenant may be ahead of them."""
    pending_us = _pending_us(ctx, waiting, moving) - ahead_us
    if not ctx.queue.has_turn(waiting, column.index, pending_us):
        return False
    if pending_us <= 0 and ctx.queue.is_aged(waiting):
        return True
    turn = (waiting.key.rank, *waiting.fair_key(pending_us))
    others = {kept.key: None for _, kept, _ in _others(ctx, waiting, column)}
    wanting = [ctx.queue.classes[key] for key in others if len(ctx.state.claims.of(key)) < len(ctx.queue.classes[key].members)]
    return all(turn < (other.key.rank, *other.fair_key(_pending_us(ctx, other))) for other in wanting)


def _pending_us(ctx: Context, waiting: JobClass, besides: Kept | None = None) -> int:
    """By how much all that is claimed for a tenant, whose turn it is in a class, will move it on."""
    tenant = tenant_of(ctx, waiting)
    charge_us = sum(held.charge_us for kept, held in ctx.state.claims.items() if held.tenant == tenant and kept != besides)
    return _moves_on_us(ctx, waiting, charge_us)


def _moves_on_us(ctx: Context, waiting: JobClass, charge_us: int) -> int:
    """By how much a charge moves on the tenant whose turn it is in a class."""
    return charge_us * WEIGHT_MILLI // ctx.queue.shares.weight_milli(tenant_of(ctx, waiting))


def room(ctx: Context, waiting: JobClass, board: Board, column: Column, moving: Kept | None = None) -> Room | None:
    """Slots of a pool whose claims do not give way to this class, and which kinds of blocks it may claim beside them; None if it may claim
    nothing. `moving`: a claim of its own that would end."""
    own, size = strength(ctx, waiting), waiting.key.gang_size
    charge_us = _moves_on_us(ctx, waiting, normalised_us(int(board.estimate.execution_us[column.index]), column.pool.gpu, size))
    has_turn = _has_turn(ctx, waiting, column, moving)
    if not has_turn and not _has_turn(ctx, waiting, column, moving, ahead_us=_KEPT_JOBS * charge_us):
        return None
    everywhere = len(ctx.state.claims) - (moving is not None)
    if everywhere >= CLAIMS_MAX and not any(other > own for other, _, _ in _others(ctx, waiting, None)):
        return None
    alike = [ctx.state.claims[kept].drains for kept in ctx.state.claims.of(waiting.key) if kept != moving]
    firm = [(kept, held) for other, kept, held in _others(ctx, waiting, column) if other <= own]
    firm += [(kept, ctx.state.claims[kept]) for kept in ctx.state.claims.of(waiting.key) if kept != moving]
    there = [held for kept, held in firm if is_at(held.block, column)]
    found = Room(
        kept={(column.pool.node_index[one.block.node_id], one.block.first + index) for one in there for index in range(one.block.slots)},
        draining=has_turn and sum(alike) < OF_CLASS_MAX and may_drain(ctx, column, there, size),
        whole=len(alike) - sum(alike) < OF_CLASS_MAX,
    )
    if moving is not None and is_at(ctx.state.claims[moving].block, column):
        block = ctx.state.claims[moving].block
        found.kept.update((column.pool.node_index[block.node_id], block.first + index) for index in range(block.slots))
    return found if found.draining or found.whole else None


def may_drain(ctx: Context, column: Column, others: Iterable[Claimed], slots: int) -> bool:
    """Whether a block of so many slots may drain beside other claims of its pool."""
    draining = sum(held.block.slots for held in others if held.drains)
    return not draining or (draining + slots) * _WHOLE_MILLI <= ctx.policy.claims_share_milli * column.pool.spec.slots


def in_the_way(ctx: Context, waiting: JobClass, place: Place) -> list[Kept]:
    """Weaker claims that give way: those of the same slots, then the weakest until there is room among the pool's and the fleet's."""
    first, size = place.slots[0].index, waiting.key.gang_size
    node_id, own = place.slots[0].ref.node_id, strength(ctx, waiting)
    others = sorted(_others(ctx, waiting, place.column), key=lambda found: found[0], reverse=True)
    there = {kept: held for other, kept, held in others if other > own}
    going = [
        kept
        for kept, held in there.items()
        if held.block.node_id == node_id and held.block.first < first + size and first < held.block.first + held.block.slots
    ]
    for kept in going:
        del there[kept]
    if place.drains:
        leaving = {*there, *going}
        firm = [held for kept, held in ctx.state.claims.items() if is_at(held.block, place.column) and kept not in leaving]
        draining = [kept for kept, held in there.items() if held.drains]
        while draining and not may_drain(ctx, place.column, [*firm, *(there[kept] for kept in draining)], size):
            going.append(draining.pop(0))
    if not going and len(ctx.state.claims) >= CLAIMS_MAX:
        going.append(max(_others(ctx, waiting, None), key=lambda found: found[0])[1])
    return going


def is_at(block: Claim, column: Column) -> bool:
    """Whether a block is in a pool."""
    return (block.site_id, block.pool_id) == (column.site.site_id, column.pool.pool_id)


def _others(ctx: Context, waiting: JobClass, column: Column | None) -> Iterator[tuple[Strength, Kept, Claimed]]:
    """Claims of other classes, of a pool or all, with their strength."""
    for kept, held in ctx.state.claims.items():
        known = ctx.queue.classes.get(kept.key)
        if known is not None and known is not waiting and (column is None or is_at(held.block, column)):
            yield strength(ctx, known), kept, held
