"""What a runtime found when it started: the beginning of a machine's life, or its continuation after a restart of the agent.

Decides what is believed. Which of it is still wanted, the first snapshot tells.
"""

from __future__ import annotations

from agents.core.context import Context
from agents.core.events import RuntimeStarted
from agents.core.outputs import StopAttempt
from agents.core.state import Replica, Work
from atoll.model.attempt import AttemptState
from atoll.model.replica import ReplicaState


def started(ctx: Context, event: RuntimeStarted) -> None:
    """Take over what survived. Only the first word of a runtime is one; later changes come as events."""
    state = ctx.state
    if state.started:
        ctx.notices.append("the runtime started twice")
        return
    state.started = True
    state.contact_us = ctx.now_us
    state.host_tier = event.host_tier
    for node_id, model_id, digest in event.disk_models:
        if node_id in state.nodes:
            state.nodes[node_id].disk[model_id] = digest
    for manifest in event.finished:
        if manifest.key not in state.ended:
            state.finished[manifest.key] = manifest
    for recovered in event.slots:
        slot = state.slots.get(recovered.slot)
        if slot is None:
            ctx.notices.append(f"the runtime has slot {recovered.slot}, which no pool has")
            continue
        slot.ready = True
        key = recovered.running
        if key is not None and (key in state.works or key in state.ended):
            ctx.commands.append(StopAttempt(slot=slot.ref, key=key))  # its end was told: nobody waits for it
            key = None
        if key is not None:
            slot.executing = key
            state.works[key] = Work(key=key, slot=slot.ref, assigned=None, model=None, state=AttemptState.RUNNING, run_from_us=ctx.now_us)
        for fact in recovered.replicas:
            others_busy = any(replica.state is ReplicaState.BUSY for replica in slot.replicas.values())
            busy = fact.state is ReplicaState.BUSY and key is not None and not others_busy
            slot.replicas[fact.model_id] = Replica(
                model_id=fact.model_id,
                state=ReplicaState.BUSY if busy else ReplicaState.WARM,
                memory_bytes=slot.at_most_free(fact.memory_bytes),
            )
        ctx.touch(slot)
