"""Replicas: a slot turns to the attempt at the head of its queue, evicts what it is told to, loads, adapts, and executes.

Decides the next thing that a slot does. Which replicas give way is the orchestrator's decision; here it is obeyed, or the attempt refused.
"""

from __future__ import annotations

from dataclasses import replace

from agents.core import adapters, attempts, gangs, residency, weights
from agents.core.context import Context
from agents.core.events import ReplicaEvicted, ReplicaLoaded, ReplicaLoadFailed, SlotLost, SlotReady
from agents.core.outputs import EvictReplica, LoadReplica, RunAttempt
from agents.core.state import Replica, ReplicaKey, Slot, Work
from atoll.model.assignment import AssignedAttempt
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.compiled import needed_form
from atoll.model.ids import AttemptKey
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier
from atoll.model.words import size


def advance(ctx: Context, slot: Slot) -> None:
    """Do what can be done next in a slot: have weights fetched for all that wait, then serve the first of them."""
    for key in list(slot.queue):
        weights.want(ctx, slot, ctx.state.works[key])
        adapters.want(ctx, slot, ctx.state.works[key])
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
    wanted = _wanted(assigned, model)
    members = gangs.members(ctx.state, work)
    if work.turn_us < 0:
        if not all(gangs.has_turn(member, work.key) for member in members):
            return False
        work = ctx.state.works[work.key] = replace(work, turn_us=ctx.now_us)
        if work.gang_size > 1 and (message := _gang_objection(ctx, members, assigned, model)) is not None:
            return _refuse(ctx, work, message)
    resident = weights.resident(slot, model, work.gang_size)
    victims = _victims(slot, assigned, model)
    at_hand = resident or weights.at_hand(ctx.node(slot.ref), model)
    if (message := _pins(ctx, slot, assigned, model)) is not None:
        return _refuse(ctx, work, message)
    if not at_hand:
        # Nobody leaves for weights that may never come: the attempt may be moved or stopped, or its fetch fail.
        victims = [victim for victim in victims if victim == wanted]
    if victims:
        if at_hand and work.load_from_us < 0:
            ctx.state.works[work.key] = replace(work, load_from_us=ctx.now_us)
        for victim in victims:
            _evict(ctx, slot, slot.replicas[victim])
        return False
    if resident and (missing := adapters.lacking(slot, work)):
        return adapters.adapt(ctx, slot, work, slot.replicas[wanted], missing)
    if resident:
        if all(gangs.has_turn(member, work.key) and _is_prepared(member, work, assigned, model) for member in members):
            _run(ctx, members, work, assigned, model)
        return False
    if not at_hand:
        return False
    if slot.memory_bytes and slot.used_bytes + model.resident_bytes > slot.memory_bytes:
        if (message := _shortage(ctx, slot, assigned, model)) is not None:
            return _refuse(ctx, work, message)
        residency.make_way(ctx, slot, model.resident_bytes, wanted)
        return False
    _load(ctx, slot, work, model)
    return False


def _refuse(ctx: Context, work: Work, message: str) -> bool:
    attempts.end(ctx, work, AttemptState.REFUSED, failure=Failure(kind=FailureKind.REFUSED, message=message))
    return True


def _gang_objection(ctx: Context, members: tuple[Slot, ...], assigned: AssignedAttempt, model: ModelSpec) -> str | None:
    """All or nothing: no member makes room before each of them is known to have it. Then each prepares for itself."""
    for member in members:
        if (message := _pins(ctx, member, assigned, model) or _shortage(ctx, member, assigned, model)) is not None:
            return message
        ctx.touch(member)
    return None


def _wanted(assigned: AssignedAttempt, model: ModelSpec) -> ReplicaKey:
    return ReplicaKey(model_id=model.model_id, gang_size=assigned.spec.gang_size)


def _victims(slot: Slot, assigned: AssignedAttempt, model: ModelSpec) -> list[ReplicaKey]:
    """What leaves the slot before the attempt's replica comes: of each model that is named, every replica but the one that is wanted."""
    wanted = _wanted(assigned, model)
    victims = [key for model_id in assigned.evict for key in slot.replicas if key.model_id == model_id and key != wanted]
    if wanted in slot.replicas and not weights.resident(slot, model, wanted.gang_size):
        # The model was replaced: what is loaded under its name is of no use to anybody.
        victims.append(wanted)
    return list(dict.fromkeys(victims))


def _pins(ctx: Context, slot: Slot, assigned: AssignedAttempt, model: ModelSpec) -> str | None:
    """Why the attempt's victims cannot leave, if they cannot."""
    wanted = _wanted(assigned, model)
    victims = _victims(slot, assigned, model)
    kept = [key.model_id for key in victims if key != wanted and residency.pinned_in(ctx.node(slot.ref), slot, key)]
    if not kept:
        return None
    return f"{', '.join(kept)} is pinned in slot {slot.ref.index} of {slot.ref.node_id}: unpin it, or evict another"


def _shortage(ctx: Context, slot: Slot, assigned: AssignedAttempt, model: ModelSpec) -> str | None:
    """Why the model does not fit beside what stays when the victims and all copies ahead of demand have left, if it does not."""
    wanted = _wanted(assigned, model)
    victims = _victims(slot, assigned, model)
    going = {*victims, *residency.give_way(ctx.node(slot.ref), slot, wanted)}
    if not slot.memory_bytes or (wanted in slot.replicas and wanted not in going):
        return None
    left = [replica for key, replica in slot.replicas.items() if key not in going]
    if sum(replica.memory_bytes for replica in left) + model.resident_bytes <= slot.memory_bytes:
        return None
    held = ", ".join(f"{replica.model_id} of {size(replica.memory_bytes)}" for replica in left)
    return f"{model.model_id} needs {size(model.resident_bytes)}; of the slot's {size(slot.memory_bytes)} are taken: {held}"


def _is_prepared(slot: Slot, work: Work, assigned: AssignedAttempt, model: ModelSpec) -> bool:
    """Whether nothing is left to do in an idle slot before it executes."""
    here = weights.resident(slot, model, assigned.spec.gang_size) and not _victims(slot, assigned, model)
    return here and not adapters.lacking(slot, work)


def _load(ctx: Context, slot: Slot, work: Work, model: ModelSpec) -> None:
    replica = Replica(
        model_id=model.model_id,
        state=ReplicaState.LOADING,
        memory_bytes=model.resident_bytes,
        weights_digest=model.weights_digest,
        gang_size=work.gang_size,
        load_from_us=ctx.now_us,
    )
    slot.replicas[replica.key] = replica
    slot.loading_for = work.key
    from_us = work.load_from_us if work.load_from_us >= 0 else ctx.now_us
    attempts.advance_to(ctx, replace(work, load_from_us=from_us), AttemptState.LOADING)
    ctx.commands.append(LoadReplica(slot=slot.ref, model=model, gang_size=work.gang_size))
    ctx.touch(slot)


def _run(ctx: Context, members: tuple[Slot, ...], work: Work, assigned: AssignedAttempt, model: ModelSpec) -> None:
    wanted = _wanted(assigned, model)
    for slot in members:
        slot.queue.pop(0)
        slot.executing = work.key
        used = adapters.use(slot.replicas[wanted], work)
        slot.replicas[wanted] = replace(used, state=ReplicaState.BUSY, ahead=False)
        ctx.touch(slot)
    ctx.state.works[work.key] = replace(work, run_from_us=ctx.now_us)
    ctx.commands.append(
        RunAttempt(
            slot=work.slot,
            key=work.key,
            spec=assigned.spec,
            model=model,
            stop_after_ms=assigned.stop_after_ms,
            request_id=assigned.request_id,
            form=needed_form(model, assigned.spec.shape, work.gang_size, (adapter.rank for adapter in work.adapters)),
        )
    )
    attempts.renew_within(ctx, assigned)


def _evict(ctx: Context, slot: Slot, replica: Replica) -> None:
    slot.replicas[replica.key] = replica.evicting()
    ctx.commands.append(EvictReplica(slot=slot.ref, model_id=replica.model_id, gang_size=replica.gang_size))
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
    key = ReplicaKey(model_id=event.model_id, gang_size=event.gang_size)
    known = slot.replicas.get(key)
    if known is not None and known.state is not ReplicaState.LOADING:
        return
    slot.replicas.pop(key, None)
    slot.replicas[key] = Replica(
        model_id=event.model_id,
        state=ReplicaState.WARM,
        memory_bytes=slot.at_most_free(event.memory_bytes),
        weights_digest=known.weights_digest if known is not None else "",
        ahead=known is not None and known.ahead,
        gang_size=event.gang_size,
    )
    work = _loading_work(ctx, slot) if known is not None else None
    if work is not None:
        ctx.state.works[work.key] = replace(work, load_us=ctx.now_us - work.load_from_us)
    ctx.touch(slot)
    ctx.report_soon()


def load_failed(ctx: Context, event: ReplicaLoadFailed) -> None:
    """A load ended without a replica: the attempt that it was for fails; others may try again."""
    slot = ctx.state.slots.get(event.slot)
    key = ReplicaKey(model_id=event.model_id, gang_size=event.gang_size)
    known = slot.replicas.get(key) if slot is not None else None
    if slot is None or known is None or known.state is not ReplicaState.LOADING:
        ctx.notices.append(f"failed load of {event.model_id} that was not asked for: {event.failure.message}")
        return
    del slot.replicas[key]
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
    key = ReplicaKey(model_id=event.model_id, gang_size=event.gang_size)
    replica = slot.replicas.get(key) if slot is not None else None
    if slot is None or replica is None:
        return
    if replica.state not in (ReplicaState.EVICTING, ReplicaState.WARM):
        ctx.notices.append(f"{event.model_id} left {event.slot} while it was {replica.state}")
        return
    del slot.replicas[key]
    if slot.adapting is not None and adapters.key_of(slot.adapting) == key:
        slot.adapting = slot.loading_for = None  # nothing is left to adapt; whoever waited for it loads anew
    ctx.touch(slot)
    ctx.report_soon()
    weights.settle_leaving(ctx, event.model_id)


def lost(ctx: Context, event: SlotLost) -> None:
    """The process of a slot died, and everything in it; what waits goes on waiting. A gang is lost with any of its members, also while
    it loads: the others would wait for a slot of which nobody knows when it is back."""
    slot = ctx.state.slots.get(event.slot)
    if slot is None:
        ctx.notices.append(f"unknown slot {event.slot} was lost: {event.message}")
        return
    struck = dict.fromkeys(key for key in (slot.executing, slot.loading_for, _gang_begun(ctx, slot)) if key is not None)
    slot.ready, slot.loading_for, slot.adapting, slot.measured_free_bytes = False, None, None, -1
    gone = dict.fromkeys(key.model_id for key in slot.replicas)
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


def _gang_begun(ctx: Context, slot: Slot) -> AttemptKey | None:
    """The gang at the head of the queue, if its members have begun to make room, to load or to adapt for it."""
    work = ctx.state.works[slot.queue[0]] if slot.queue else None
    return work.key if work is not None and work.gang_size > 1 and max(work.load_from_us, work.adapt_from_us) >= 0 else None


def ready(ctx: Context, event: SlotReady) -> None:
    """The process of a slot is up, empty."""
    slot = ctx.state.slots.get(event.slot)
    if slot is None or slot.ready:
        return
    slot.ready = slot.fresh = True
    ctx.touch(slot)
    ctx.report_soon()
