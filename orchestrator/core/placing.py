"""The placing round: ready classes in order, each scored, its jobs bound or put to rest.

Decides when a job is bound and when it waits. Waiting is a candidate: a job rests when the cheapest place is one that is busy now.
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from typing import Final

from atoll.model.ids import JobId, Ordinal
from atoll.model.job import JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Candidate, Deferral, Reason
from orchestrator.core import binding, claims, emptying, jobs, keeping, lending, loading, preempting
from orchestrator.core.claimed import ClaimDropped, Claimed, Kept
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.lines import stand_of
from orchestrator.core.outputs import JobsDeferred
from orchestrator.core.patience import patience
from orchestrator.core.placement.busy import awaited_slot, busy_slot
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.columns import REASON_CODE
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.filters import rejections
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.rows import COLD, NO_DEADLINE, READY
from orchestrator.core.placement.rules import NO_LOT, Lot
from orchestrator.core.queue import NO_POOL, Favour, JobClass, Queue
from orchestrator.core.standing import NO_STAND, Stand

# Scorings in one step: about 10 ms of work, or 80 where each class is seen for the first time. What is left goes on in the next step, so
# that reports and results are heard in between.
_SCORINGS_PER_STEP: Final = 64
# Classes that are looked at again within `recheck_max_ms`, of all tenants together: beyond it each is looked at less often. At 0.1 ms
# each they take a tenth of a core.
_RECHECKED_MAX: Final = 2_000
# While nothing can be bound, all wait, however many.
_ENDLESS: Final = 2**40
# Jobs behind one that comes too late that are looked at one after the other: mostly the first of those with more time has it.
_TRIED_MAX: Final = 2
# A block that should be whole by now is so in an eighth of the time for which it has been late, at least, as loads and fetches are: who
# waits for it has it in the moment when it is, and need not look for it meanwhile.
_LEFT_PARTS: Final = 8


def place_ready(ctx: Context, arrivals: int = 0) -> None:
    """Score ready classes in order of priority, turn and regret, and bind or rest their jobs.

    `arrivals`: jobs that came in this step. Only what arrives together is ordered by regret: who is woken for a freed slot has its turn.
    """
    for job_id in keeping.ripe(ctx):
        _place_moved(ctx, job_id)
    for kept in claims.ripe(ctx):
        if ctx.state.claims.get(kept) is not None:
            _place_claimed(ctx, kept)
    left = _SCORINGS_PER_STEP
    while (first := ctx.queue.first_ready()) is not None:
        if left <= 0:
            ctx.arm(ctx.now_us, TimerKind.PLACING)
            return
        by_regret = arrivals > 1 and ctx.policy.rule is Rule.COST
        rivals = ctx.queue.rivals(first, ctx.policy.regret_classes) if by_regret else [first]
        ctx.looked_at = first
        if len(rivals) == 1:
            left -= _place_class(ctx, first, left)
            continue
        left -= len(rivals)
        for waiting, board in _by_regret(ctx, rivals):
            ctx.looked_at = waiting
            left -= _place_class(ctx, waiting, 1, board) if ctx.queue.is_ready(waiting) else 0


def _by_regret(ctx: Context, rivals: list[JobClass]) -> list[tuple[JobClass, Board]]:
    """Classes that are ready together, each as it is scored now: first the one that loses most if another takes its best place; equals as
    they came.

    Whoever has a second place nearly as good can leave the best one to whoever has none. Fairness loses nothing: one job of each is served
    before any has a second, and what is bound is charged.
    """
    scored: list[tuple[int, JobClass, Board]] = []
    for table, waiting in enumerate(rivals, 1):
        ctx.looked_at = waiting
        estimate = ctx.estimator.of(waiting.key, ctx.state.models[waiting.key.model_id])
        board = _score(ctx, waiting, estimate, table=table)
        scored.append((-board.regret_us(), waiting, board))
    scored.sort(key=itemgetter(0))
    return [(waiting, board) for _, waiting, board in scored]


def _place_class(ctx: Context, waiting: JobClass, budget: int, known: Board | None = None) -> int:
    """Bind jobs of a class until it is another's turn, it rests, or the budget is spent; how many scorings it took. `known`: how it was
    scored, which is not done again if it is still true."""
    key = waiting.key
    model = ctx.state.models[key.model_id]
    spent = 0
    while spent < budget:
        spent += 1
        if known is not None and known.holds(*_due(ctx, waiting.head[1])):
            board, known = known, None
        else:
            estimate = ctx.estimator.of(key, model)
            if _rests_unscored(ctx, waiting, estimate):
                return spent
            board = _score(ctx, waiting, estimate)
        passed, board = _in_time(ctx, waiting, board)
        spent += passed > 0
        bound, patient, estimate = board.bound, board.patient, board.estimate
        if _correct_overdue(ctx, board, bound) or _correct_overdue(ctx, board, patient):
            continue
        position = emptying.passes_by(ctx, waiting, board, bound, passed + _who_binds(ctx.queue, board, bound, patient, waiting))
        row = bound if position < len(waiting.members) else None
        lenders = lending.lenders(ctx, key, board, row) if ctx.state.claims else []
        spent += len(lenders)
        if not any(_borrow(ctx, waiting, model, estimate, lender, passed) for lender in lenders):
            if row is None:
                ctx.queue.looked_at(waiting)
                # Who comes later may have the time that those who wait have not.
                patience = min(position, len(waiting.members)) if board.short_us() > 0 else position
                _rest(ctx, waiting, board, patient, patience, waiting.nth(passed))
                return spent
            _bind_one(ctx, waiting, model, board, row, position)
        if spent < budget and ctx.queue.first_ready() is not waiting:
            return spent
    return spent


def _rests_unscored(ctx: Context, waiting: JobClass, estimate: Estimate) -> bool:
    """Whether a class rests that no pool can run as the fleet is: however many those are, who stands behind them is looked at soon. Not so
    a gang, which may have a block to give back, nor who avoids where it failed."""
    if not estimate.barren or waiting.key.gang_size > 1 or waiting.key.avoid:
        return False
    ctx.queue.looked_at(waiting)
    until_us = ctx.now_us + max(ctx.policy.recheck_idle_ms * 1_000, _again_us(ctx, waiting))
    found = rejections(estimate.codes)
    told = Deferral(since_us=ctx.now_us, until_us=until_us, waits_for=None, rejections=found, too_small=estimate.too_small)
    _lies_down(ctx, waiting, waiting.head[1], told, patience=_ENDLESS)
    return True


def _score(ctx: Context, waiting: JobClass, estimate: Estimate, table: int = 0, job_id: JobId | None = None) -> Board:
    """A class as it is for the job whose turn it is, or another one of it."""
    job_id = job_id or waiting.head[1]
    lot = NO_LOT if ctx.policy.rule is Rule.COST else lot_of(ctx, job_id)
    slack_us, begin_us = _due(ctx, job_id)
    board = ctx.scorer.score(waiting.key, estimate, ctx.now_us, slack_us=slack_us, begin_us=begin_us, lot=lot, table=table)
    if ctx.state.claims and waiting.key in ctx.state.claims:
        claims.correct(ctx, board, waiting.key)
    return board


def _in_time(ctx: Context, waiting: JobClass, board: Board) -> tuple[int, Board]:
    """The turn of a job that comes too late wherever it goes passes to the first behind it that does not: (its position, as it is scored).
    Else one that is about to be ended would keep those that have time from their slots. Where nobody has, it is the head's turn."""
    short_us = board.short_us()
    if short_us <= 0 or len(waiting.members) == 1 or waiting.favour is Favour.AGED:
        return 0, board
    head = waiting.head[1]
    had, told, tried = (board.slack_us, board.begin_us), _deferral(ctx, board, ctx.now_us + ctx.policy.recheck_idle_ms * 1_000, None), 0
    for position, job_id in enumerate(waiting.in_turn()):
        has = _due(ctx, job_id)
        later = any(limit_us + short_us <= now_us for limit_us, now_us in zip(had, has, strict=True) if limit_us < NO_DEADLINE)
        if has[0] < had[0] or has[1] < had[1] or not later:
            continue
        tried += 1
        found = _score(ctx, waiting, board.estimate, job_id=job_id)
        if found.short_us() <= 0:
            _tell(ctx, head, told)
            return position, found
        if tried == _TRIED_MAX:
            break
    return (0, _score(ctx, waiting, board.estimate)) if tried else (0, board)


def _bind_one(ctx: Context, waiting: JobClass, model: ModelSpec, board: Board, row: int, position: int) -> None:
    """One job of a class takes a place. There are no more claims of gangs than gangs that wait."""
    job_id = ctx.binding = waiting.nth(position)
    binding.bind(ctx, ctx.state.jobs[job_id], model, board, row)
    ctx.queue.bound(waiting)
    if ctx.state.claims and waiting.key in ctx.state.claims:
        claims.shed(ctx, waiting.key, f"job {job_id} found another place")


def _place_claimed(ctx: Context, kept: Kept) -> None:
    """A block that is kept for a class of gangs is whole: one of its jobs takes it, or a place that is better yet, before anybody else."""
    key, block = kept.key, ctx.state.claims[kept].block
    waiting, model = ctx.queue.classes[key], ctx.state.models[key.model_id]
    ctx.looked_at = waiting
    found = claims.lift(ctx, kept)
    board = _score(ctx, waiting, ctx.estimator.of(key, model))
    if board.bound is None:
        ctx.decisions.append(ClaimDropped(claim=block, reason="the gang cannot begin there after all"))
    else:
        ctx.queue.count_turn(waiting, board.column(board.bound).index)
        _bind_one(ctx, waiting, model, board, board.bound, 0)
    claims.offer_idle(ctx, found)
    ctx.queue.wake(key)


def _place_moved(ctx: Context, job_id: JobId) -> None:
    """A job that is moved has no attempt any more: it takes the slot that is kept for it, or a place that is better yet, before anybody
    else, as it has had its turn. If that is no good place any more it waits for its turn again."""
    key, found = ctx.queue.class_key(job_id), keeping.lift(ctx, job_id)
    assert key is not None, "who is ripe waits"
    waiting, model = ctx.queue.classes[key], ctx.state.models[key.model_id]
    ctx.looked_at = waiting
    board = _score(ctx, waiting, ctx.estimator.of(key, model), job_id=job_id)
    row = board.bound
    if row is not None and not _who_binds(ctx.queue, board, row, board.patient, waiting):
        ctx.binding = job_id
        binding.bind(ctx, ctx.state.jobs[job_id], model, board, row)
    keeping.offer(ctx, found)


def _borrow(ctx: Context, waiting: JobClass, model: ModelSpec, estimate: Estimate, lender: Kept, passed: int) -> bool:
    """Bind a job of a class to an idle slot of a block that is kept for a gang, if that is best for it and over in time. `passed`: so many
    whose turn has passed to it."""
    with lending.lent(ctx, lender) as column:
        board = _score(ctx, waiting, estimate, table=lending.LENT_TABLE, job_id=waiting.nth(passed))
        row = board.bound
        position = emptying.passes_by(ctx, waiting, board, row, passed + _who_binds(ctx.queue, board, row, board.patient, waiting))
        if row is None or position >= len(waiting.members) or not lending.takes(ctx, waiting.key, board, row, lender, column):
            return False
        _bind_one(ctx, waiting, model, board, row, position)
        return True


def _due(ctx: Context, job_id: JobId) -> tuple[int, int]:
    """How long until the deadline of a job, and until its start timeout."""
    job = ctx.state.jobs[job_id].job
    return jobs.slack_us(job, ctx.now_us), jobs.begin_us(job, ctx.now_us)


def lot_of(ctx: Context, job_id: JobId) -> Lot:
    """Whose turn it is, for the policies that choose by chance or in turn."""
    if ctx.policy.rule is Rule.COST:
        return NO_LOT
    entry = ctx.state.jobs.get(job_id)
    ordinal = Ordinal(len(entry.job.attempts) + 1 if entry is not None else 1)
    return Lot(job_id=job_id, ordinal=ordinal, last=ctx.state.last_place)


def _correct_overdue(ctx: Context, board: Board, row: int | None) -> bool:
    """Whether the slot that a row waits for should have been free by now: then it is predicted to take as long again as it has taken so
    far. Without that, a slot that hangs is for ever about to be free, and everybody waits for it beside idle ones.
    """
    if row is None or not board.overdue(row):
        return False
    column, slot = board.column(row), busy_slot(board, row)
    if slot is None:
        return False
    if slot.attempts:
        taken_us = ctx.now_us - column.site.attempts[slot.attempts[0]].attempt.leased_us
        slot.busy_until_us = ctx.now_us + max(taken_us, ctx.policy.recheck_min_ms * 1_000)
    else:
        loading.overdue(ctx, slot)
    ctx.columns.slot_changed(column, slot, was_free=False)
    return True


def _who_binds(queue: Queue, board: Board, bound: int | None, patient: int | None, waiting: JobClass) -> int:
    """Which job of the class takes the best place that can be had now, by its position in the class: those before it wait."""
    return _ENDLESS if bound is None else patience(queue, board, bound, patient, waiting.key)


def _rest(ctx: Context, waiting: JobClass, board: Board, patient: int | None, patience: int, job_id: JobId) -> None:
    """Nothing to bind: say the job whose turn it is why, and when it is looked at again. Woken too early for the same place, it rests on
    without a word."""
    if patient is None and _only_avoided(waiting, board):
        # Where it failed a moment ago is the only place there is: the back-off has passed, so it is tried there again.
        claims.drop_all(ctx, waiting.key, "its jobs may go elsewhere")
        for one in list(waiting.members):
            ctx.queue.discard(one)
            jobs.enqueue(ctx, ctx.state.jobs[one], avoiding=False)
        ctx.arm(ctx.now_us, TimerKind.PLACING)
        return
    policy = ctx.policy
    claimed = claims.consider(ctx, waiting, board) if waiting.key.gang_size > 1 else None
    if claimed is not None:
        _rest_claimed(ctx, waiting, board, claimed, patience)
        return
    candidate: Candidate | None = None
    pool, stand = NO_POOL, NO_STAND
    rest_us = policy.recheck_idle_ms * 1_000
    if patient is not None:
        pool, stand = patient % board.pools, stand_of(board, patient, waiting.key, board.bound)
        cold = board.is_cold(patient)
        told = ctx.state.jobs[job_id].job.deferral
        early = told is not None and told.claim is None and ctx.now_us < told.until_us and board.is_at(patient, told.waits_for)
        if not early and not board.awaits_flight(patient):
            preempting.make_room(ctx, waiting, board, patient)
        _keep(ctx, waiting, board, patient)
        if not cold and (other := board.best_waiting(COLD)) is not None:
            _keep(ctx, waiting, board, other)
        if early and told is not None:
            ctx.queue.rest(waiting.key, told.until_us, pool, patience, stand)
            return
        (candidate,) = board.candidates([patient])
        rest_us = min(max(candidate.wait_us, policy.recheck_min_ms * 1_000), policy.recheck_max_ms * 1_000)
    until_us = ctx.now_us + max(rest_us, _again_us(ctx, waiting))
    _lies_down(ctx, waiting, job_id, _deferral(ctx, board, until_us, candidate), pool=pool, patience=patience, stand=stand)


def _rest_claimed(ctx: Context, waiting: JobClass, board: Board, claimed: Claimed, patience: int) -> None:
    """A gang waits for the block that is kept for it: no slot that comes free wakes it, but what it will take is before those who come
    later. Woken too early, it rests on without a word."""
    block, policy = claimed.block, ctx.policy
    kind = COLD if claimed.candidate.cold else READY
    row = kind * board.pools + ctx.columns.by_pool[block.site_id, block.pool_id].index
    stand = stand_of(board, row, waiting.key)
    told = ctx.state.jobs[waiting.head[1]].job.deferral
    if told is not None and ctx.now_us < told.until_us and told.claim == block:
        again_us = ctx.now_us + policy.recheck_min_ms * 1_000 if claims.looks_again(ctx, waiting) else told.until_us
        ctx.queue.rest(waiting.key, min(again_us, told.until_us), NO_POOL, patience, stand)
        return
    late_us = ctx.now_us - block.begins_us
    wait_us = 0 if claims.looks_again(ctx, waiting) else max(-late_us, late_us // _LEFT_PARTS)
    until_us = ctx.now_us + min(max(wait_us, policy.recheck_min_ms * 1_000), policy.recheck_max_ms * 1_000)
    deferral = replace(_deferral(ctx, board, until_us, claimed.candidate), claim=block)
    _lies_down(ctx, waiting, waiting.head[1], deferral, patience=patience, stand=stand)


def _again_us(ctx: Context, waiting: JobClass) -> int:
    """How long a class rests at least, so that all are looked at again only so often."""
    return ctx.policy.recheck_max_ms * 1_000 * ctx.queue.looks_ahead(waiting) // _RECHECKED_MAX


def _lies_down(
    ctx: Context, waiting: JobClass, job_id: JobId, told: Deferral, *, pool: int = NO_POOL, patience: int, stand: Stand = NO_STAND
) -> None:
    """A class rests until its deferral is over, and the job whose turn it is is told why."""
    ctx.queue.rest(waiting.key, told.until_us, pool, patience, stand)
    ctx.decisions.append(JobsDeferred(model_id=waiting.key.model_id, jobs=len(waiting.members), deferral=told))
    _tell(ctx, job_id, told)


def _deferral(ctx: Context, board: Board, until_us: int, waits_for: Candidate | None) -> Deferral:
    return Deferral(
        since_us=ctx.now_us,
        until_us=until_us,
        waits_for=waits_for,
        rejections=board.rejections(),
        too_small=board.estimate.too_small,
    )


def _keep(ctx: Context, waiting: JobClass, board: Board, row: int) -> None:
    """The slot that a row waits for may be kept for the first job of a class."""
    execution_us = board.estimate.execution_us.item(row)
    load_us = max(board.delay_us(row) - board.wait_us(row) - execution_us, 0) if board.is_cold(row) else 0
    slot = awaited_slot(board, row)
    preempting.keep_slot(ctx, waiting, board.column(row), slot, hold_us=execution_us, load_us=load_us)


def _only_avoided(waiting: JobClass, board: Board) -> bool:
    """Whether sites that these jobs avoid are all that is left for them."""
    avoided = board.estimate.codes == REASON_CODE[Reason.RECENT_FAILURE]
    return bool(waiting.key.avoid) and bool((avoided & board.columns.accepting).any())


def _tell(ctx: Context, job_id: JobId, deferral: Deferral) -> None:
    """The first job of a class carries its class's deferral, for those who ask; the others wait behind it."""
    entry = ctx.state.jobs[job_id]
    old = entry.job.deferral
    same = old is not None and _place(old.waits_for) == _place(deferral.waits_for) and old.rejections == deferral.rejections
    same = same and old is not None and old.claim == deferral.claim
    since_us = old.since_us if same and old is not None else deferral.since_us
    entry.deferrals += 0 if same else 1
    if since_us != deferral.since_us:
        deferral = replace(deferral, since_us=since_us)
    entry.job = entry.job.decided(entry.job.state, entry.job.attempts, deferral)
    if not same:
        ctx.show_job(entry.job)


def _place(candidate: Candidate | None) -> tuple[str, str] | None:
    return None if candidate is None else (candidate.site_id, candidate.pool_id)


def wake_due(ctx: Context) -> None:
    """Classes whose rest is over are ready again."""
    ctx.queue.wake_due(ctx.now_us)


def requeue_all(ctx: Context) -> None:
    """After a restore: every queued job waits again, in the order of acceptance, and all expiries are armed."""
    for entry in sorted(ctx.state.jobs.values(), key=lambda entry: entry.accept_seq):
        jobs.watch_expiry(ctx, entry.job)
        if entry.job.state is JobState.QUEUED:
            jobs.enqueue(ctx, entry)
