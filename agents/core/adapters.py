"""Adapters: fetched to a node's disk beside the weights, and loaded on a resident replica before an attempt that uses them runs.

Decides what a replica should hold for the attempt at hand, and which other adapters give way. Which of those that are loaded take
part in a generation, and how strongly, is said with the generation. Must not know how an adapter is loaded.
"""

from __future__ import annotations

from dataclasses import replace

from agents.core import attempts, residency, weights
from agents.core.context import Context
from agents.core.events import AdapterDeleted, AdapterFetched, AdapterFetchFailed, ReplicaAdapted, ReplicaAdaptFailed
from agents.core.outputs import AdaptReplica, FetchAdapter
from agents.core.state import LoadedAdapter, Node, Replica, ReplicaKey, Slot, Work
from atoll.model import limits
from atoll.model.adapter import AdapterSpec
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import AdapterId
from atoll.model.words import size


def on_disk(node: Node, adapter: AdapterSpec) -> bool:
    """Whether the node's disk holds this very version of the adapter."""
    return node.disk_adapters.get(adapter.adapter_id) == adapter.weights_digest


def key_of(told: AdaptReplica | ReplicaAdapted | ReplicaAdaptFailed) -> ReplicaKey:
    """Which replica of the slot is meant."""
    return ReplicaKey(model_id=told.model_id, gang_size=told.gang_size)


def lacking(slot: Slot, work: Work) -> list[AdapterSpec]:
    """What the attempt uses and its replica in the slot does not hold, in the attempt's order."""
    model = work.model
    if not work.adapters or model is None:
        return []
    wanted = ReplicaKey(model_id=model.model_id, gang_size=work.gang_size)
    replica = slot.replicas.get(wanted) if weights.resident(slot, model, work.gang_size) else None
    held = {one.adapter_id: one.weights_digest for one in replica.adapters} if replica is not None else {}
    return [adapter for adapter in work.adapters if held.get(adapter.adapter_id) not in ("", adapter.weights_digest)]


def want(ctx: Context, slot: Slot, work: Work) -> None:
    """Have the adapters for a waiting attempt fetched, unless they are at hand or on their way."""
    node = ctx.node(slot.ref)
    for adapter in lacking(slot, work):
        if on_disk(node, adapter):
            continue
        if adapter.adapter_id not in node.fetching_adapters:
            node.fetching_adapters[adapter.adapter_id] = adapter
            told = work.assigned.adapters_from if work.assigned is not None else ()
            peer = next((one.peer for one in told if one.adapter_id == adapter.adapter_id), None)
            ctx.commands.append(FetchAdapter(node_id=node.node_id, adapter=adapter, fetch_from=peer))
        attempts.advance_to(ctx, work, AttemptState.FETCHING)


def adapt(ctx: Context, slot: Slot, work: Work, replica: Replica, missing: list[AdapterSpec]) -> bool:
    """Have a resident replica take what the head of the queue lacks, once it is on disk. True: the attempt ended instead.

    What that takes is measured from here on, fetches that are not over included: nothing else keeps the attempt from running.
    """
    if work.lacking_from_us < 0:
        work = ctx.state.works[work.key] = replace(work, lacking_from_us=ctx.now_us)
    if not all(on_disk(ctx.node(slot.ref), adapter) for adapter in missing):
        return False
    new = {adapter.adapter_id for adapter in missing}
    used = {adapter.adapter_id for adapter in work.adapters}
    # Another version under a name that is wanted goes; of the rest, least recently used first, as many as must.
    unload = [held for held in replica.adapters if held.adapter_id in new]
    idle = [held for held in replica.adapters if held.adapter_id not in used]
    count = len(replica.adapters) - len(unload) + len(missing)
    more_bytes = sum(adapter.weights_bytes for adapter in missing) - sum(held.weights_bytes for held in unload)
    while idle and (count > limits.ADAPTERS_PER_REPLICA_MAX or _too_large(slot, more_bytes)):
        gone = idle.pop(0)
        unload.append(gone)
        count -= 1
        more_bytes -= gone.weights_bytes
    unsized = [held for held in unload if not held.weights_bytes]
    if _too_large(slot, more_bytes) and unsized:
        # Found after a restart: what they free is known once they are gone, and then the rest is looked at again.
        missing, unload, more_bytes = [], unsized, 0
    if _too_large(slot, more_bytes):
        room_bytes = sum(slot.replicas[key].memory_bytes for key in residency.give_way(ctx.node(slot.ref), slot, replica.key))
        if slot.used_bytes - room_bytes + more_bytes <= slot.memory_bytes:
            residency.make_way(ctx, slot, more_bytes, replica.key)
            return False
        message = f"the adapters need {size(more_bytes)} more; of the slot's {size(slot.memory_bytes)} are taken: {size(slot.used_bytes)}"
        attempts.end(ctx, work, AttemptState.REFUSED, failure=Failure(kind=FailureKind.REFUSED, message=message))
        return True
    command = AdaptReplica(
        slot=slot.ref,
        model_id=replica.model_id,
        adapters=tuple(missing),
        unload=tuple(held.adapter_id for held in unload),
        gang_size=replica.gang_size,
    )
    slot.adapting, slot.loading_for = command, work.key
    slot.replicas[replica.key] = replace(replica, memory_bytes=max(replica.memory_bytes + more_bytes, 0))
    from_us = work.adapt_from_us if work.adapt_from_us >= 0 else ctx.now_us
    attempts.advance_to(ctx, replace(work, adapt_from_us=from_us), AttemptState.LOADING)
    ctx.commands.append(command)
    ctx.touch(slot)
    return False


def _too_large(slot: Slot, more_bytes: int) -> bool:
    return bool(slot.memory_bytes) and slot.used_bytes + more_bytes > slot.memory_bytes


def use(replica: Replica, work: Work) -> Replica:
    """The replica with the attempt's adapters as the last used."""
    used = {adapter.adapter_id for adapter in work.adapters}
    if not used:
        return replica
    idle = tuple(held for held in replica.adapters if held.adapter_id not in used)
    return replace(replica, adapters=idle + tuple(held for held in replica.adapters if held.adapter_id in used))


# --- what the runtime says ----------------------------------------------------------------------------------------------------


def fetched(ctx: Context, event: AdapterFetched) -> None:
    """A node's disk holds an adapter now."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        ctx.notices.append(f"adapter {event.adapter_id} for unknown node {event.node_id}")
        return
    wanted = node.fetching_adapters.pop(event.adapter_id, None)
    node.disk_adapters[event.adapter_id] = event.weights_digest
    ctx.touch_node(event.node_id)
    if wanted is not None and wanted.weights_digest != event.weights_digest:
        message = f"asked for adapter {event.adapter_id} {wanted.weights_digest}, got {event.weights_digest}"
        _fail_waiting(ctx, node, wanted, Failure(kind=FailureKind.BAD_WEIGHTS, message=message))
        return


def fetch_failed(ctx: Context, event: AdapterFetchFailed) -> None:
    """A fetch ended without the adapter: every attempt that waited for it fails."""
    node = ctx.state.nodes.get(event.node_id)
    wanted = node.fetching_adapters.pop(event.adapter_id, None) if node is not None else None
    if node is None or wanted is None:
        ctx.notices.append(f"failed fetch of adapter {event.adapter_id} to {event.node_id} that was not asked for: {event.failure.message}")
        return
    ctx.touch_node(event.node_id)
    _fail_waiting(ctx, node, wanted, event.failure)


def deleted(ctx: Context, event: AdapterDeleted) -> None:
    """A node's disk no longer holds an adapter: it made room for another, or was damaged."""
    node = ctx.state.nodes.get(event.node_id)
    if node is not None and node.disk_adapters.pop(event.adapter_id, None) is not None:
        ctx.touch_node(event.node_id)


def _waiting(ctx: Context, node: Node, adapter_id: AdapterId, digest: str) -> list[Work]:
    """Attempts that wait for this version of the adapter on the node, each once."""
    found = {}
    for slot in node.slots:
        for key in slot.queue:
            work = ctx.state.works[key]
            if any(one.adapter_id == adapter_id and one.weights_digest == digest for one in lacking(slot, work)):
                found[key] = work
    return list(found.values())


def _fail_waiting(ctx: Context, node: Node, adapter: AdapterSpec, failure: Failure) -> None:
    for work in _waiting(ctx, node, adapter.adapter_id, adapter.weights_digest):
        attempts.end(ctx, work, AttemptState.FAILED, failure=failure)


def adapted(ctx: Context, event: ReplicaAdapted) -> None:
    """A replica holds exactly these adapters now."""
    settled = _settle(ctx, event)
    if settled is None:
        return
    slot, order, work = settled
    absent = [adapter.adapter_id for adapter in order.adapters if adapter.adapter_id not in event.adapters] if order is not None else []
    if work is None:
        return
    work = replace(work, adapt_us=ctx.now_us - work.lacking_from_us)
    ctx.state.works[work.key] = work
    if absent:
        failure = Failure(kind=FailureKind.INTERNAL, message=f"slot {slot.ref.index} took the order and lacks {', '.join(absent)}")
        attempts.end(ctx, work, AttemptState.FAILED, failure=failure)


def adapt_failed(ctx: Context, event: ReplicaAdaptFailed) -> None:
    """A replica could not take an adapter, and is as usable as before: the attempt that it was for fails."""
    settled = _settle(ctx, event)
    work = settled[2] if settled is not None else None
    if work is not None:
        attempts.end(ctx, replace(work, adapt_us=ctx.now_us - work.lacking_from_us), AttemptState.FAILED, failure=event.failure)


def _settle(ctx: Context, event: ReplicaAdapted | ReplicaAdaptFailed) -> tuple[Slot, AdaptReplica | None, Work | None] | None:
    """Believe what the replica holds; (slot, the order if it was one of this life, the attempt that it was for, if that still waits)."""
    slot = ctx.state.slots.get(event.slot)
    replica = slot.replicas.get(key_of(event)) if slot is not None else None
    if slot is None or replica is None:
        ctx.notices.append(f"{event.model_id} was adapted in {event.slot}, where it is not")
        return None
    order, work = slot.adapting, None
    if order is not None and key_of(order) == replica.key:
        key, slot.adapting, slot.loading_for = slot.loading_for, None, None
        work = ctx.state.works.get(key) if key is not None else None
    else:
        order = None  # asked for before a restart
    known = {held.adapter_id: held for held in replica.adapters}
    for adapter in order.adapters if order is not None else ():
        known[adapter.adapter_id] = LoadedAdapter(
            adapter_id=adapter.adapter_id, weights_digest=adapter.weights_digest, weights_bytes=adapter.weights_bytes
        )
    held = [one for one in known.values() if one.adapter_id in event.adapters]
    held += [LoadedAdapter(adapter_id=adapter_id) for adapter_id in event.adapters if adapter_id not in known]
    others = slot.used_bytes - replica.memory_bytes
    memory = min(event.memory_bytes, max(slot.memory_bytes - others, 0)) if slot.memory_bytes else event.memory_bytes
    slot.replicas[replica.key] = replace(replica, adapters=tuple(held), memory_bytes=memory)
    ctx.touch(slot)
    ctx.report_soon()
    return slot, order, work
