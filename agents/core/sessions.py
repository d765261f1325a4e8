"""The session with the orchestrator: who may give orders here, and how long work goes on without any.

Decides which orchestrators are refused, when executing work is renewed, and when it stops itself. Must not know the network.
"""

from __future__ import annotations

from agents.core import attempts
from agents.core.context import Context
from agents.core.events import SessionOpened
from agents.core.outputs import IdentityChanged, RefuseOrchestrator, RenewAttempts
from agents.core.state import State
from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, EventSeq, FleetId, Generation, Term


def opened(ctx: Context, event: SessionOpened) -> None:
    """The orchestrator answered: report everything, deliver what it may not know, renew what executes."""
    welcome, state = event.welcome, ctx.state
    if not recognise(ctx, welcome.fleet_id, welcome.term):
        return
    state.connected = True
    state.contact_us = ctx.now_us
    state.interval_us = welcome.report_interval_ms * 1_000
    state.scale_milli = welcome.time_scale_milli
    state.full_due, state.prompt_us = True, ctx.now_us
    state.sent_event_seq = EventSeq(0)
    state.resync_asked_us = -1
    state.snapshots_taken = 0
    state.renew_due_us = ctx.now_us


def closed(ctx: Context) -> None:
    """The stream ended; the absence of orders is counted from now."""
    state = ctx.state
    if state.connected:
        state.connected = False
        state.contact_us = ctx.now_us
        state.prompt_us = -1


def recognise(ctx: Context, fleet_id: FleetId, term: Term) -> bool:
    """Whether this fleet and term may give orders; a newer term is remembered, anything else is refused."""
    state = ctx.state
    if state.fleet_id not in ("", fleet_id):
        message = f"this site belongs to fleet {state.fleet_id}, the orchestrator is of fleet {fleet_id}"
        ctx.commands.append(RefuseOrchestrator(message=message, final=True))
    elif term < state.term:
        message = f"the orchestrator's term {term} is over: this site has seen term {state.term}"
        ctx.commands.append(RefuseOrchestrator(message=message))
    else:
        if (fleet_id, term) != (state.fleet_id, state.term):
            # Generations count within a term.
            state.fleet_id, state.term, state.generation = fleet_id, term, Generation(0)
            ctx.records.append(IdentityChanged(fleet_id=fleet_id, term=term))
        return True
    closed(ctx)
    return False


def expire(ctx: Context) -> None:
    """Stop what has gone without an orchestrator for its stop_after."""
    state = ctx.state
    if state.connected or not state.works:
        return
    overdue: list[AttemptKey] = [
        work.key
        for work in state.works.values()
        if work.state is not AttemptState.STOPPING
        and work.assigned is not None
        and ctx.now_us >= state.contact_us + work.assigned.stop_after_ms * 1_000
    ]
    for key in overdue:
        attempts.stop(ctx, key)


def expires_us(state: State) -> int | None:
    """When `expire` has something to do next."""
    if state.connected:
        return None
    allowed_ms = [
        work.assigned.stop_after_ms
        for work in state.works.values()
        if work.assigned is not None and work.state is not AttemptState.STOPPING
    ]
    return state.contact_us + min(allowed_ms) * 1_000 if allowed_ms else None


def renew(ctx: Context) -> None:
    """An open session is the orchestrator's word that executing work is still wanted: pass it on to where the work executes."""
    state = ctx.state
    if not state.connected or state.renew_due_us < 0 or ctx.now_us < state.renew_due_us:
        return
    state.renew_due_us = -1
    keys = []
    executing = dict.fromkeys(slot.executing for slot in state.slots.values() if slot.executing is not None)  # a gang's once
    for key in executing:
        work = state.works.get(key)
        if work is not None and work.assigned is not None and work.state is not AttemptState.STOPPING:
            keys.append(work.key)
            attempts.renew_within(ctx, work.assigned)
    if keys:
        ctx.commands.append(RenewAttempts(keys=tuple(keys)))
