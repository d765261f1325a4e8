"""Slots that are kept for jobs that are moved, from the moment that an attempt is told to stop until its job is placed anew.

Decides how long a slot stands idle for that. Without it somebody else would have it when the attempt has stopped, and its job would have
lost its turn for nothing. Must not know whom it pays to move, nor how a job is bound.
"""

from __future__ import annotations

from atoll.model.ids import JobId
from orchestrator.core import bettered
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.moves import Move
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.state import LiveAttempt, Slot


def keep(ctx: Context, column: Column, slot: Slot, live: LiveAttempt, *, cold: bool, delay_us: int) -> None:
    """Keep a free slot for the job of an attempt that is being stopped. Its site is waited for as long as one may be silent: then it may
    not have heard of it."""
    until_us = ctx.now_us + ctx.policy.silent_after_ms * 1_000
    move = Move(
        site_id=column.site.site_id,
        slot=slot.ref,
        model_id=live.model_id,
        cold=cold,
        until_us=until_us,
        free_from_us=max(ctx.now_us + delay_us, until_us),
    )
    ctx.state.moves[live.key.job_id] = move
    ctx.columns.keep_changed(column, slot, move.free_from_us)
    ctx.arm(until_us, TimerKind.PLACING)


def restore(ctx: Context, job_id: JobId, move: Move) -> None:
    """A move is under way as a snapshot tells."""
    ctx.state.moves[job_id] = move
    found = _find(ctx, move)
    if found is not None:
        ctx.columns.keep_changed(*found, move.free_from_us)


def ripe(ctx: Context) -> list[JobId]:
    """Jobs that wait for nothing but to be placed in the slot that is kept for them. Whose job ended, or took too long, has it no more."""
    found = []
    for job_id, move in list(ctx.state.moves.items()) if ctx.state.moves else ():
        if job_id in ctx.queue:
            found.append(job_id)
        elif ctx.now_us >= move.until_us or job_id not in ctx.state.jobs:
            offer(ctx, lift(ctx, job_id))
    return found


def lift(ctx: Context, job_id: JobId) -> tuple[Column, Slot] | None:
    """A move is over: its slot is there for anybody, if the fleet (still) has it."""
    found = _find(ctx, ctx.state.moves.pop(job_id))
    if found is None or not found[1].kept_until_us:
        return None
    ctx.columns.keep_changed(*found, 0)
    return found


def offer(ctx: Context, found: tuple[Column, Slot] | None) -> None:
    """Nobody took the slot that was kept: whoever waits for its pool looks at it."""
    if found is not None and is_free(found[1]):
        bettered.slot_free(ctx, *found, took_loads=False)
        ctx.queue.wake_for_slot(found[0].index)


def _find(ctx: Context, move: Move) -> tuple[Column, Slot] | None:
    column = ctx.columns.by_pool.get((move.site_id, move.slot.pool_id))
    members = column.pool.members(move.slot, 1) if column is not None else []
    return (column, members[0]) if column is not None and members else None
