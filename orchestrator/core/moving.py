"""Re-placement: work that is bound behind other work and has not begun goes to a slot that came free, if that is much sooner.

Decides which attempt is moved. A slot that nobody in the queue took is offered to the attempts of its models that wait longest elsewhere.
A move costs a message each way and starts the line anew, so it must gain more than `move_gain_min_ms` and `move_gain_milli` of what is
left, and a job is moved `moves_max` times. Must not know how places are chosen, nor touch anything that a site has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest
from typing import Final

from atoll.model.attempt import AttemptState, FailureKind
from orchestrator.core import attempts, jobs
from orchestrator.core.context import Context
from orchestrator.core.placement import supposing
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.rows import READY
from orchestrator.core.state import LiveAttempt, ReplicaKey, Slot

# Of the attempts that wait behind others, so many that wait longest are scored for one free slot: the gain falls with the wait.
_SCORED_MAX: Final = 3
# Slots of a model looked at for one that came free: beyond it some attempt with about the longest wait has been seen.
_LOOKED_AT_MAX: Final = 256


def fill_vacated(ctx: Context) -> None:
    """Offer the slots that came free in this step, and that the placing round left free."""
    vacated, ctx.vacated = ctx.vacated, []
    if ctx.policy.rule is not Rule.COST:
        return  # what another rule placed is not moved for the sake of cost
    for column, slot in vacated:
        # The pool may have gone with its site in this very step.
        here = ctx.columns.by_pool.get((column.site.site_id, column.pool.pool_id)) is column
        if here and is_free(slot) and ctx.columns.accepting_at(column.index):
            _fill(ctx, column, slot)


def _fill(ctx: Context, column: Column, slot: Slot) -> None:
    for key in sorted(key for key in slot.replicas if key.gang_size == 1):
        behind = nlargest(_SCORED_MAX, _behind(ctx, key), key=lambda found: (found[0], str(found[2].key)))
        for wait_us, where, live in behind:
            if wait_us <= ctx.policy.move_gain_min_ms * 1_000:
                break
            if _pays(ctx, where, live, wait_us, column):
                message = f"{column.site.site_id}/{column.pool.pool_id} came free: that is sooner than to wait here"
                attempts.stop(ctx, where.site, live, FailureKind.MOVED, message)
                return


def _behind(ctx: Context, key: ReplicaKey) -> Iterator[tuple[int, Column, LiveAttempt]]:
    """(how long it still waits, where, attempt) of those that wait behind others in slots of this replica and may be moved."""
    left = _LOOKED_AT_MAX
    for index in ctx.columns.where.by_model.get(key.model_id, ()):
        column = ctx.columns.columns[index]
        warm = column.warm.get(key)
        for where in warm.slots if warm is not None else ():
            left -= 1
            slot = column.slot(*where)
            if len(slot.attempts) > 1:
                live = column.site.attempts[slot.attempts[-1]]
                if _movable(ctx, live):
                    yield slot.busy_until_us - live.exec_us - ctx.now_us, column, live
        if left <= 0:
            return


def _movable(ctx: Context, live: LiveAttempt) -> bool:
    if live.attempt.state is not AttemptState.LEASED or live.begun or live.given_up or live.gives_way_to is not None:
        return False
    entry = ctx.state.jobs.get(live.key.job_id)
    if entry is None:
        return False
    moves = sum(1 for one in entry.job.attempts if one.failure is not None and one.failure.kind is FailureKind.MOVED)
    return moves < ctx.policy.moves_max


def _pays(ctx: Context, where: Column, live: LiveAttempt, wait_us: int, column: Column) -> bool:
    """Whether the attempt would be so much better off in the pool that has a slot free now, all costs counted: also what it is worth that
    a slow and cheap place is in time."""
    model = ctx.state.models.get(live.model_id)
    if model is None:
        return False
    job = ctx.state.jobs[live.key.job_id].job
    job_class = class_of(live.spec, jobs.avoidance_of(job, ctx.now_us))
    estimate = ctx.estimator.of(job_class, model)
    slack_us, begin_us = jobs.slack_us(job, ctx.now_us), jobs.begin_us(job, ctx.now_us)
    board = ctx.scorer.score(job_class, estimate, ctx.now_us, slack_us=slack_us, begin_us=begin_us)
    row = board.bound
    if row is None or board.column(row) is not column or board.wait_us(row):
        return False
    own = READY * board.pools + where.index
    here_us = supposing.after(ctx.scorer, job_class, board, own, wait_us=wait_us).total_us
    gain_us = here_us - board.total_us(row)
    return gain_us > max(ctx.policy.move_gain_min_ms * 1_000, here_us * ctx.policy.move_gain_milli // 1_000)
