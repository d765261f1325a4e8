"""Re-placement: work that is bound behind other work and has not begun goes where a place got better, if that is much sooner.

Decides which attempt is moved. Pools that got better (`bettered`) and have slots that nobody in the queue took are offered to the attempts
that wait longest elsewhere, also where they have to load. A move costs a message each way and starts the line anew, so it must gain more
than `move_gain_min_ms` and `move_gain_milli` of what is left, and a job is moved `moves_max` times. Must not know how places are chosen,
nor touch anything that a site has begun.
"""

from __future__ import annotations

from heapq import nsmallest
from operator import itemgetter
from typing import Final

from atoll.model import limits
from atoll.model.attempt import FailureKind
from atoll.model.ids import JobId, ModelId
from orchestrator.core import attempts, jobs, keeping
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.moves import Bettered, Bettering
from orchestrator.core.placement import supposing
from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.rows import COLD, READY, Fix, Out, State
from orchestrator.core.state import JobEntry, LiveAttempt, ReplicaKey, Slot

# Scorings in one step, as in a placing round; what is left goes on in the next. One look may go beyond it by what it may take itself.
_SCORINGS_PER_STEP: Final = 64
# Moves to one pool in one step: a site that connects may have a thousand free slots, and each move is some 0.2 ms of work.
_MOVES_PER_LOOK: Final = 64
# Of a class so many that wait longest are scored in vain: the gain falls with the wait; and so many of all classes. As many are looked at
# without scoring as take as long as some decisions.
_IN_VAIN_OF_CLASS: Final = 3
_IN_VAIN_MAX: Final = 16
_LOOKED_AT_MAX: Final = 64
# Attempts that are found for a look, of all models together and of one at least, and models that have none of their own in the pool: those
# that should begin last by their decisions.
_FOUND_MAX: Final = 256
_FOUND_OF_MODEL_MIN: Final = 4
_FOUND_OF_MODEL_MAX: Final = 64
_MODELS_MAX: Final = 32
# An attempt that waits behind others: for how long yet, its job, itself. A named tuple would take three times as long to make.
_Found = tuple[int, JobId, LiveAttempt]
_THROUGH_A_SLOT: Final = (Bettering.SLOT_FREE, Bettering.MODEL_WARM)


def look(ctx: Context) -> None:
    """Offer what got better and the placing round left free."""
    noted = ctx.state.bettered
    if not noted:
        return
    for place in [place for place in noted if place not in ctx.columns.by_pool]:
        del noted[place]  # the pool has gone with its site
    if not ctx.bound.behind or not ctx.policy.moves_max or ctx.policy.rule is not Rule.COST:
        noted.clear()  # what another rule placed is not moved for the sake of cost
        return
    if ctx.queue.first_ready() is not None:
        return  # whoever waits for the next placing round comes first
    left = _SCORINGS_PER_STEP
    for place in [place for place, known in noted.items() if known.after not in ctx.state.moves]:
        if left <= 0:
            break
        left -= _look_at(ctx, ctx.columns.by_pool[place], noted.pop(place))
    if any(known.after not in ctx.state.moves for known in noted.values()):
        ctx.arm(ctx.now_us, TimerKind.PLACING)


def _look_at(ctx: Context, column: Column, known: Bettered) -> int:
    """Move attempts to a pool, those that wait longest first. How many were scored."""
    moves, scored, in_vain, seen = 0, 0, dict[ClassKey, int](), 0
    if not column.free_slots or not ctx.columns.accepting_at(column.index):
        return 0
    for wait_us, job_id, live in _waiting(ctx, column, known):
        if not column.free_slots or moves == _MOVES_PER_LOOK or seen == _LOOKED_AT_MAX or scored - moves == _IN_VAIN_MAX:
            break
        where, entry = _where(ctx, live), ctx.state.jobs.get(job_id)
        if where is None or entry is None or not _movable(ctx, where, entry):
            continue
        key = ctx.class_of(live.spec, jobs.avoidance_of(entry.job, ctx.now_us))
        if in_vain.get(key, 0) == _IN_VAIN_OF_CLASS:
            continue
        if not _may_pay(ctx, key, wait_us, where, column):
            seen, in_vain[key] = seen + 1, in_vain.get(key, 0) + 1
            continue
        scored += 1
        moved = _offer(ctx, key, live, wait_us, where, column, known)
        moves += moved
        in_vain[key] = 0 if moved else in_vain.get(key, 0) + 1
    if moves and column.free_slots:
        # Others wait behind those that were found, or there were too many for one step. A look that moves nobody is the last.
        ctx.state.bettered[column.place] = known
    return scored


def _waiting(ctx: Context, column: Column, known: Bettered) -> list[_Found]:
    """Attempts for which a pool got better and that wait behind others for longer than what a move must gain, the longest first."""
    behind = ctx.bound.behind
    # Where a slot of the model is not free after all, it is no better place than before.
    models = [one for one, through in known.of_model if one in behind and (through not in _THROUGH_A_SLOT or _is_warm(column, one))]
    if known.of_all is not None:
        models += [key.model_id for key in column.warm if key.model_id in behind and _is_warm(column, key.model_id)]
        models += nsmallest(_MODELS_MAX, behind, key=lambda one: behind[one].places[0])
        models = sorted(set(models))
    most = min(max(_FOUND_MAX // max(len(models), 1), _FOUND_OF_MODEL_MIN), _FOUND_OF_MODEL_MAX)
    now_us, least_us = ctx.now_us, ctx.policy.move_gain_min_ms * 1_000
    found: list[_Found] = []
    for model_id in models:
        for slot, live in behind[model_id].longest(most):
            wait_us = slot.busy_until_us - live.exec_us - now_us
            if wait_us > least_us and not live.adopted and live.gives_way_to is None:
                job_id = live.attempt.key.job_id
                if slot.attempts[-1].job_id != job_id:
                    wait_us -= _behind_us(ctx, slot, live)
                found.append((wait_us, job_id, live))
    found.sort(key=itemgetter(0, 1), reverse=True)
    return found


def _is_warm(column: Column, model_id: ModelId) -> bool:
    """Whether a free slot of the pool has the model in memory."""
    warm = column.warm.get(ReplicaKey(model_id))
    return warm is not None and column.top(warm.free) is not None


def _behind_us(ctx: Context, slot: Slot, live: LiveAttempt) -> int:
    """The work of those that wait behind an attempt."""
    there = ctx.state.sites[live.attempt.site_id].attempts
    return sum(there[key].exec_us for key in slot.attempts[slot.attempts.index(live.key) + 1 :])


def _where(ctx: Context, live: LiveAttempt) -> Column | None:
    return ctx.columns.by_pool.get((live.attempt.site_id, live.attempt.slot.pool_id))


def _movable(ctx: Context, where: Column, entry: JobEntry) -> bool:
    """Whether the site can be told, and the job be moved and tried once more."""
    tried = entry.job.attempts
    if where.site.session is None or len(tried) >= limits.ATTEMPTS_PER_JOB_MAX:
        return False
    return sum(1 for one in tried if one.failure is not None and one.failure.kind is FailureKind.MOVED) < ctx.policy.moves_max


def _may_pay(ctx: Context, key: ClassKey, wait_us: int, where: Column, column: Column) -> bool:
    """Whether the pool might be so much better, nothing but the work itself counted: most is not that has to load, and scoring it costs as
    much as a decision."""
    model = ctx.state.models.get(key.model_id)
    if model is None:
        return False
    fix, pools = ctx.estimator.of(key, model).fix, len(ctx.columns.columns)
    row = (READY if _is_warm(column, key.model_id) else COLD) * pools + column.index
    if not fix.item(row, Fix.FEASIBLE):
        return False
    here_us = wait_us + fix.item(READY * pools + where.index, Fix.SERIAL)
    there_us, enough_us = fix.item(row, Fix.SERIAL), _enough_us(ctx, here_us)
    if row >= pools:
        saving_us = fix.item(row, Fix.SAVING)
        there_us -= saving_us
        if column.index not in ctx.columns.where.by_model.get(key.model_id, ()):
            there_us += fix.item(row, Fix.FETCH)
        if ctx.scorer.guards(key.model_id):
            # One copy more than is wanted: it is better by half of what loading takes, or made dearer by that.
            enough_us = max(enough_us, (fix.item(row, Fix.RELOAD) - saving_us) // 2)
    return here_us - there_us > enough_us


def _enough_us(ctx: Context, here_us: int) -> int:
    """What a move must gain, and more, where so much is left."""
    return max(ctx.policy.move_gain_min_ms * 1_000, here_us * ctx.policy.move_gain_milli // 1_000)


def _offer(ctx: Context, key: ClassKey, live: LiveAttempt, wait_us: int, where: Column, column: Column, known: Bettered) -> bool:
    """Move an attempt if it is so much better off where it is placed best now, all costs counted: also what it is worth that a slow and
    cheap place is in time."""
    job = ctx.state.jobs[live.key.job_id].job
    estimate = ctx.estimator.of(key, ctx.state.models[key.model_id])
    slack_us, begin_us = jobs.slack_us(job, ctx.now_us), jobs.begin_us(job, ctx.now_us)
    board = ctx.scorer.score(key, estimate, ctx.now_us, slack_us=slack_us, begin_us=begin_us)
    if board.bound is None:
        return False
    own = READY * board.pools + where.index
    here_us = supposing.after(ctx.scorer, key, board, own, wait_us=wait_us).total_us
    if board.wait_us(board.bound):
        # Behind others it were better yet, which can be said when it has stopped; until then what is free is kept for it, if that pays too.
        free = (board.out[:, Out.STATE] == State.BINDABLE) & (board.out[:, Out.WAIT] == 0)
        if not (free & (board.out[:, Out.TOTAL] < here_us - _enough_us(ctx, here_us))).any():
            return False
        board = ctx.scorer.score(key, estimate, ctx.now_us, slack_us=slack_us, begin_us=begin_us, mask=free)
    row = board.bound
    if row is None:
        return False
    gain_us = here_us - board.total_us(row)
    if gain_us <= _enough_us(ctx, here_us):
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
    attempts.stop(ctx, where.site, live, FailureKind.MOVED, message)
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
