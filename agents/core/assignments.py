"""The assignment: what the orchestrator wants here, as snapshots and deltas by generation.

Decides which messages count. Late, doubled and lost ones need no case of their own: an old generation is ignored, a gap asks for a
snapshot, a snapshot replaces everything.
"""

from __future__ import annotations

from agents.core import attempts, outbox, residency, sessions
from agents.core.context import Context
from agents.core.events import AssignmentReceived
from agents.core.outputs import RequestResync
from agents.core.state import Work
from atoll.model.assignment import Assignment
from atoll.model.attempt import AttemptState
from atoll.model.words import count


def received(ctx: Context, event: AssignmentReceived) -> None:
    """Take over a message of the session's orchestrator."""
    assignment, state = event.assignment, ctx.state
    if not state.connected or not sessions.recognise(ctx, assignment.fleet_id, assignment.term):
        return
    if assignment.full:
        # The site's facts may be what went missing; the first report of the session is under way already.
        state.full_due = state.full_due or state.snapshots_taken > 0
        state.snapshots_taken += 1
    if assignment.generation > state.generation:
        if assignment.full:
            _apply_snapshot(ctx, assignment)
        elif assignment.base_generation == state.generation:
            _apply_delta(ctx, assignment)
        else:
            _ask_for_snapshot(ctx)
    # What was acknowledged once is acknowledged, however late the message.
    outbox.acknowledged(ctx, assignment.acked_event_seq)


def _ask_for_snapshot(ctx: Context) -> None:
    state = ctx.state
    # One question is enough for all the deltas that are on their way.
    if state.resync_asked_us < 0 or ctx.now_us >= state.resync_asked_us + state.interval_us:
        state.resync_asked_us = ctx.now_us
        ctx.commands.append(RequestResync(generation=state.generation))


def _apply_snapshot(ctx: Context, assignment: Assignment) -> None:
    state = ctx.state
    state.generation = assignment.generation
    state.resync_asked_us = -1
    state.listed = {attempt.key: attempt for attempt in assignment.attempts}
    dropped = [work for work in state.works.values() if work.key not in state.listed and work.state is not AttemptState.STOPPING]
    if not assignment.confirm_shrink and _shrinks(ctx, dropped):
        ctx.notices.append(
            f"held back: the snapshot of generation {assignment.generation} drops {count(len(dropped), 'attempt')} unconfirmed"
        )
    else:
        for work in dropped:
            attempts.stop(ctx, work.key)
    _want_all(ctx, assignment)
    residency.replace_all(ctx, assignment)
    state.finished = {}
    outbox.forget_ended(state)


def _shrinks(ctx: Context, dropped: list[Work]) -> bool:
    """Whether a snapshot would stop more than half of what executes: rather a mistake of an orchestrator than a wish."""
    state = ctx.state
    executing = sum(1 for work in state.works.values() if attempts.is_executing(state, work) and work.state is not AttemptState.STOPPING)
    return executing >= 2 and 2 * sum(1 for work in dropped if attempts.is_executing(state, work)) > executing


def _apply_delta(ctx: Context, assignment: Assignment) -> None:
    state = ctx.state
    state.generation = assignment.generation
    for attempt in assignment.attempts:
        state.listed[attempt.key] = attempt
    for key in assignment.removed:
        state.listed.pop(key, None)
        if key in state.works:
            attempts.stop(ctx, key)
    _want_all(ctx, assignment)
    residency.change(ctx, assignment)
    if assignment.removed:
        outbox.forget_ended(state)


def _want_all(ctx: Context, assignment: Assignment) -> None:
    state = ctx.state
    models = {model.model_id: model for model in assignment.models}
    for model_id in assignment.evict:
        state.leaving[model_id] = None
    adapters = {adapter.adapter_id: adapter for adapter in assignment.adapters}
    for attempt in assignment.attempts:
        used = tuple(adapters[use.adapter_id] for use in attempt.spec.adapters if use.adapter_id in adapters)
        attempts.want(ctx, attempt, models.get(attempt.spec.model_id), used)
    if assignment.evict:
        for slot in state.slots.values():
            ctx.touch(slot)
