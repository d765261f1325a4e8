"""Weights on the disks of nodes: fetched once per node and model however many attempts wait, deleted when they should leave.

Decides when a fetch begins and who fails with it. Which models stay on a full disk is the cache's business.
"""

from __future__ import annotations

from dataclasses import replace

from agents.core import attempts, residency
from agents.core.context import Context
from agents.core.events import FetchAdvanced, FetchFailed, WeightsDeleted, WeightsFetched
from agents.core.outputs import DeleteWeights, FetchWeights
from agents.core.state import Ahead, Node, ReplicaKey, Slot, Work
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier

_RESIDENT = (ReplicaState.LOADING, ReplicaState.WARM, ReplicaState.BUSY)


def on_disk(node: Node, model: ModelSpec) -> bool:
    """Whether the node's disk holds this very version of the model."""
    return node.disk.get(model.model_id) == model.weights_digest


def at_hand(node: Node, model: ModelSpec) -> bool:
    """Whether the node can load this very version without a fetch."""
    return on_disk(node, model) or node.host.get(model.model_id) == model.weights_digest


def resident(slot: Slot, model: ModelSpec, gang_size: int = 1) -> bool:
    """Whether the slot holds this version of the model for gangs of this size (1: alone), or will."""
    replica = slot.replicas.get(ReplicaKey(model_id=model.model_id, gang_size=gang_size))
    return replica is not None and replica.state in _RESIDENT and replica.weights_digest in ("", model.weights_digest)


def want(ctx: Context, slot: Slot, work: Work) -> None:
    """Have the weights for a waiting attempt fetched, unless they are at hand or on their way."""
    model = work.model
    node = ctx.node(slot.ref)
    if model is None or resident(slot, model, work.gang_size) or at_hand(node, model):
        return
    if ctx.state.ahead.get((node.node_id, model.model_id)) is Ahead.QUIET:
        ctx.state.ahead[(node.node_id, model.model_id)] = Ahead.JOINED
    if model.model_id not in node.fetching:
        if model.model_id in node.deleting:
            return
        node.fetching[model.model_id] = model
        fetch_from = work.assigned.fetch_from if work.assigned is not None else None
        ctx.commands.append(FetchWeights(node_id=node.node_id, model=model, fetch_from=fetch_from))
    if work.fetch_from_us < 0:
        attempts.advance_to(ctx, replace(work, fetch_from_us=ctx.now_us), AttemptState.FETCHING)


def _waiting(ctx: Context, node: Node, model_id: ModelId) -> list[Work]:
    """Attempts that wait for a fetch of the model to the node, each once."""
    found = {}
    for slot in node.slots:
        for key in slot.queue:
            work = ctx.state.works[key]
            if work.model is not None and work.model.model_id == model_id and not resident(slot, work.model, work.gang_size):
                found[key] = work
    return list(found.values())


def fetched(ctx: Context, event: WeightsFetched) -> None:
    """A node's disk holds a model now."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        ctx.notices.append(f"weights of {event.model_id} for unknown node {event.node_id}")
        return
    wanted = node.fetching.pop(event.model_id, None)
    node.fetched_bytes.pop(event.model_id, None)
    ctx.state.ahead.pop((event.node_id, event.model_id), None)
    node.disk[event.model_id] = event.weights_digest
    ctx.touch_node(event.node_id)
    if wanted is not None and wanted.weights_digest != event.weights_digest:
        message = f"asked for {event.model_id} {wanted.weights_digest}, got {event.weights_digest}"
        _fail_waiting(ctx, node, event.model_id, Failure(kind=FailureKind.BAD_WEIGHTS, message=message))
        return
    for work in _waiting(ctx, node, event.model_id):
        if work.fetch_from_us >= 0:
            ctx.state.works[work.key] = replace(work, fetch_us=ctx.now_us - work.fetch_from_us)


def fetch_failed(ctx: Context, event: FetchFailed) -> None:
    """A fetch ended without the weights: every attempt that waited for it fails."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None or node.fetching.pop(event.model_id, None) is None:
        ctx.notices.append(f"failed fetch of {event.model_id} to {event.node_id} that was not asked for: {event.failure.message}")
        return
    node.fetched_bytes.pop(event.model_id, None)
    ctx.touch_node(event.node_id)
    if ctx.state.ahead.pop((event.node_id, event.model_id), None) is not None:
        # Nothing gave way for it: an attempt that joined it has it fetched anew, in its own right.
        residency.pause(ctx, node, Tier.DISK, event.model_id)
        return
    _fail_waiting(ctx, node, event.model_id, event.failure)


def fetch_advanced(ctx: Context, event: FetchAdvanced) -> None:
    """Some of a fetch has come: told with the next regular report."""
    node = ctx.state.nodes.get(event.node_id)
    if node is not None and event.model_id in node.fetching:
        node.fetched_bytes[event.model_id] = max(event.bytes_done, node.fetched_bytes.get(event.model_id, 0))
        ctx.state.dirty[event.node_id] = None


def _fail_waiting(ctx: Context, node: Node, model_id: ModelId, failure: Failure) -> None:
    for work in _waiting(ctx, node, model_id):
        attempts.end(ctx, work, AttemptState.FAILED, failure=failure)


def deleted(ctx: Context, event: WeightsDeleted) -> None:
    """A node's disk no longer holds a model: asked for, or to make room for another."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        return
    node.disk.pop(event.model_id, None)
    node.deleting.pop(event.model_id, None)
    ctx.touch_node(event.node_id)
    settle_leaving(ctx, event.model_id)


def delete_leaving(ctx: Context, node: Node) -> None:
    """Delete from a node's disk what should leave and is not needed there any more."""
    for model_id in ctx.state.leaving:
        held = model_id in node.disk or model_id in node.host
        there = held and model_id not in node.fetching and model_id not in node.deleting
        if there and not any(uses(ctx, slot, model_id) for slot in node.slots):
            node.deleting[model_id] = None
            ctx.commands.append(DeleteWeights(node_id=node.node_id, model_id=model_id))


def uses(ctx: Context, slot: Slot, model_id: ModelId) -> bool:
    """Whether a slot holds the model, or an attempt that waits for it will."""
    return slot.holds(model_id) or needs(ctx, slot, model_id)


def needs(ctx: Context, slot: Slot, model_id: ModelId) -> bool:
    """Whether an attempt that waits for the slot runs on the model."""
    models = (ctx.state.works[key].model for key in slot.queue)
    return any(model is not None and model.model_id == model_id for model in models)


def settle_leaving(ctx: Context, model_id: ModelId) -> None:
    """A model that is nowhere any more has left."""
    state = ctx.state
    if model_id in state.leaving:
        on_nodes = any(model_id in held for node in state.nodes.values() for held in (node.disk, node.fetching, node.host))
        if not on_nodes and not any(slot.holds(model_id) for slot in state.slots.values()):
            del state.leaving[model_id]
