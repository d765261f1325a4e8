"""Slots that are being emptied for a job that waits, by stopping work of a lower priority: what they offer it, and what was stopped for it.

Decides whether the job still waits for its slot when it could begin elsewhere: what was stopped is lost either way, but it was stopped for
nothing if the job then goes to a place that is no better. Must not know whom it pays to stop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.attempt import FailureKind
from atoll.model.ids import JobId
from atoll.model.placement import STOPPED_MAX, Stopped
from orchestrator.core import attempts, claiming
from orchestrator.core.context import Context, put_attempt
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.supposing import cost_of
from orchestrator.core.queue import JobClass
from orchestrator.core.state import LiveAttempt, Slot

_US_PER_MS: Final = 1_000


def stopped(ctx: Context, live: LiveAttempt, job_id: JobId, lost_us: int) -> None:
    """An attempt is stopped for a job: that is told with the next decision about the job, or with the one that has just been made."""
    entry, slot = ctx.state.jobs[job_id], live.attempt.slot
    one = Stopped(
        job_id=live.key.job_id,
        ordinal=live.key.ordinal,
        site_id=live.attempt.site_id,
        pool_id=slot.pool_id,
        lost_us=lost_us,
        node_id=slot.node_id,
        index=slot.index,
    )
    if job_id in ctx.queue:
        entry.stopped = (*entry.stopped, one)[-STOPPED_MAX:]
        return
    last = entry.job.attempts[-1]
    assert last.explanation is not None, "it has just been bound"
    told = replace(last.explanation, stopped=(*last.explanation.stopped, one)[-STOPPED_MAX:])
    bound = ctx.state.sites[last.site_id].attempts[last.key]
    bound.attempt = replace(last, explanation=told)
    put_attempt(entry, bound.attempt)
    ctx.save_job(entry)


def was_emptied(ctx: Context, job_id: JobId, column: Column, slot: Slot) -> bool:
    """Whether a slot was emptied for a job that waits since it was last bound: it went to somebody else then, and would again."""
    here = (*column.place, slot.ref.node_id, slot.index)
    return any((one.site_id, one.pool_id, one.node_id, one.index) == here for one in ctx.state.jobs[job_id].stopped)


def passes_by(ctx: Context, waiting: JobClass, board: Board, row: int | None, position: int) -> int:
    """The first job of a class from this position on that takes a row: those before it for whom a slot is being emptied wait for that if
    it is no worse for them. One whose stop takes longer than it should by more than a look is waited for no more."""
    if row is None or not ctx.bound.giving_way:
        return position
    while position < len(waiting.members) and _waits(ctx, waiting, board, row, waiting.nth(position)):
        position += 1
    return position


def _waits(ctx: Context, waiting: JobClass, board: Board, row: int, job_id: JobId) -> bool:
    late_us = ctx.policy.recheck_max_ms * _US_PER_MS
    for live in ctx.bound.giving_way.get(job_id, {}).values():
        if live.on_stop is not FailureKind.PREEMPTED or ctx.now_us > live.ends_us + late_us:
            continue
        where = attempts.find_slots(ctx, ctx.state.sites[live.attempt.site_id], live)
        if where is None or not ctx.columns.accepting_at(where[0].index):
            continue
        column, slots = where
        begins_us = max(live.ends_us, ctx.now_us)
        if not cost_of(board, row) < claiming.place_of(ctx, waiting.key, board, column, tuple(slots), begins_us=begins_us).cost:
            return True
    return False
