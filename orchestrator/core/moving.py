"""Re-placement: work that is bound behind other work and has not begun goes where a place got better, if that is much sooner.

Decides which attempt is moved. Pools that got better (`bettered`) and have slots that nobody in the queue took are offered to the attempts
that wait longest elsewhere, also where they have to load. A move costs a message each way and starts the line anew, so it must gain more
than `move_gain_min_ms` and `move_gain_milli` of what is left, and a job is moved `moves_max` times. Must not know how places are chosen,
nor touch anything that a site has begun.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Final, NamedTuple

from atoll.model import limits
from atoll.model.attempt import FailureKind
from orchestrator.core import attempts, jobs, keeping
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.moves import Bettered, Bettering
from orchestrator.core.placement import supposing
from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.placement.classes import ClassKey, class_of
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.rows import COLD, READY, Fix
from orchestrator.core.state import LiveAttempt, ReplicaKey, Site

# Scorings in one step, as in a placing round; what is left goes on in the next. One look may go beyond it by what it may take itself.
_SCORINGS_PER_STEP: Final = 64
# Moves to one pool in one step: a site that connects may have a thousand free slots, and each move is some 0.2 ms of work.
_MOVES_PER_LOOK: Final = 64
# Of a class so many that wait longest are scored in vain: the gain falls with the wait; and so many of all classes. As many are looked at
# without scoring as take as long as some decisions.
_IN_VAIN_OF_CLASS: Final = 3
_IN_VAIN_MAX: Final = 16
_LOOKED_AT_MAX: Final = 64
# Attempts behind others that are found for a look, of all models together and of one at least: beyond it those that should begin last by
# their decisions have been seen.
_FOUND_MAX: Final = 1_024
_FOUND_OF_MODEL_MIN: Final = 4
_FOUND_OF_MODEL_MAX: Final = 256


class _Found(NamedTuple):
    """An attempt that waits behind others, for how long yet, and where."""

    wait_us: int
    name: str
    where: Column
    live: LiveAttempt


def look(ctx: Context) -> None:
    """Offer what got better and the placing round left free."""
    noted = ctx.state.bettered
    if not noted:
        return
    if not ctx.bound.behind or not ctx.policy.moves_max or ctx.policy.rule is not Rule.COST:
        noted.clear()  # what another rule placed is not moved for the sake of cost
        return
    for place in [place for place in noted if place not in ctx.columns.by_pool]:
        del noted[place]  # the pool has gone with its site
    left = _SCORINGS_PER_STEP
    for place in [place for place, known in noted.items() if known.after not in ctx.state.moves]:
        if left <= 0:
            ctx.arm(ctx.now_us, TimerKind.PLACING)
            return
        left -= _look_at(ctx, ctx.columns.by_pool[place], noted.pop(place))


def _look_at(ctx: Context, column: Column, known: Bettered) -> int:
    """Move attempts to a pool, those that wait longest first. How many were scored."""
    moves, scored, in_vain, seen = 0, 0, dict[ClassKey, int](), 0
    for found in _waiting(ctx, column, known):
        if not column.free_slots or not ctx.columns.accepting_at(column.index) or seen == _LOOKED_AT_MAX or scored - moves == _IN_VAIN_MAX:
            break
        if moves == _MOVES_PER_LOOK:
            ctx.state.bettered[column.place] = known
            break
        job = ctx.state.jobs[found.live.key.job_id].job
        key = class_of(found.live.spec, jobs.avoidance_of(job, ctx.now_us))
        if in_vain.get(key, 0) == _IN_VAIN_OF_CLASS:
            continue
        if not _may_pay(ctx, key, found, column):
            seen, in_vain[key] = seen + 1, in_vain.get(key, 0) + 1
            continue
        scored += 1
        moved = _offer(ctx, key, found, column, known)
        moves += moved
        in_vain[key] = 0 if moved else in_vain.get(key, 0) + 1
    return scored


def _waiting(ctx: Context, column: Column, known: Bettered) -> list[_Found]:
    """Attempts for which a pool got better and that wait behind others for longer than what a move must gain, the longest first."""
    of_model = dict(known.of_model)
    models = [model_id for model_id in sorted(ctx.bound.behind) if known.of_all is not None or model_id in of_model]
    most = min(max(_FOUND_MAX // max(len(models), 1), _FOUND_OF_MODEL_MIN), _FOUND_OF_MODEL_MAX)
    least_us = ctx.policy.move_gain_min_ms * 1_000
    found = []
    for model_id in models:
        for site, live in ctx.bound.longest_behind(model_id, most):
            where = ctx.columns.by_pool.get((site.site_id, live.attempt.slot.pool_id))
            wait_us = _wait_us(ctx, where, live) if where is not None else 0
            if where is not None and wait_us > least_us and _movable(ctx, site, live):
                found.append(_Found(wait_us, str(live.key), where, live))
    found.sort(key=itemgetter(0, 1), reverse=True)
    return found


def _wait_us(ctx: Context, where: Column, live: LiveAttempt) -> int:
    """How long an attempt still waits for those before it in its slot."""
    (slot,) = where.pool.members(live.attempt.slot, 1)
    own = slot.attempts[slot.attempts.index(live.key) :]
    return slot.busy_until_us - sum(where.site.attempts[key].exec_us for key in own) - ctx.now_us


def _movable(ctx: Context, site: Site, live: LiveAttempt) -> bool:
    """Whether its site can be told, has not begun it as far as is known, and its job may be moved once more and tried once more."""
    if live.begun or live.given_up or live.gives_way_to is not None or site.session is None:
        return False
    entry = ctx.state.jobs.get(live.key.job_id)
    if entry is None or len(entry.job.attempts) >= limits.ATTEMPTS_PER_JOB_MAX:
        return False
    moves = sum(1 for one in entry.job.attempts if one.failure is not None and one.failure.kind is FailureKind.MOVED)
    return moves < ctx.policy.moves_max


def _may_pay(ctx: Context, key: ClassKey, found: _Found, column: Column) -> bool:
    """Whether the pool might be so much sooner, nothing but the work itself counted: most of what has to load is not, and scoring it costs
    as much as a decision."""
    model = ctx.state.models.get(key.model_id)
    if model is None:
        return False
    fix, pools = ctx.estimator.of(key, model).fix, len(ctx.columns.columns)
    warm = column.warm.get(ReplicaKey(key.model_id))
    row = (READY if warm is not None and column.top(warm.free) is not None else COLD) * pools + column.index
    if not fix[row, Fix.FEASIBLE]:
        return False
    here_us = found.wait_us + int(fix[READY * pools + found.where.index, Fix.SERIAL])
    there_us = int(fix[row, Fix.SERIAL]) - (int(fix[row, Fix.SAVING]) if row >= pools else 0)
    return here_us - there_us > ctx.policy.move_gain_min_ms * 1_000


def _offer(ctx: Context, key: ClassKey, found: _Found, column: Column, known: Bettered) -> bool:
    """Move an attempt if it is so much better off where it is placed best now, all costs counted: also what it is worth that a slow and
    cheap place is in time."""
    live, job = found.live, ctx.state.jobs[found.live.key.job_id].job
    estimate = ctx.estimator.of(key, ctx.state.models[key.model_id])
    slack_us, begin_us = jobs.slack_us(job, ctx.now_us), jobs.begin_us(job, ctx.now_us)
    board = ctx.scorer.score(key, estimate, ctx.now_us, slack_us=slack_us, begin_us=begin_us)
    row = board.bound
    if row is None or board.wait_us(row):
        return False
    own = READY * board.pools + found.where.index
    here_us = supposing.after(ctx.scorer, key, board, own, wait_us=found.wait_us).total_us
    gain_us = here_us - board.total_us(row)
    if gain_us <= max(ctx.policy.move_gain_min_ms * 1_000, here_us * ctx.policy.move_gain_milli // 1_000):
        return False
    there = board.column(row)
    through = known.words(key.model_id) if there is column else None
    if board.is_cold(row) and _puts_off(ctx, board, row, column, known):
        return False
    (slot,) = slots_of(board, row)
    words = through or Bettering.SLOT_FREE
    message = (
        f"{there.site.site_id}/{there.pool.pool_id} {words}: {_seconds(gain_us)} better "
        f"({_seconds(here_us)} from here, {_seconds(board.total_us(row))} from there, all costs counted)"
    )
    cold, delay_us = board.is_cold(row), board.delay_us(row)
    attempts.stop(ctx, found.where.site, live, FailureKind.MOVED, message)
    keeping.keep(ctx, there, slot, live, cold=cold, delay_us=delay_us)
    return True


def _puts_off(ctx: Context, board: Board, row: int, column: Column, known: Bettered) -> bool:
    """Whether a load has to wait for another one of its model for which a job is being moved: there is one flight of weights to a site, and
    what is a copy too many can only be said when that counts. The pool is looked at again then."""
    model_id, site_id = board.estimate.variant.model_id, board.column(row).site.site_id
    coming = {job_id: move for job_id, move in ctx.state.moves.items() if move.cold and move.model_id == model_id}
    if not coming:
        return False
    flies = board.fetch_us(row) > 0 and any(move.site_id == site_id for move in coming.values())
    if flies or ctx.columns.prices.copies(model_id) + len(coming) > ctx.residency.target(model_id):
        again = Bettered() if (noted := ctx.state.bettered.get(column.place)) is None else noted
        through = known.words(model_id) or Bettering.SLOT_FREE
        ctx.state.bettered[column.place] = again.put_off(through, model_id, next(iter(coming)))
        return True
    return False


def _seconds(us: int) -> str:
    return f"{us / 1_000_000:.2f} s"
