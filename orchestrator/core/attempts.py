"""Attempts that hold slots: how they end, how they are stopped and given up, and when their slot is free again.

Decides which results are accepted: those of a live ordinal. Must not know how places are chosen.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.model.attempt import ATTEMPT_TABLE, ENDED, PHASES, AttemptState, Failure, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import EventSeq, ModelId
from atoll.model.replica import ReplicaState
from atoll.model.report import AttemptEvent, AttemptProgress
from orchestrator.core import bettered, breakers, drains, flights, jobs, loading, movements, poison, residuals, wishes
from orchestrator.core.context import Context, put_attempt
from orchestrator.core.drift import has_moved
from orchestrator.core.ends import EndAttempt
from orchestrator.core.events import AttemptsEnded
from orchestrator.core.outputs import AttemptSettled, LateResultRefused
from orchestrator.core.placement.column import Column
from orchestrator.core.state import JobEntry, LiveAttempt, Site, Slot

# Failures whose execution a tenant pays: its job did that, as far as anybody knows, and would elsewhere. All others are the place's.
_OWN_FAULTS = frozenset({FailureKind.BAD_INPUT, FailureKind.OUT_OF_MEMORY, FailureKind.EXECUTION_FAILED, FailureKind.TIMED_OUT})
# A site that says that an execution took longer than this many times the prediction is not believed: one report must not ruin a
# tenant's share.
_CHARGED_TIMES_MAX = 16


def find_slots(ctx: Context, site: Site, live: LiveAttempt) -> tuple[Column, list[Slot]] | None:
    """The slots that an attempt holds at its site, if the site (still) has them."""
    column = ctx.columns.by_pool.get((site.site_id, live.attempt.slot.pool_id))
    if column is None:
        return None
    members = column.pool.members(live.attempt.slot, live.spec.gang_size)
    return (column, members) if members else None


def ended(ctx: Context, event: AttemptsEnded) -> None:
    """An agent delivered ends of attempts: each counts once, however often it is delivered; all are acknowledged."""
    site = ctx.state.sites.get(event.site_id)
    if site is None or site.session != event.session:
        return
    # Of all, before any is judged: those that died together.
    poison.struck(ctx, site, (one.key for one in event.events if one.seq > site.acked_event_seq and _is_struck(site, one)))
    for one in event.events:
        if one.seq <= site.acked_event_seq:
            continue
        _settle_event(ctx, site, one)
        site.acked_event_seq = one.seq
    ctx.touch_assignment(site)
    drains.advance(ctx, site)


def _is_struck(site: Site, event: AttemptEvent) -> bool:
    live = site.attempts.get(event.key)
    lost = event.failure is not None and event.failure.kind is FailureKind.RUNTIME_LOST
    return live is not None and lost and not live.given_up and live.on_stop is None


def _settle_event(ctx: Context, site: Site, event: AttemptEvent) -> None:
    live = site.attempts.get(event.key)
    if live is None or event.state not in ATTEMPT_TABLE[AttemptState.STOPPING]:
        _tell_end(ctx, site, event)
        if event.state is AttemptState.SUCCEEDED:
            ctx.decisions.append(LateResultRefused(key=event.key, site_id=site.site_id))
        return
    if event.state is AttemptState.SUCCEEDED and (event.manifest is None or event.manifest.key != event.key):
        failure = Failure(kind=FailureKind.INTERNAL, message="success without a manifest of its own")
        event = replace(event, state=AttemptState.FAILED, manifest=None, failure=failure)
    entry = ctx.state.jobs.get(event.key.job_id)
    _settle_charge(ctx, live, _paid_us(live, event, wanted=entry is not None and not live.given_up))
    breakers.ended(ctx, site, live, event)
    release(ctx, site, live, ran=event.state is AttemptState.SUCCEEDED)
    residuals.settled(ctx, site, live, event.state, event.times)
    if live.given_up or entry is None:
        _tell_end(ctx, site, event)
        if event.state is AttemptState.SUCCEEDED:
            ctx.decisions.append(LateResultRefused(key=event.key, site_id=site.site_id))
        return
    failure_now = _failure_of(live, event)
    attempt = replace(
        live.attempt,
        state=event.state,
        ended_us=ctx.now_us,
        failure=failure_now,
        times=event.times,
        factors_milli=live.factors_milli,
    )
    put_attempt(entry, attempt)
    ctx.decisions.append(AttemptSettled(attempt=attempt, model_id=live.model_id))
    if event.state is AttemptState.SUCCEEDED and event.manifest is not None:
        jobs.attempt_succeeded(ctx, entry, event.manifest)
    else:
        jobs.attempt_failed(ctx, entry, attempt, failure_now or Failure(kind=FailureKind.INTERNAL, message="ended without a reason"))


def _tell_end(ctx: Context, site: Site, event: AttemptEvent) -> None:
    """How an attempt ended whose job ended before: what is kept of the job says so. What the site says of it is known here no more, perhaps
    since before a restart."""
    if event.key.job_id not in ctx.state.jobs and event.state in ENDED:
        over = EndAttempt(
            key=event.key, site_id=site.site_id, state=event.state, ended_us=ctx.now_us, failure=event.failure, times=event.times
        )
        ctx.end_attempt(over)


def never_told(ctx: Context, site: Site, live: LiveAttempt, message: str) -> None:
    """The site of an attempt that was given up will not say how it ended: lost, if its job ended first."""
    if live.key.job_id not in ctx.state.jobs:
        failure = Failure(kind=FailureKind.LOST, message=message)
        over = EndAttempt(key=live.key, site_id=site.site_id, state=AttemptState.LOST, ended_us=ctx.now_us, failure=failure)
        ctx.end_attempt(over)


def _paid_us(live: LiveAttempt, event: AttemptEvent, *, wanted: bool) -> int:
    """What an attempt costs its tenant: what it executed if that was used, was the job's own fault, or was cancelled; else nothing."""
    executed_us = min(max(event.times.run_us, 0), _CHARGED_TIMES_MAX * live.exec_us)
    match event.state:
        case AttemptState.SUCCEEDED:
            return executed_us or live.exec_us
        case AttemptState.FAILED:
            return executed_us if event.failure is not None and event.failure.kind in _OWN_FAULTS else 0
        case _:
            return 0 if wanted else executed_us


def _settle_charge(ctx: Context, live: LiveAttempt, executed_us: int) -> None:
    """Charge its tenant what it really executed. A second settlement changes nothing."""
    if live.charge_us:
        ctx.queue.shares.settle(live.spec.tenant, live.charge_us, live.charge_us * executed_us // max(live.exec_us, 1))
        live.charge_us = 0


def _failure_of(live: LiveAttempt, event: AttemptEvent) -> Failure | None:
    match event.state:
        case AttemptState.SUCCEEDED:
            return None
        case AttemptState.STOPPED:
            # Whoever stops unasked was not renewed: the site had not heard of us for stop_after, and we were as good as lost to each other.
            return Failure(kind=live.on_stop or FailureKind.LOST, message=live.stop_reason or "the site heard nobody who wanted it")
        case AttemptState.REFUSED:
            return Failure(kind=FailureKind.REFUSED, message=event.failure.message if event.failure else "refused")
        case _:
            return event.failure or Failure(kind=FailureKind.INTERNAL, message="failed without a reason")


def release(ctx: Context, site: Site, live: LiveAttempt, *, ran: bool = False) -> None:
    """The attempt holds nothing any more: its slot is free for the next, the assignment forgets it.

    `ran`: it executed to its end, so its model is in memory even if no report has said so yet.
    """
    _settle_charge(ctx, live, 0)
    ctx.bound.remove(site, live)
    del site.attempts[live.key]
    breakers.left(ctx, site, live)
    site.changed.pop(live.key, None)
    site.removed[live.key] = None
    site.dropped = True
    ctx.touch_assignment(site)
    found = find_slots(ctx, site, live)
    if found is None:
        return
    column, members = found
    clear_fetch(ctx, column, members[0], live)
    emptied = live.on_stop is FailureKind.PREEMPTED and live.gives_way_to is not None and live.gives_way_to in ctx.queue
    for slot in members:
        _vacate(ctx, column, slot, live, ran=ran)
        ctx.queue.wake_for_slot(column.index, offered=not slot.claimed_until_us and not emptied)


def _vacate(ctx: Context, column: Column, slot: Slot, live: LiveAttempt, *, ran: bool) -> None:
    was_free, took_loads = slot.ready and slot.idle, bettered.takes_loads(column)
    if live.key in slot.attempts:
        slot.busy_until_us = _busy_without(ctx, column, slot, live, ran=ran)
        slot.attempts.remove(live.key)
        if slot.attempts and (first := column.site.attempts.get(slot.attempts[0])) is not None:
            ctx.bound.not_behind(first)
    slot.last_used_us, slot.fresh = ctx.now_us, slot.fresh and not ran
    replica = slot.replicas.get(live.replica)
    if replica is not None:
        replica.last_used_us = ctx.now_us
        if ran:
            came = replica.state not in (ReplicaState.WARM, ReplicaState.BUSY)
            replica.state = ReplicaState.WARM
            if slot.loading is not None and slot.loading.key == live.replica:
                slot.loading = None
            if came:
                movements.came_with(ctx, column, slot, replica, live.key.job_id)
        elif not slot.attempts and replica.state is ReplicaState.ABSENT:
            del slot.replicas[live.replica]
    ctx.columns.slot_changed(column, slot, was_free)
    bettered.slot_free(ctx, column, slot, took_loads=took_loads)
    if live.gives_way_to is not None and not slot.attempts:
        ctx.queue.favour(live.gives_way_to, column.index, stopped=live.on_stop is FailureKind.PREEMPTED)


def _busy_without(ctx: Context, column: Column, slot: Slot, live: LiveAttempt, *, ran: bool) -> int:
    """Until when the slot is taken by those who stay when this attempt of its leaves: what they have done by now is done."""
    at_head = slot.attempts[0] == live.key
    others = [column.site.attempts[key] for key in slot.attempts if key != live.key]
    staying = [other for other in others if other.on_stop is not FailureKind.PREEMPTED]
    if live.on_stop is FailureKind.PREEMPTED and not (at_head and staying):
        return slot.busy_until_us  # it was left out when it was stopped
    behind_us = sum(other.exec_us for other in (staying if at_head else staying[1:]))
    if not at_head:
        return max(slot.busy_until_us - live.exec_us, ctx.now_us + behind_us)
    replica = slot.replicas.get(live.replica)
    resident = ran or live.attempt.running_us > 0 or (replica is not None and replica.state in (ReplicaState.WARM, ReplicaState.BUSY))
    # What is fetched and loaded for it goes on, for the next.
    if slot.loading is not None and not ran:
        load_us = loading.left_us(ctx, slot)
    else:
        load_us = 0 if resident or not staying else max(slot.busy_until_us - ctx.now_us - behind_us - live.exec_us, 0)
    return ctx.now_us + load_us + behind_us


def clear_fetch(ctx: Context, column: Column, slot: Slot, live: LiveAttempt) -> None:
    """The node no longer fetches for this attempt, unless another attempt of its model waits on the node."""
    node = column.pool.nodes[slot.node_index]
    if live.model_id not in node.fetching:
        return
    attempts = column.site.attempts
    if any(attempts[key].model_id == live.model_id for slot in node.slots for key in slot.attempts if key in attempts):
        return
    if any(wanted.desired.node_id == node.node_id for wanted in wishes.of_model(column.site, live.model_id)):
        return  # it goes on for a copy that is wanted there; the site's reports say when it is over
    forget_fetch(ctx, column, slot.node_index, live.model_id)


def forget_fetch(ctx: Context, column: Column, node_index: int, model_id: ModelId) -> None:
    """A fetch to this node is over."""
    node = column.pool.nodes[node_index]
    del node.fetching[model_id]
    del node.flights[model_id]
    ctx.columns.peers.reads(node.sources.pop(model_id, ()), -1)
    ctx.columns.node_changed(column, node_index, "fetching", model_id, present=False)
    copied = model_id in node.copying
    if copied:
        node.copying.discard(model_id)
        column.site.copies -= 1
    else:
        column.site.fetches -= 1
    left = column.site.copies if copied else column.site.fetches
    flights.shared(ctx, column.site, copying=copied, before=left + 1, after=left)
    ctx.columns.flows_changed(column.site)


def stop(ctx: Context, site: Site, live: LiveAttempt, kind: FailureKind, reason: str) -> None:
    """Mark an attempt to be stopped; it holds its slot until the site says so.

    Why is durable before the site is told: whoever leads when the attempt ends knows that it was stopped, and for what.
    """
    if live.attempt.state is AttemptState.STOPPING:
        return
    _mark_stopping(ctx, site, live, kind, reason)
    entry = ctx.state.jobs.get(live.key.job_id)
    if entry is not None and not live.given_up:
        live.attempt = replace(live.attempt, failure=Failure(kind=kind, message=reason))
        put_attempt(entry, live.attempt)
        ctx.save_job(entry)


def _mark_stopping(ctx: Context, site: Site, live: LiveAttempt, kind: FailureKind, reason: str) -> None:
    live.attempt = replace(live.attempt, state=AttemptState.STOPPING)
    live.on_stop, live.stop_reason = kind, reason
    ctx.bound.not_behind(live)
    site.changed[live.key] = None
    ctx.touch_assignment(site)


def stop_live(ctx: Context, entry: JobEntry, kind: FailureKind, reason: str) -> None:
    """The job needs its live attempt no more."""
    if not entry.job.attempts:
        return
    last = entry.job.attempts[-1]
    site = ctx.state.sites.get(last.site_id)
    live = site.attempts.get(last.key) if site is not None else None
    if site is None or live is None or live.given_up:
        return
    live.given_up = True
    if live.attempt.state is not AttemptState.STOPPING:
        _mark_stopping(ctx, site, live, kind, reason)
        put_attempt(entry, live.attempt)


def give_up(ctx: Context, site: Site, live: LiveAttempt, message: str) -> None:
    """The site was silent too long: the job goes elsewhere. The slot stays taken until the site is heard or gone."""
    live.given_up = True
    _settle_charge(ctx, live, 0)
    residuals.lost(ctx, site, live)
    entry = ctx.state.jobs.get(live.key.job_id)
    failure = Failure(kind=FailureKind.LOST, message=message)
    attempt = replace(live.attempt, state=AttemptState.LOST, ended_us=ctx.now_us, failure=failure, factors_milli=live.factors_milli)
    _mark_stopping(ctx, site, live, FailureKind.LOST, message)
    if entry is not None:
        put_attempt(entry, attempt)
        ctx.decisions.append(AttemptSettled(attempt=attempt, model_id=live.model_id))
        jobs.attempt_failed(ctx, entry, attempt, failure)


def progressed(ctx: Context, site: Site, progress: AttemptProgress) -> None:
    """A report tells where a live attempt stands. Phases only move forward; what does not fit is ignored."""
    live = site.attempts.get(progress.key)
    if live is None or live.given_up:
        return
    old = live.attempt
    if progress.state is old.state and progress.steps_done == old.steps_done:
        return  # as in most of a report
    advanced = progress.state in PHASES and progress.state in ATTEMPT_TABLE[old.state]
    steps = max(old.steps_done, min(progress.steps_done, live.spec.shape.steps))
    if not advanced and steps == old.steps_done:
        return
    state = progress.state if advanced else old.state
    live.advanced_us = ctx.now_us
    if advanced:
        live.phase, live.phase_us = state, ctx.now_us
        ctx.bound.not_behind(live)
    running_us = old.running_us or (ctx.now_us if state is AttemptState.RUNNING else 0)
    live.attempt = replace(old, state=state, steps_done=steps, running_us=running_us)
    entry = ctx.state.jobs.get(live.key.job_id)
    if entry is None:
        return
    put_attempt(entry, live.attempt)
    if state in (AttemptState.RUNNING, AttemptState.UPLOADING):
        jobs.began_running(ctx, entry)
    ctx.show_job(entry.job)
    _correct_end(ctx, site, live)


def stop_hanging(ctx: Context, site: Site) -> None:
    """Stop begun attempts of a reporting site that have shown nothing new for far longer than they should take in all."""
    least_us = ctx.policy.hang_min_ms * 1_000
    if ctx.now_us <= site.hang_from_us:
        return
    site.hang_from_us = ctx.now_us + least_us  # of those that begin, or go on, from now on
    for live in list(site.attempts.values()):
        if live.given_up or live.attempt.state not in PHASES or not live.advanced_us:
            continue
        patience_us = max(ctx.policy.hang_factor * live.attempt.predicted_us, least_us)
        still_us = ctx.now_us - live.advanced_us
        site.hang_from_us = min(site.hang_from_us, live.advanced_us + patience_us)
        if still_us > patience_us:
            phase = live.attempt.state
            stop(ctx, site, live, FailureKind.TIMED_OUT, f"{phase} without progress for {still_us // 1_000_000} s")
            ctx.audit("attempt_hung", f"job/{live.key.job_id}", severity=Severity.WARNING, detail=f"{phase} at {site.site_id}")


def _correct_end(ctx: Context, site: Site, live: LiveAttempt) -> None:
    """Predict the end of the slot's work from the steps that are done."""
    found = find_slots(ctx, site, live)
    if found is None or live.attempt.state is not AttemptState.RUNNING:
        return
    column, members = found
    steps = live.spec.shape.steps
    left_us = live.exec_us * (steps - live.attempt.steps_done) // steps
    for slot in members:
        if not slot.attempts or slot.attempts[0] != live.key:
            continue
        end_us = ctx.now_us + left_us + sum(site.attempts[key].exec_us for key in slot.attempts[1:])
        if has_moved(slot.busy_until_us, end_us, ctx.now_us):
            slot.busy_until_us = end_us
            ctx.columns.slot_changed(column, slot, was_free=False)


def acknowledge_from(site: Site) -> None:
    """A new session: the agent delivers whatever it still holds, and every event is looked at again."""
    site.acked_event_seq = EventSeq(0)
