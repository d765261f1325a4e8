"""What must hold of an agent's machine after every event, executed by tests and by the simulator.

Decides nothing. A violation is a bug of ours, never of input.
"""

from __future__ import annotations

from collections import Counter

from agents.core import gangs
from agents.core.machine import AgentMachine
from agents.core.residency import FETCHES_AHEAD_MAX
from agents.core.state import ReplicaKey, Slot, State
from atoll.model import limits
from atoll.model.attempt import ATTEMPT_TABLE, AttemptState
from atoll.model.ids import AttemptKey
from atoll.model.replica import ReplicaState


class InvariantViolation(Exception):  # noqa: N818 - named for what it is
    """A promise of the core does not hold; the message names it."""


def check(machine: AgentMachine, now_us: int) -> None:
    """Raise InvariantViolation for the first promise that is broken at `now_us`."""
    state = machine.state
    holders: Counter[AttemptKey] = Counter()
    for slot in state.slots.values():
        _check_slot(state, slot)
        holders.update(slot.queue)
        if slot.executing is not None:
            holders[slot.executing] += 1
    due = Counter({work.key: work.gang_size for work in state.works.values()})
    _require(holders == due, "every attempt under way is held by exactly the slots of its block, by each once")
    _check_works(state, now_us)
    _check_outbox(state)
    _check_nodes(state)


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise InvariantViolation(promise)


def _check_slot(state: State, slot: Slot) -> None:
    states = Counter(replica.state for replica in slot.replicas.values())
    name = f"slot {slot.ref.node_id}.{slot.ref.index}"
    if slot.memory_bytes:
        _require(slot.used_bytes <= slot.memory_bytes, f"{name}: replicas stay within its memory")
    _require(states[ReplicaState.LOADING] <= 1, f"{name}: one load at a time")
    _require(states[ReplicaState.BUSY] <= 1, f"{name}: one attempt executes at a time")
    if slot.executing is None:
        _require(states[ReplicaState.BUSY] == 0, f"{name}: a busy replica executes something")
    else:
        work = state.works.get(slot.executing)
        _require(work is not None and slot.ref in gangs.block(work.slot, work.gang_size), f"{name}: what executes is under way, here")
        _require(states[ReplicaState.LOADING] == 0, f"{name}: nothing is loaded beside what executes")
        if work is not None and work.model is not None and work.assigned is not None and work.accepted_us >= 0:
            replica = slot.replicas.get(ReplicaKey(model_id=work.model.model_id, gang_size=work.gang_size))
            _require(replica is not None and replica.state is ReplicaState.BUSY, f"{name}: what executes has its replica")
    for replica in slot.replicas.values():
        _require(len(replica.adapters) <= limits.ADAPTERS_PER_REPLICA_MAX, f"{name}: {replica.model_id} holds a bounded number of adapters")
        names = {held.adapter_id for held in replica.adapters}
        _require(len(names) == len(replica.adapters), f"{name}: {replica.model_id} holds each adapter once")
    if slot.adapting is not None:
        adapted = slot.replicas.get(ReplicaKey(model_id=slot.adapting.model_id, gang_size=slot.adapting.gang_size))
        _require(adapted is not None and adapted.state is ReplicaState.WARM, f"{name}: what is adapted is resident and idle")
        _require(slot.executing is None and states[ReplicaState.LOADING] == 0, f"{name}: nothing else goes on beside an adaptation")
    if not slot.ready:
        _require(slot.adapting is None, f"{name}: a slot without a process adapts nothing")
        _require(not slot.replicas and slot.executing is None, f"{name}: a slot without a process holds nothing")
    waiting = set(slot.queue)
    _require(slot.queue == [key for key in state.works if key in waiting], f"{name}: its queue is in the order of arrival at the site")
    for key in slot.queue:
        work = state.works.get(key)
        _require(work is not None and slot.ref in gangs.block(work.slot, work.gang_size), f"{name}: what waits is under way, here")
        _require(work is not None and work.assigned is not None and work.model is not None, f"{name}: what waits was assigned")


def _check_works(state: State, now_us: int) -> None:
    for work in state.works.values():
        _require(work.key not in state.ended, f"attempt {work.key} ended and is never run again")
        _require(bool(ATTEMPT_TABLE[work.state]), f"attempt {work.key} is {work.state}: it is not under way any more")
        states = {slot.executing == work.key for slot in gangs.members(state, work)}
        _require(len(states) == 1, f"attempt {work.key} executes on all slots of its gang or on none")
        executing = states == {True}
        _require(executing or work.state is not AttemptState.STOPPING, f"attempt {work.key} stops at once while it does not execute")
        _require(work.accepted_us <= now_us, f"attempt {work.key} was accepted in the past")


def _check_outbox(state: State) -> None:
    seqs = list(state.outbox)
    if seqs:
        _require(seqs == list(range(seqs[0], seqs[0] + len(seqs))), "the outbox is dense")
        _require(seqs[-1] + 1 == state.next_event_seq, "the outbox ends before the next number")
    for seq, event in state.outbox.items():
        _require(event.seq == seq, f"event {seq} is filed under its own number")
        _require(event.key in state.ended, f"attempt {event.key} has an end to tell, so it ended")
        _require((event.manifest is not None) == (event.state is AttemptState.SUCCEEDED), f"event {seq}: a manifest means success")
    keys = Counter(event.key for event in state.outbox.values())
    _require(all(count == 1 for count in keys.values()), "no attempt has two ends")


def _check_nodes(state: State) -> None:
    for node in state.nodes.values():
        both = node.fetching.keys() & node.deleting.keys()
        _require(not both, f"node {node.node_id} does not fetch and delete {sorted(both)} at once")
    for node_id, model_id in state.ahead:
        _require(model_id in state.nodes[node_id].fetching, f"the fetch of {model_id} to {node_id} ahead of demand is under way")
    _require(len(state.ahead) <= FETCHES_AHEAD_MAX, "fetches ahead of demand stay within their limit")
    for node in state.nodes.values():
        unknown = [desired.model_id for desired in node.desired.values() if desired.model_id not in state.specs]
        _require(not unknown, f"node {node.node_id}: what is wanted is described: {unknown}")
