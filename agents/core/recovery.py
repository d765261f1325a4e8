"""What a runtime found when it started: the beginning of a machine's life, or its continuation after a restart of the agent.

Decides what is believed. Which of it is still wanted, the first snapshot tells.
"""

from __future__ import annotations

from agents.core import attempts, gangs, outbox
from agents.core.context import Context
from agents.core.events import RecoveredSlot, RuntimeStarted
from agents.core.outputs import StopAttempt
from agents.core.state import LoadedAdapter, Replica, Slot, Work
from atoll.model import limits
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import AttemptKey
from atoll.model.replica import ReplicaState


def started(ctx: Context, event: RuntimeStarted) -> None:
    """Take over what survived. Only the first word of a runtime is one; later changes come as events."""
    state = ctx.state
    if state.started:
        ctx.notices.append("the runtime started twice")
        return
    state.started = True
    state.contact_us = ctx.now_us
    state.host_tier, state.shares_compiled = event.host_tier, event.shares_compiled
    for node_id, model_id, digest in event.disk_models:
        if node_id in state.nodes:
            state.nodes[node_id].disk[model_id] = digest
    for node_id, adapter_id, digest in event.disk_adapters:
        if node_id in state.nodes:
            state.nodes[node_id].disk_adapters[adapter_id] = digest
    for node_id, form in event.compiled[: limits.FORMS_PER_NODE_MAX * len(state.nodes)]:
        if node_id in state.nodes and len(state.nodes[node_id].compiled) < limits.FORMS_PER_NODE_MAX:
            state.nodes[node_id].compiled += (form,)
    for manifest in event.finished:
        if manifest.key not in state.ended:
            state.finished[manifest.key] = manifest
    for recovered in event.slots:
        slot = state.slots.get(recovered.slot)
        if slot is None:
            ctx.notices.append(f"the runtime has slot {recovered.slot}, which no pool has")
            continue
        slot.ready, slot.fresh = True, recovered.fresh
        key = _take_over(ctx, slot, recovered)
        for fact in recovered.replicas:
            others_busy = any(replica.state is ReplicaState.BUSY for replica in slot.replicas.values())
            busy = fact.state is ReplicaState.BUSY and key is not None and not others_busy
            replica = Replica(
                model_id=fact.model_id,
                state=ReplicaState.BUSY if busy else ReplicaState.WARM,
                memory_bytes=slot.at_most_free(fact.memory_bytes),
                gang_size=fact.gang_size,
                adapters=tuple(LoadedAdapter(adapter_id=adapter_id) for adapter_id in fact.adapters),
            )
            slot.replicas[replica.key] = replica
        ctx.touch(slot)
    _end_broken(ctx)


def _take_over(ctx: Context, slot: Slot, recovered: RecoveredSlot) -> AttemptKey | None:
    """The attempt that a slot is found executing, if this life goes on with it. Of a gang, each member is heard by itself."""
    state, key = ctx.state, recovered.running
    if key is None:
        return None
    lead = gangs.lead_of(slot.ref, recovered.gang_size)
    work = state.works.get(key)
    if work is None and key not in state.ended and gangs.objection(state, lead, recovered.gang_size) is None:
        work = state.works[key] = Work(
            key=key,
            slot=lead,
            assigned=None,
            model=None,
            gang_size=recovered.gang_size,
            state=AttemptState.RUNNING,
            run_from_us=ctx.now_us,
        )
    if work is None or work.accepted_us >= 0 or slot.ref not in gangs.block(work.slot, work.gang_size):
        ctx.commands.append(StopAttempt(slot=slot.ref, key=key))  # its end was told: nobody waits for it
        return None
    slot.executing = key
    return key


def _end_broken(ctx: Context) -> None:
    """A gang that is not found whole is lost, as when a member dies while the agent watches."""
    recovered = [work for work in ctx.state.works.values() if work.accepted_us < 0]
    for work in recovered:
        found = [slot for slot in gangs.members(ctx.state, work) if slot.executing == work.key]
        if len(found) == work.gang_size:
            continue
        del ctx.state.works[work.key]
        for slot in found:
            attempts.vacate(slot)
            ctx.commands.append(StopAttempt(slot=slot.ref, key=work.key))
        missing = f"{work.gang_size - len(found)} of the {work.gang_size} slots of the gang do not work on it any more"
        outbox.append(ctx, work.key, AttemptState.FAILED, failure=Failure(kind=FailureKind.RUNTIME_LOST, message=missing))
