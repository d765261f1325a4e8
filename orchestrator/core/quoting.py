"""What a job would be offered now: asked before it is submitted, while it waits, or of one site ("why not there").

Decides nothing and changes nothing: the same estimate, the same scorer and the same rule of waiting as a placing round, read as of now.
What comes before its turn in the queue is approximate: those ahead that rest for the same place are taken to hold it up one after the
other; preemption and jobs that are still to come are left out, and ageing but for the oldest that rests there, where it has to load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from atoll.model.ids import JobId, SiteId
from atoll.model.job import PRIORITY_RANK, JobSpec, JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Reason, is_lasting
from atoll.model.quote import Eta, PlaceView, Quote, Verdict
from orchestrator.core import claims, etas, jobs, lending, promises
from orchestrator.core.context import Context
from orchestrator.core.lines import line_at, pace
from orchestrator.core.outputs import Refusal, RefusalCode
from orchestrator.core.patience import patience
from orchestrator.core.placement.advice import shortfall
from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.placement.classes import NO_AVOIDANCE, ClassKey
from orchestrator.core.placement.columns import REASONS
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import COLD, NO_DEADLINE, Out, State
from orchestrator.core.placement.victims import victims_in
from orchestrator.core.placing import lot_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A job as it is asked about: its class, and its place among those that wait."""

    key: ClassKey
    model: ModelSpec
    job_id: JobId  # "": one that is not there yet
    slack_us: int
    begin_us: int
    ahead: int  # jobs likely to go before it
    alike: int  # of its class, before it
    joins: bool  # it stands, or would, in a class that rests, and waits on
    waits: bool  # it is in the queue itself
    first: bool = False  # and the first of its class


def quote(ctx: Context, spec: JobSpec, now_us: int) -> Quote | Refusal:
    """What a submission would be offered. A Refusal if no such job can be accepted; a bound that is met just now is part of the quote."""
    refusal = jobs.unmeant(ctx.state, spec)
    if refusal is not None:
        return refusal
    met = jobs.met_bound(ctx, spec.tenant, now_us)
    due = (spec.deadline_ms * 1_000 or NO_DEADLINE, spec.start_timeout_ms * 1_000 or NO_DEADLINE)
    offered = _offer(ctx, _newcomer(ctx, ctx.class_of(spec), spec, due, JobId("")), now_us)
    if met is None:
        return offered
    return _refused(offered, met[1])


def outlook(ctx: Context, job_id: JobId, spec: JobSpec, now_us: int) -> Quote | Refusal:
    """What a job is offered as of now: where it waits, with its place in the queue; else as if it were submitted now."""
    asked = _of_job(ctx, job_id, spec, now_us)
    return asked if isinstance(asked, Refusal) else _offer(ctx, asked, now_us)


def promise(ctx: Context, came: Iterable[JobId]) -> None:
    """Note of some of the jobs that came just now, and wait, when they should execute: how waits come out is learned from them."""
    for job_id in came:
        entry = ctx.state.jobs.get(job_id)
        if entry is None or job_id not in ctx.queue or not promises.is_due(ctx, entry.job):
            continue
        asked = _of_job(ctx, job_id, entry.job.spec, ctx.now_us)
        if isinstance(asked, Refusal):
            continue
        board = _score(ctx, asked, ctx.now_us)
        row, verdict = _where(ctx, asked, board)
        if row is not None and verdict is Verdict.WAITS:
            executing_us = int(board.estimate.execution_us[row]) + int(board.estimate.output_us[row])
            turn_us = min(_turn_us(ctx, asked, board, row), etas.NEVER_US)
            promises.made(ctx, entry.job, max(turn_us + board.delay_us(row) - executing_us, 0))


def places(ctx: Context, job_id: JobId, spec: JobSpec, site_id: SiteId, now_us: int) -> tuple[PlaceView, ...] | Refusal:
    """What each pool of a site offers a job as of now, or why it does not."""
    site = ctx.state.sites.get(site_id)
    if site is None:
        return Refusal(code=RefusalCode.NOT_FOUND, field="site_id", message=f"no site {site_id!r}")
    asked = _of_job(ctx, job_id, spec, now_us)
    if isinstance(asked, Refusal):
        return asked
    board = _score(ctx, asked, now_us)
    return tuple(_place(board, column.index) for column in ctx.columns.of_site(site))


def eta_of(ctx: Context, job_id: JobId, now_us: int) -> Eta | None:
    """When a placed or running job should be done; None for one that waits, has ended, or whose attempt is being stopped."""
    entry = ctx.state.jobs.get(job_id)
    if entry is None or entry.job.state is JobState.QUEUED or not entry.job.attempts:
        return None
    last = entry.job.attempts[-1]
    site = ctx.state.sites.get(last.site_id)
    live = site.attempts.get(last.key) if site is not None else None
    return None if live is None or live.given_up else etas.of_attempt(ctx, live, now_us)


def held_until_us(ctx: Context, job_id: JobId) -> int:
    """Until when a job is held back after a failure; 0 if it is not."""
    entry = ctx.state.jobs.get(job_id)
    waits = entry is not None and entry.job.state is JobState.QUEUED
    return entry.not_before_us if entry is not None and waits else 0


def _newcomer(ctx: Context, key: ClassKey, spec: JobSpec, due: tuple[int, int], job_id: JobId) -> _Asked:
    known = ctx.queue.classes.get(key)
    alike = len(known.members) if known is not None else 0
    return _Asked(
        key=key,
        model=ctx.state.models[spec.model_id],
        job_id=job_id,
        slack_us=due[0],
        begin_us=due[1],
        ahead=ctx.queue.ahead_of_next(spec.tenant, PRIORITY_RANK[spec.priority]),
        alike=alike,
        joins=known is not None and bool(known.stand.lines) and known.takes_on(spec.tenant),
        waits=False,
    )


def _of_job(ctx: Context, job_id: JobId, spec: JobSpec, now_us: int) -> _Asked | Refusal:
    refusal = jobs.unmeant(ctx.state, spec)
    if refusal is not None:
        return refusal
    entry = ctx.state.jobs.get(job_id)
    due = (spec.deadline_ms * 1_000 or NO_DEADLINE, spec.start_timeout_ms * 1_000 or NO_DEADLINE)
    if entry is not None:
        due = jobs.slack_us(entry.job, now_us), jobs.begin_us(entry.job, now_us)
    key = ctx.queue.class_key(job_id)
    if key is None:
        avoided = jobs.avoidance_of(entry.job, now_us) if entry is not None and entry.job.state is JobState.QUEUED else NO_AVOIDANCE
        return _newcomer(ctx, ctx.class_of(spec, avoided), spec, due, job_id)
    known = ctx.queue.classes[key]
    return _Asked(
        key=key,
        model=ctx.state.models[spec.model_id],
        job_id=job_id,
        slack_us=due[0],
        begin_us=due[1],
        ahead=ctx.queue.ahead_of(job_id),
        alike=len(known.members) - 1,
        joins=known.resting and bool(known.stand.lines) and min(len(known.members) - 1, ctx.queue.ahead_of(job_id)) < known.patience,
        waits=True,
        first=known.head[1] == job_id,
    )


def _score(ctx: Context, asked: _Asked, now_us: int, table: int = 0) -> Board:
    estimate = ctx.estimator.of(asked.key, asked.model)
    board = ctx.scorer.score(
        asked.key, estimate, now_us, slack_us=asked.slack_us, begin_us=asked.begin_us, lot=lot_of(ctx, asked.job_id), table=table
    )
    claims.correct(ctx, board, asked.key)
    return board


def _offer(ctx: Context, asked: _Asked, now_us: int) -> Quote:
    board = _score(ctx, asked, now_us)
    row, verdict = _where(ctx, asked, board)
    if ctx.state.claims:
        otherwise = row if verdict is Verdict.NOW else None
        for lender in lending.lenders(ctx, asked.key, board, otherwise):
            with lending.lent(ctx, lender) as column:
                there = _score(ctx, asked, now_us, lending.LENT_TABLE)
                found, told = _where(ctx, asked, there)
                if found is not None and told is Verdict.NOW and lending.takes(ctx, asked.key, there, found, lender, column):
                    return _quote(ctx, asked, there, found, told)
    return _quote(ctx, asked, board, row, verdict)


def _quote(ctx: Context, asked: _Asked, board: Board, row: int | None, verdict: Verdict) -> Quote:
    now_us, short = board.now_us, shortfall(board)
    if row is None:
        rejections = board.rejections()
        return Quote(
            at_us=now_us,
            verdict=Verdict.NEVER if is_lasting(rejections) else verdict,
            policy=ctx.policy.name,
            rule=ctx.policy.rule,
            term_names=TERM_NAMES,
            chosen=None,
            others=(),
            rejections=rejections,
            weights_bytes=asked.model.weights_bytes,
            too_small=board.estimate.too_small,
            price_usd_micros=short.price_usd_micros,
            short_us=short.late_us,
            ahead=asked.ahead,
            queue_length=len(ctx.queue),
        )
    cold, delay_us = board.is_cold(row), board.delay_us(row)
    turn_us = min(_turn_us(ctx, asked, board, row), etas.NEVER_US) if verdict is Verdict.WAITS else 0
    executing_us = int(board.estimate.execution_us[row]) + int(board.estimate.output_us[row])
    taken = etas.spread(ctx, turn_us + delay_us, executing_us, cold=cold, modality=asked.model.modality)
    if verdict is Verdict.WAITS:
        kind = asked.key.priority, asked.key.gang_size > 1
        taken = etas.after_wait(ctx, kind, turn_us + delay_us - executing_us, executing_us, cold=cold, modality=asked.model.modality)
    members = slots_of(board, row) if verdict is Verdict.NOW else ()
    chosen, others = board.told(row, ctx.policy.candidates_kept)
    return Quote(
        at_us=now_us,
        verdict=verdict,
        policy=ctx.policy.name,
        rule=ctx.policy.rule,
        term_names=TERM_NAMES,
        chosen=chosen,
        others=others,
        rejections=board.rejections(),
        too_small=board.estimate.too_small,
        price_usd_micros=short.price_usd_micros,
        short_us=short.late_us,
        evicted=tuple(victim.told() for member in members for victim in victims_in(board, row, member)),
        weights_bytes=asked.model.weights_bytes,
        predicted_us=delay_us,
        ahead=asked.ahead,
        queue_length=len(ctx.queue),
        turn_us=turn_us,
        eta=etas.after_us(now_us, taken),
        gpu_usd_micros=board.gpu_usd_micros(row),
        egress_usd_micros=int(board.estimate.egress_usd_micros[row]),
    )


def _where(ctx: Context, asked: _Asked, board: Board) -> tuple[int | None, Verdict]:
    """The row that a placing round would mean for this job, and what it would do with it."""
    bound, patient = board.bound, board.patient
    if bound is None:
        return patient, Verdict.IMPOSSIBLE if patient is None else Verdict.WAITS
    if patient is None:
        return bound, Verdict.NOW
    if asked.joins:
        return patient, Verdict.WAITS
    # Of those for whom waiting does not pay one goes elsewhere; the job of a tenant which has had less stands before those of others.
    if min(asked.alike, asked.ahead) >= patience(ctx.queue, board, bound, patient, asked.key):
        return bound, Verdict.NOW
    return patient, Verdict.WAITS


def _turn_us(ctx: Context, asked: _Asked, board: Board, row: int) -> int:
    """What those before it add that rest for the same place: in the queue as a whole more may be before it, for other places."""
    line = line_at(ctx.queue, board, row, asked.key)
    if asked.first and claims.is_at(ctx, asked.key, board, row):
        return 0  # the block is kept for it, whoever else waits
    known = ctx.queue.classes.get(asked.key)
    alike = asked.alike if known is not None and known.resting else 0
    jobs = line.jobs + alike
    work_us = line.work_us + (pace(board, row, asked.key, board.bound, before=line.jobs).after_us(alike) if alike else 0)
    return line.passing_us + (work_us * min(asked.ahead, jobs) // jobs if jobs else 0)


def _place(board: Board, pool: int) -> PlaceView:
    rows = [row for row in range(pool, len(board.out), board.pools) if board.out[row, Out.STATE] != State.IMPOSSIBLE]
    column = board.column(pool)
    reason: Reason | None = None
    if board.estimate.codes[pool]:
        reason = REASONS[int(board.estimate.codes[pool])]
    elif not any(board.out[row, Out.STATE] == State.BINDABLE for row in rows):
        reason = REASONS[int(board.columns.reason[pool])]
        cold = board.out[COLD * board.pools + pool]
        if cold[Out.STATE] == State.IMPOSSIBLE and cold[Out.SHORT] > 0:
            reason = Reason.EVICTION_IN_VAIN
        elif not rows and reason is Reason.NO_SLOT and column.free_slots and board.estimate.variant.gang_size == 1:
            # A slot is free, but what is in its memory may not go.
            reason = Reason.MEMORY_BUSY
        elif reason is Reason.NO_SLOT and board.estimate.variant.gang_size > 1:
            reason = Reason.NO_BLOCK
    return PlaceView(
        pool_id=column.pool.pool_id,
        gpu_type=column.pool.gpu.gpu_type,
        candidates=board.candidates(rows),
        reason=reason,
    )


def _refused(offered: Quote, refusal: Refusal) -> Quote:
    return replace(offered, refusal=refusal.message, retry_after_ms=refusal.retry_after_ms)
