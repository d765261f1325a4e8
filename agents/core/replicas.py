"""Replicas: a slot turns to the attempt at the head of its queue, evicts what it is told to, loads, and executes.

Decides the next thing that a slot does. Which replicas give way is the orchestrator's decision; here it is obeyed, or the attempt refused.
"""

from __future__ import annotations

from dataclasses import replace

from agents.core import attempts, residency, weights
from agents.core.context import Context
from agents.core.events import ReplicaEvicted, ReplicaLoaded, ReplicaLoadFailed, SlotLost, SlotReady
from agents.core.outputs import EvictReplica, LoadReplica, RunAttempt
from agents.core.state import Replica, Slot, Work
from atoll.model.assignment import AssignedAttempt
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier


def advance(ctx: Context, slot: Slot) -> None:
    """Do what can be done next in a slot: have weights fetched for all that wait, then serve the first of them."""
    for key in list(slot.queue):
        weights.want(ctx, slot, ctx.state.works[key])
    while slot.ready and slot.queue and not slot.occupied:
        if not _serve(ctx, slot, ctx.state.works[slot.queue[0]]):
            break
    if ctx.state.leaving:
        _evict_leaving(ctx, slot)
        weights.delete_leaving(ctx, ctx.node(slot.ref))


def _serve(ctx: Context, slot: Slot, work: Work) -> bool:
    """Take the next step towards running the head of an idle slot's queue. True: it ended instead, the next one is head."""
    assigned, model = work.assigned, work.model
    assert assigned is not None, "what waits was assigned"
    assert model is not None, "what waits has a model"
    if work.turn_us < 0:
        work = ctx.state.works[work.key] = replace(work, turn_us=ctx.now_us)
    resident = weights.resident(slot, model)
    victims = [model_id for model_id in assigned.evict if model_id in slot.replicas and model_id != model.model_id]
    if model.model_id in slot.replicas and not resident:
        # The model was replaced: what is loaded under its name is of no use to anybody.
        victims.append(model.model_id)
    at_hand = resident or weights.at_hand(ctx.node(slot.ref), model)
    kept = [name for name in victims if name != model.model_id and residency.pinned_in(ctx.node(slot.ref), slot, name)]
    if kept:
        message = f"{', '.join(kept)} is pinned in slot {slot.ref.index} of {slot.ref.node_id}: unpin it, or evict another"
        attempts.end(ctx, work, AttemptState.REFUSED, failure=Failure(kind=FailureKind.REFUSED, message=message))
        return True
    if victims:
        if at_hand and work.load_from_us < 0:
            ctx.state.works[work.key] = replace(work, load_from_us=ctx.now_us)
        for model_id in dict.fromkeys(victims):
            _evict(ctx, slot, slot.replicas[model_id])
        return False
    if resident:
        _run(ctx, slot, work, assigned, model)
        return False
    if not at_hand:
        return False
    if slot.memory_bytes and slot.used_bytes + model.resident_bytes > slot.memory_bytes:
        if residency.make_way(ctx, slot, model):
            return False
        held = ", ".join(f"{replica.model_id} of {replica.memory_bytes}" for replica in slot.replicas.values())
        message = f"{model.model_id} needs {model.resident_bytes} bytes; of the slot's {slot.memory_bytes} are taken: {held}"
        attempts.end(ctx, work, AttemptState.REFUSED, failure=Failure(kind=FailureKind.REFUSED, message=message))
        return True
    _load(ctx, slot, work, model)
    return False


def _load(ctx: Context, slot: Slot, work: Work, model: ModelSpec) -> None:
    slot.replicas[model.model_id] = Replica(
        model_id=model.model_id,
        state=ReplicaState.LOADING,
        memory_bytes=model.resident_bytes,
        weights_digest=model.weights_digest,
    )
    slot.loading_for = work.key
    from_us = work.load_from_us if work.load_from_us >= 0 else ctx.now_us
    attempts.advance_to(ctx, replace(work, load_from_us=from_us), AttemptState.LOADING)
    ctx.commands.append(LoadReplica(slot=slot.ref, model=model))
    ctx.touch(slot)


def _run(ctx: Context, slot: Slot, work: Work, assigned: AssignedAttempt, model: ModelSpec) -> None:
    slot.queue.pop(0)
    slot.executing = work.key
    slot.replicas[model.model_id] = replace(slot.replicas[model.model_id], state=ReplicaState.BUSY, ahead=False)
    ctx.state.works[work.key] = replace(work, run_from_us=ctx.now_us)
    ctx.commands.append(
        RunAttempt(
            slot=slot.ref,
            key=work.key,
            spec=assigned.spec,
            model=model,
            stop_after_ms=assigned.stop_after_ms,
            request_id=assigned.request_id,
        )
    )
    ctx.touch(slot)
    attempts.renew_within(ctx, assigned)


def _evict(ctx: Context, slot: Slot, replica: Replica) -> None:
    slot.replicas[replica.model_id] = replica.evicting()
    ctx.commands.append(EvictReplica(slot=slot.ref, model_id=replica.model_id))
    ctx.touch(slot)


def _evict_leaving(ctx: Context, slot: Slot) -> None:
    if not slot.ready or slot.occupied:
        return
    for replica in list(slot.replicas.values()):
        if replica.model_id in ctx.state.leaving and not weights.needs(ctx, slot, replica.model_id):
            _evict(ctx, slot, replica)


# --- what the runtime says ----------------------------------------------------------------------------------------------------


def loaded(ctx: Context, event: ReplicaLoaded) -> None:
    """A model is resident. One that was not asked for in this life was asked for before a restart."""
    slot = ctx.state.slots.get(event.slot)
    if slot is None or not slot.ready:
        ctx.notices.append(f"{event.model_id} was loaded into {event.slot}, which is not there")
        return
    known = slot.replicas.get(event.model_id)
    if known is not None and known.state is not ReplicaState.LOADING:
        return
    slot.replicas.pop(event.model_id, None)
    slot.replicas[event.model_id] = Replica(
        model_id=event.model_id,
        state=ReplicaState.WARM,
        memory_bytes=slot.at_most_free(event.memory_bytes),
        weights_digest=known.weights_digest if known is not None else "",
        ahead=known is not None and known.ahead,
    )
    work = _loading_work(ctx, slot) if known is not None else None
    if work is not None:
        ctx.state.works[work.key] = replace(work, load_us=ctx.now_us - work.load_from_us)
    ctx.touch(slot)
    ctx.report_soon()


def load_failed(ctx: Context, event: ReplicaLoadFailed) -> None:
    """A load ended without a replica: the attempt that it was for fails; others may try again."""
    slot = ctx.state.slots.get(event.slot)
    known = slot.replicas.get(event.model_id) if slot is not None else None
    if slot is None or known is None or known.state is not ReplicaState.LOADING:
        ctx.notices.append(f"failed load of {event.model_id} that was not asked for: {event.failure.message}")
        return
    del slot.replicas[event.model_id]
    if known.ahead:
        residency.pause(ctx, ctx.node(slot.ref), Tier.GPU, event.model_id)
    ctx.touch(slot)
    ctx.report_soon()
    work = _loading_work(ctx, slot)
    if work is not None:
        attempts.end(ctx, replace(work, load_us=ctx.now_us - work.load_from_us), AttemptState.FAILED, failure=event.failure)


def _loading_work(ctx: Context, slot: Slot) -> Work | None:
    key, slot.loading_for = slot.loading_for, None
    return ctx.state.works.get(key) if key is not None else None


def evicted(ctx: Context, event: ReplicaEvicted) -> None:
    """A model left the memory of a slot."""
    slot = ctx.state.slots.get(event.slot)
    replica = slot.replicas.get(event.model_id) if slot is not None else None
    if slot is None or replica is None:
        return
    if replica.state not in (ReplicaState.EVICTING, ReplicaState.WARM):
        ctx.notices.append(f"{event.model_id} left {event.slot} while it was {replica.state}")
        return
    del slot.replicas[event.model_id]
    ctx.touch(slot)
    ctx.report_soon()
    weights.settle_leaving(ctx, event.model_id)


def lost(ctx: Context, event: SlotLost) -> None:
    """The process of a slot died, and everything in it; what waits goes on waiting."""
    slot = ctx.state.slots.get(event.slot)
    if slot is None:
        ctx.notices.append(f"unknown slot {event.slot} was lost: {event.message}")
        return
    struck = [key for key in (slot.executing, slot.loading_for) if key is not None]
    slot.ready, slot.loading_for, slot.measured_free_bytes = False, None, -1
    gone = tuple(slot.replicas)
    slot.replicas.clear()
    for key in struck:
        work = ctx.state.works.get(key)
        if work is not None:
            failure = Failure(kind=FailureKind.RUNTIME_LOST, message=event.message)
            attempts.end(ctx, work, AttemptState.FAILED, failure=failure)
    ctx.touch(slot)
    ctx.report_soon()
    for model_id in gone:
        weights.settle_leaving(ctx, model_id)


def ready(ctx: Context, event: SlotReady) -> None:
    """The process of a slot is up, empty."""
    slot = ctx.state.slots.get(event.slot)
    if slot is None or slot.ready:
        return
    slot.ready = True
    ctx.touch(slot)
    ctx.report_soon()
