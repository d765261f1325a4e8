"""Room for those who wait: work of a lower priority is stopped at the end of a step, and the slot goes to the job it was stopped for.

Decides which slots would help; what pays is `preemption`'s to say. A job that is stopped goes back to the queue, keeps its place in the
order of acceptance, and spends no retry. Its slot takes nobody else's work until its site says that it is empty; then the class for which
it was emptied goes before all others of its priority. Must not know how places are chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import AttemptKey, JobId
from atoll.model.job import PRIORITY_RANK, JobSpec
from atoll.model.words import duration
from orchestrator.core import attempts, emptying
from orchestrator.core.context import Context
from orchestrator.core.fairness import WEIGHT_MILLI, normalised_us
from orchestrator.core.openings import Openings, arrival_in
from orchestrator.core.outputs import AttemptPreempted
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.preemption import Rules, Waiter, Work, best_of, worth_of, worth_of_all
from orchestrator.core.queue import Favour, JobClass
from orchestrator.core.reloading import Reloads
from orchestrator.core.state import LiveAttempt, ReplicaKey, Slot

# Attempts looked at in a pool: among so many of a lower priority there is one that is about as good as the best.
_LOOKED_AT_MAX: Final = 64
# Jobs of one class for which room is made in one look: a burst is served in a few looks, and one look stays short.
_ROOM_MAX: Final = 8
# A slot is given to another model for want of a fair share when what its tenant lacks is this many times what loading takes: then loads
# take a fifth of such slots' time at most.
_LOADS_PAID: Final = 4
# Attempts stopped for a job since it was last placed: with as many as two slots hold something else than work keeps it from beginning.
_STOPPED_MAX: Final = 4
# The head of a slot, unless it loads, because a load goes on when its attempt is stopped, or is about to end; and who waits behind it.
_HEAD: Final = frozenset({AttemptState.LEASED, AttemptState.FETCHING, AttemptState.RUNNING})
_BEHIND: Final = frozenset({AttemptState.LEASED, AttemptState.FETCHING, AttemptState.LOADING, AttemptState.COMPILING})


def make_room(ctx: Context, waiting: JobClass, board: Board, row: int) -> None:
    """The first jobs of a class are about to wait for a slot of this row's pool: empty slots for them if it pays. Of a cold row any slot of
    the pool would do, each with the way of the weights to its own node; else one that holds their model. What comes to the best slot
    later than they are looked at again is waited for: until then the work there may as well go on."""
    key, column = waiting.key, board.column(row)
    if board.wait_us(row) < ctx.policy.preempt_gain_min_ms * 1_000 or key.gang_size != 1:
        return
    offers = _offers(ctx, waiting, board, row)
    for position in range(min(len(waiting.members), _ROOM_MAX)):
        job_id = waiting.nth(position)
        if _is_emptied_for(ctx, job_id) or len(ctx.state.jobs[job_id].stopped) >= _STOPPED_MAX:
            continue
        place = best_of([offer.worth if _is_for(ctx, column, offer, job_id) else None for offer in offers])
        if place is None:
            continue
        offer = offers.pop(place)
        if not _is_early(ctx, offer.waiter):
            _empty(ctx, column, offer, job_id, key)


def _empty(ctx: Context, column: Column, offer: _Offer, job_id: JobId, key: ClassKey) -> None:
    """Stop the work of a slot for a job; no other is kept for it from now on."""
    for live in list(ctx.bound.giving_way.get(job_id, {}).values()):
        ctx.bound.stay(live)
        where = attempts.find_slots(ctx, ctx.state.sites[live.attempt.site_id], live)
        if where is not None:
            ctx.columns.slot_changed(where[0], where[1][0], was_free=False)
    slot, stop_us = offer.slot, max(work.stop_us for work in offer.works)
    for attempt_key, work in zip(list(slot.attempts), offer.works, strict=True):
        live = column.site.attempts[attempt_key]
        ctx.bound.give_way(live, job_id)
        _stop(ctx, column, live, work, job_id, key)
        _ends_at(ctx, column, live, ctx.now_us + stop_us)
        live.ends_us = ctx.now_us + stop_us
    slot.busy_until_us = ctx.now_us + offer.waiter.begins_us(stop_us) + offer.waiter.hold_us
    ctx.columns.slot_changed(column, slot, was_free=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """All the work of a block, every piece of which may be stopped for a gang; what that is worth, and how long it takes. `is_early`: the
    gang's weights come later than it is looked at again."""

    lives: tuple[tuple[LiveAttempt, Work], ...]
    worth: int
    stop_us: int
    is_early: bool


def clearing(ctx: Context, column: Column, slots: Sequence[Slot], key: ClassKey, waiter: Waiter, need_bytes: int) -> Clearing | None:
    """What emptying these slots would take for a gang that needs so much of each one's memory; None if some of the work must not be
    stopped, or it does not pay."""
    seen: set[AttemptKey] = set()
    taken: list[Slot] = []
    lines: list[list[Work]] = []
    for slot in slots:
        if slot.attempts and slot.attempts[0] not in seen:
            works = _works(ctx, column, slot, slot.attempts)
            if works is None:
                return None
            lines.append(works)
            taken.append(slot)
            seen.update(slot.attempts)
    if worth_of_all(waiter, lines, _rules(ctx)) is None:
        return None
    reloads = Reloads(ctx, column, ReplicaKey(key.model_id, key.gang_size), need_bytes)
    lines = [_with_loads(column, slot, works, reloads) for slot, works in zip(taken, lines, strict=True)]
    worth = worth_of_all(waiter, lines, _rules(ctx))
    if worth is None:
        return None
    attempts_of = ((slot.attempts, works) for slot, works in zip(taken, lines, strict=True))
    lives = {key: (column.site.attempts[key], work) for keys, works in attempts_of for key, work in zip(keys, works, strict=True)}
    stop_us = max(work.stop_us for line in lines for work in line)
    return Clearing(lives=tuple(lives.values()), worth=worth, stop_us=stop_us, is_early=_is_early(ctx, waiter))


def clear(ctx: Context, column: Column, found: Clearing, job_id: JobId, key: ClassKey) -> None:
    """Stop all of it. The slots are claimed, so nobody else comes between."""
    for live, work in found.lives:
        _stop(ctx, column, live, work, job_id, key)
        _ends_at(ctx, column, live, ctx.now_us + found.stop_us)


def _ends_at(ctx: Context, column: Column, live: LiveAttempt, at_us: int) -> None:
    """The slots of an attempt that is stopped should be free then."""
    where = attempts.find_slots(ctx, column.site, live)
    for slot in where[1] if where is not None else ():
        slot.busy_until_us = at_us
        ctx.columns.slot_changed(column, slot, was_free=False)


def keep_slot(ctx: Context, waiting: JobClass, column: Column, slot: Slot | None, *, hold_us: int, load_us: int) -> None:
    """It is the turn of a class of those who rest for this pool, and this slot, for which it waits, always has the next job of another
    model bound behind the last: when those that are bound have ended the slot is that of its first job, which holds it for `hold_us`.
    Without it another model's jobs, and those that still come, would all go before it. Who has to load, for `load_us`, waits until its
    tenant would have its turn still if it were charged for `_LOADS_PAID` loads, or is aged: else two models take turns in loading."""
    job_id = waiting.head[1]
    if slot is None or waiting.key.gang_size > 1 or job_id in ctx.bound.giving_way:
        return
    lives = [column.site.attempts[key] for key in slot.attempts]
    if any(live.gives_way_to is not None for live in lives):
        return
    another = lives[0].spec.gang_size == 1 and lives[0].model_id != waiting.key.model_id
    charge_us = normalised_us(hold_us + _LOADS_PAID * load_us, column.pool.gpu, 1) if load_us else 0
    pending_us = charge_us * WEIGHT_MILLI // ctx.queue.shares.weight_milli(ctx.state.jobs[job_id].job.spec.tenant)
    if waiting.favour is not Favour.AGED and not (another and ctx.queue.has_turn(waiting, column.index, pending_us)):
        return
    for live in lives:
        ctx.bound.give_way(live, job_id)
    ctx.columns.slot_changed(column, slot, was_free=False)


def bound(ctx: Context, column: Column, slot: Slot, live: LiveAttempt, *, wait_us: int, need_bytes: int) -> None:
    """An attempt was bound, perhaps behind others in its slot: those of a lower priority are stopped if that pays."""
    ctx.bound.add(column.site, live)
    ahead = slot.attempts[:-1]
    if ahead:
        ctx.bound.stands_behind(slot, live)
    if not ahead or wait_us < ctx.policy.preempt_gain_min_ms * 1_000 or live.spec.gang_size != 1:
        return
    rank = PRIORITY_RANK[live.spec.priority]
    if any(PRIORITY_RANK[column.site.attempts[key].spec.priority] <= rank for key in ahead):
        return
    works = _works(ctx, column, slot, ahead)
    weight_milli, arrives = ctx.policy.weight_milli(live.spec.priority), arrival_in(ctx, column, slot, live.replica)
    waiter = Waiter(rank=rank, weight_milli=weight_milli, wait_us=wait_us, hold_us=live.exec_us, arrives=arrives)
    if works is None or worth_of(waiter, works, _rules(ctx)) is None:
        return
    works = _with_loads(column, slot, works, Reloads(ctx, column, live.replica, need_bytes))
    if worth_of(waiter, works, _rules(ctx)) is None:
        return
    for attempt_key, work in zip(ahead, works, strict=True):
        _stop(ctx, column, column.site.attempts[attempt_key], work, live.key.job_id, live.spec)
    slot.busy_until_us = ctx.now_us + waiter.begins_us(max(work.stop_us for work in works)) + live.exec_us
    ctx.columns.slot_changed(column, slot, was_free=False)


def _rules(ctx: Context) -> Rules:
    policy = ctx.policy
    return Rules(
        times_max=policy.preemptions_max,
        margin_milli=policy.preempt_margin_milli,
        gain_min_us=policy.preempt_gain_min_ms * 1_000,
        tail_milli=policy.preempt_tail_milli,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A slot that it pays to empty, the work that would be stopped, what that is worth, and how a job of the class stands to it.
    `kept_for`: the job whose it is anyway when that work has ended."""

    slot: Slot
    works: list[Work]
    worth: int
    waiter: Waiter
    kept_for: JobId | None


def _is_emptied_for(ctx: Context, job_id: JobId) -> bool:
    """Whether work is being stopped for a job."""
    return any(live.on_stop is FailureKind.PREEMPTED for live in ctx.bound.giving_way.get(job_id, {}).values())


def _is_for(ctx: Context, column: Column, offer: _Offer, job_id: JobId) -> bool:
    """Whether a slot may be emptied for this very job."""
    return offer.kept_for in (None, job_id) and not emptying.was_emptied(ctx, job_id, column, offer.slot)


def _is_early(ctx: Context, waiter: Waiter) -> bool:
    """Whether the weights are on their way for longer than until the next look."""
    return waiter.arrives.there_us > ctx.policy.recheck_max_ms * 1_000


def _offers(ctx: Context, waiting: JobClass, board: Board, row: int) -> list[_Offer]:
    """Slots of the pool that would help a class and hold only work of a lower priority which may be stopped, where that pays."""
    found: dict[tuple[int, int], _Offer | None] = {}
    key, column, replica = waiting.key, board.column(row), ReplicaKey(waiting.key.model_id, waiting.key.gang_size)
    openings, reloads = Openings(ctx, key, board, row), Reloads(ctx, column, replica, board.estimate.memory_bytes)
    jobs = {waiting.nth(position) for position in range(min(len(waiting.members), _ROOM_MAX))}
    below = ctx.bound.below(column.site.site_id, column.pool.pool_id, key.rank)
    for live in islice(below, _LOOKED_AT_MAX):
        where = attempts.find_slots(ctx, column.site, live)
        if where is None:
            continue
        slot = where[1][0]
        if any(member.claimed_until_us for member in where[1]):
            continue  # what is emptied there is a gang's
        if (slot.node_index, slot.index) in found or not (openings.is_cold or replica in slot.replicas):
            continue
        found[(slot.node_index, slot.index)] = _offer(ctx, column, slot, openings, reloads, jobs)
    return [offer for offer in found.values() if offer is not None]


def _offer(ctx: Context, column: Column, slot: Slot, openings: Openings, reloads: Reloads, jobs: Collection[JobId]) -> _Offer | None:
    works = _works(ctx, column, slot, slot.attempts, jobs)
    if works is None:
        return None
    waiter = openings.waiter(slot)
    if worth_of(waiter, works, _rules(ctx)) is None:
        return None
    works = _with_loads(column, slot, works, reloads)
    worth, kept_for = worth_of(waiter, works, _rules(ctx)), column.site.attempts[slot.attempts[0]].gives_way_to
    return None if worth is None else _Offer(slot=slot, works=works, worth=worth, waiter=waiter, kept_for=kept_for)


def _works(ctx: Context, column: Column, slot: Slot, keys: list[AttemptKey], jobs: Collection[JobId] = ()) -> list[Work] | None:
    """The attempts of a slot, the executing one first; None if one of them cannot be stopped, or the slot is kept for another job."""
    lives = [column.site.attempts[key] for key in keys]
    if any(live.given_up or live.adopted or live.gives_way_to not in (None, *jobs) for live in lives):
        return None
    if lives[0].attempt.state not in _HEAD or any(live.attempt.state not in _BEHIND for live in lives[1:]):
        return None
    behind_us = sum(column.site.attempts[key].exec_us for key in slot.attempts[1:])
    first_us = max(slot.busy_until_us - behind_us - ctx.now_us, 0)
    return [_work(ctx, live, first_us if place == 0 else live.exec_us) for place, live in enumerate(lives)]


def _with_loads(column: Column, slot: Slot, works: list[Work], reloads: Reloads) -> list[Work]:
    """The first attempts of a slot, each with the load that follows if it is stopped. Looked at only where it would pay without one."""
    again = reloads.of_slot(slot, [column.site.attempts[key] for key in slot.attempts[: len(works)]])
    return [replace(work, reload_us=reload_us) for work, reload_us in zip(works, again, strict=True)]


def _work(ctx: Context, live: LiveAttempt, remaining_us: int) -> Work:
    steps = live.spec.shape.steps
    runs = live.attempt.state is AttemptState.RUNNING
    # Steps are told now and then; the time since it began says as much.
    executed_us = max(live.exec_us * live.attempt.steps_done // steps, ctx.now_us - live.attempt.running_us)
    entry = ctx.state.jobs.get(live.key.job_id)
    ended = entry.job.attempts if entry is not None else ()
    return Work(
        rank=PRIORITY_RANK[live.spec.priority],
        weight_milli=ctx.policy.weight_milli(live.spec.priority),
        exec_us=live.exec_us,
        remaining_us=remaining_us,
        lost_us=min(executed_us, live.exec_us) if runs else 0,
        stop_us=live.exec_us // steps if runs else 0,
        gpus=live.spec.gang_size,
        preempted=sum(1 for one in ended if one.failure is not None and one.failure.kind is FailureKind.PREEMPTED),
    )


def _stop(ctx: Context, column: Column, live: LiveAttempt, work: Work, job_id: JobId, waiter: ClassKey | JobSpec) -> None:
    attempts.stop(ctx, column.site, live, FailureKind.PREEMPTED, f"made room for {waiter.priority} job {job_id}{_at_the_cost(work)}")
    emptying.stopped(ctx, live, job_id, work.lost_us)
    ctx.decisions.append(AttemptPreempted(key=live.key, for_job=job_id, lost_us=work.lost_us, reload_us=work.reload_us))


def _at_the_cost(work: Work) -> str:
    """What it loses by that, as it was weighed."""
    again = [f"{duration(work.lost_us)} of work to do again"] if work.lost_us else []
    again += [f"{duration(work.reload_us)} to load its model again"] if work.reload_us else []
    return f", at the cost of {' and '.join(again)}" if again else ""
