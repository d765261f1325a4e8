"""Attempts: accepted or refused, stopped, and ended, each with exactly one numbered event.

Decides what cannot run here. Must not know why an attempt is wanted, nor how it executes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agents.core import gangs, outbox
from agents.core.context import Context
from agents.core.events import AttemptAdvanced, AttemptErrored, AttemptFinished, AttemptHalted
from agents.core.outputs import StopAttempt
from agents.core.state import Slot, State, Work
from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import AssignedAttempt
from atoll.model.attempt import ATTEMPT_TABLE, PHASES, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState
from atoll.model.site import SiteRuntime
from atoll.model.words import count

# The orchestrator binds two per slot; the rest is for attempts that it gave up and that have not stopped yet. More is a mistake.
WAITING_MAX: Final = 8
# Executing attempts are renewed four times within their stop_after, and at least each minute.
_RENEWALS: Final = 4
_RENEW_MAX_US: Final = 60_000_000


def want(ctx: Context, assigned: AssignedAttempt, model: ModelSpec | None, adapters: tuple[AdapterSpec, ...]) -> None:
    """The orchestrator names an attempt: new, known, or over already."""
    state, key = ctx.state, assigned.key
    work = state.works.get(key)
    if work is not None:
        if work.assigned is None:
            state.works[key] = replace(work, assigned=assigned, model=model, adapters=adapters)
            renew_within(ctx, assigned)
        if assigned.stop:
            stop(ctx, key)
        return
    if key in state.ended:
        return
    manifest = state.finished.get(key)
    if manifest is not None:
        outbox.append(ctx, key, AttemptState.SUCCEEDED, manifest=manifest)
    elif assigned.stop:
        outbox.append(ctx, key, AttemptState.STOPPED)
    elif (message := _objection(state, assigned, model, adapters)) is not None:
        outbox.append(ctx, key, AttemptState.REFUSED, failure=Failure(kind=FailureKind.REFUSED, message=message))
    else:
        gang_size = assigned.spec.gang_size
        work = state.works[key] = Work(
            key=key,
            slot=assigned.slot,
            assigned=assigned,
            model=model,
            adapters=adapters,
            gang_size=gang_size,
            accepted_us=ctx.now_us,
        )
        state.leaving.pop(assigned.spec.model_id, None)
        for slot in gangs.members(state, work):
            slot.queue.append(key)
            ctx.touch(slot)


def _objection(state: State, assigned: AssignedAttempt, model: ModelSpec | None, adapters: tuple[AdapterSpec, ...]) -> str | None:
    """Why the attempt cannot run here, if it cannot."""
    spec = assigned.spec
    twin = state.runtime is SiteRuntime.TWIN
    if (message := gangs.objection(state, assigned.slot, spec.gang_size)) is not None:
        return message
    if spec.simulated is not twin:
        return f"a {'simulated' if spec.simulated else 'real'} job cannot run on runtime {state.runtime}"
    if model is None:
        return f"model {spec.model_id} was not described"
    if not twin and not model.servable:
        return f"model {spec.model_id} has no weights that a real site could load"
    if (message := _adapters_objection(assigned, adapters, twin=twin)) is not None:
        return message
    needed = model.resident_bytes + sum(adapter.weights_bytes for adapter in adapters)
    for ref in gangs.block(assigned.slot, spec.gang_size):
        slot = state.slots[ref]
        if slot.memory_bytes and needed > slot.memory_bytes:
            return f"{model.model_id}{' with its adapters' if adapters else ''} needs {needed} bytes, its slot has {slot.memory_bytes}"
        if len(slot.queue) >= WAITING_MAX:
            return f"{count(len(slot.queue), 'attempt')} waiting for slot {slot.ref.index} of {slot.ref.node_id} already"
    return None


def _adapters_objection(assigned: AssignedAttempt, adapters: tuple[AdapterSpec, ...], *, twin: bool) -> str | None:
    described = {adapter.adapter_id: adapter for adapter in adapters}
    for use in assigned.spec.adapters:
        adapter = described.get(use.adapter_id)
        if adapter is None:
            return f"adapter {use.adapter_id} was not described"
        if not twin and not adapter.servable:
            return f"adapter {use.adapter_id} has no weights that a real site could load"
    return None


def stop(ctx: Context, key: AttemptKey) -> None:
    """Stop an attempt: at once if it does not execute yet, else through the runtime."""
    work = ctx.state.works[key]
    if not is_executing(ctx.state, work):
        end(ctx, work, AttemptState.STOPPED)
    elif work.state is not AttemptState.STOPPING:
        ctx.state.works[key] = replace(work, state=AttemptState.STOPPING)
        ctx.commands.append(StopAttempt(slot=work.slot, key=key))
        ctx.report_soon()


def is_executing(state: State, work: Work) -> bool:
    """Whether the runtime has the attempt: in all slots of a gang, or in none."""
    return state.slots[work.slot].executing == work.key


def end(
    ctx: Context,
    work: Work,
    state: AttemptState,
    *,
    manifest: ResultManifest | None = None,
    failure: Failure | None = None,
    times: PhaseTimes | None = None,
) -> None:
    """The attempt is over: its slots are free of it, and its one event is in the outbox."""
    del ctx.state.works[work.key]
    for slot in gangs.members(ctx.state, work):
        if slot.executing == work.key:
            vacate(slot)
            slot.fresh = slot.fresh and state is not AttemptState.SUCCEEDED
        else:
            slot.queue.remove(work.key)
            if slot.loading_for == work.key:
                slot.loading_for = None  # the load goes on; whoever comes next finds a warm replica
        ctx.touch(slot)
    outbox.append(ctx, work.key, state, manifest=manifest, failure=failure, times=_times(ctx, work, times or PhaseTimes()))
    ctx.report_soon()


def vacate(slot: Slot) -> None:
    """Nothing executes in the slot any more; its replica is idle."""
    slot.executing = None
    for replica in list(slot.replicas.values()):
        if replica.state is ReplicaState.BUSY:
            slot.replicas[replica.key] = replace(replica, state=ReplicaState.WARM)


def _times(ctx: Context, work: Work, told: PhaseTimes) -> PhaseTimes:
    """What the runtime told of running and uploading, beside what was measured here."""
    turn_us = work.turn_us if work.turn_us >= 0 else ctx.now_us
    return replace(
        told,
        waiting_us=turn_us - work.accepted_us if work.accepted_us >= 0 else -1,
        fetch_us=work.fetch_us,
        load_us=work.load_us,
        adapt_us=work.adapt_us,
        run_us=told.run_us if told.run_us >= 0 or work.run_from_us < 0 else ctx.now_us - work.run_from_us,
    )


def advance_to(ctx: Context, work: Work, phase: AttemptState) -> None:
    """Store `work`, in `phase` if that is a step forward."""
    if phase in ATTEMPT_TABLE[work.state]:
        work = replace(work, state=phase)
        ctx.report_soon()
    ctx.state.works[work.key] = work


# --- what the runtime says ----------------------------------------------------------------------------------------------------


def _executing(ctx: Context, key: AttemptKey, what: str) -> Work | None:
    """The executing attempt of this name; what the runtime says of any other changes nothing."""
    work = ctx.state.works.get(key)
    if work is not None and is_executing(ctx.state, work):
        return work
    ctx.notices.append(f"attempt {key} {what}, which does not execute here")
    return None


def advanced(ctx: Context, event: AttemptAdvanced) -> None:
    """An executing attempt got further. Phases only move forward."""
    work = _executing(ctx, event.key, "advanced")
    if work is None:
        return
    most = work.assigned.spec.shape.steps if work.assigned is not None else event.steps_done
    steps = max(work.steps_done, min(event.steps_done, most))
    if event.state in PHASES:
        advance_to(ctx, work if steps == work.steps_done else replace(work, steps_done=steps), event.state)


def finished(ctx: Context, event: AttemptFinished) -> None:
    """An executing attempt has its result. One that is unknown may be named by an assignment yet to come."""
    work = _executing(ctx, event.key, "finished")
    state = ctx.state
    if work is None:
        if event.key not in state.works and event.key not in state.ended and state.generation == 0:
            state.finished[event.key] = event.manifest
        return
    if event.manifest.key != event.key:
        failure = Failure(kind=FailureKind.INTERNAL, message=f"the runtime brought the manifest of {event.manifest.key}")
        end(ctx, work, AttemptState.FAILED, failure=failure, times=event.times)
        return
    end(ctx, work, AttemptState.SUCCEEDED, manifest=event.manifest, times=event.times)


def errored(ctx: Context, event: AttemptErrored) -> None:
    """An executing attempt ended without a result."""
    work = _executing(ctx, event.key, "failed")
    if work is not None:
        end(ctx, work, AttemptState.FAILED, failure=event.failure, times=event.times)


def halted(ctx: Context, event: AttemptHalted) -> None:
    """An executing attempt stopped."""
    work = _executing(ctx, event.key, "stopped")
    if work is not None:
        end(ctx, work, AttemptState.STOPPED)


# --- renewals -----------------------------------------------------------------------------------------------------------------


def renew_within(ctx: Context, assigned: AssignedAttempt) -> None:
    """An attempt begins to execute: see that it is renewed in time."""
    due_us = ctx.now_us + renewal_us(assigned)
    state = ctx.state
    state.renew_due_us = due_us if state.renew_due_us < 0 else min(state.renew_due_us, due_us)


def renewal_us(assigned: AssignedAttempt) -> int:
    """How long an executing attempt may go without a renewal before the next is due, microseconds."""
    return max(min(assigned.stop_after_ms * 1_000 // _RENEWALS, _RENEW_MAX_US), 1)
