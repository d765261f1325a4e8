"""Copies ahead of demand: what the assignment wants to be resident, brought with what is idle.

Decides when a fetch, a staging or a load that no attempt waits for may begin, and that it yields: attempts first. Nothing gives way for a
copy but what the assignment names. Must not know why a copy is wanted, nor when it stops being worth it.
"""

from __future__ import annotations

from typing import Final

from agents.core import weights
from agents.core.context import Context
from agents.core.events import FetchYielded, HostMemoryChanged
from agents.core.outputs import DeleteWeights, EvictReplica, FetchWeights, LoadReplica, PinWeights, StageWeights, YieldFetch
from agents.core.state import Ahead, Node, Replica, ReplicaKey, Slot, State
from atoll.model.assignment import Assignment, CopyKey, DesiredReplica
from atoll.model.ids import ModelId, NodeId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier

# Fetches ahead of demand at a site at a time: the second fills the pauses of the first (digests, small files), a third only slows both.
FETCHES_AHEAD_MAX: Final = 2
# What failed is tried again after two minutes: a full disk or a broken file is seldom cured sooner, and nobody waits for it.
_PAUSE_US: Final = 120_000_000


# --- what is wanted -----------------------------------------------------------------------------------------------------------


def replace_all(ctx: Context, assignment: Assignment) -> None:
    """A snapshot: exactly these copies are wanted."""
    for node in ctx.state.nodes.values():
        if node.desired:
            node.desired = {}
            _changed(ctx, node)
    ctx.state.specs = {}
    _want(ctx, assignment)


def change(ctx: Context, assignment: Assignment) -> None:
    """A delta: these copies are wanted too, or no longer. What is no longer wanted stays where it is until something takes its place."""
    for gone in assignment.unwanted:
        node = ctx.state.nodes.get(gone.node_id)
        if node is not None and node.desired.pop(gone.key, None) is not None:
            _changed(ctx, node)
    _want(ctx, assignment)
    if assignment.unwanted:
        still = {desired.model_id for node in ctx.state.nodes.values() for desired in node.desired.values()}
        ctx.state.specs = {model_id: spec for model_id, spec in ctx.state.specs.items() if model_id in still}


def _want(ctx: Context, assignment: Assignment) -> None:
    models = {model.model_id: model for model in assignment.models}
    for desired in assignment.replicas:
        node = ctx.state.nodes.get(desired.node_id)
        model = models.get(desired.model_id)
        if node is None or (model is None and desired.model_id not in ctx.state.specs):
            ctx.notices.append(f"a copy of {desired.model_id} is wanted on {desired.node_id}, which is not described")
            continue
        if model is not None:
            ctx.state.specs[model.model_id] = model
        node.desired[desired.key] = desired
        ctx.state.leaving.pop(desired.model_id, None)
        _changed(ctx, node)


def _changed(ctx: Context, node: Node) -> None:
    ctx.state.pending[node.node_id] = None
    ctx.touch_node(node.node_id)


def pinned_in(node: Node, slot: Slot, key: ReplicaKey) -> bool:
    """Whether a copy in this slot is pinned there."""
    return any(node.desired[place].pin for place in _places(node, slot, key))


def _wanted_in(node: Node, slot: Slot, key: ReplicaKey) -> bool:
    return bool(_places(node, slot, key))


def _places(node: Node, slot: Slot, key: ReplicaKey) -> list[CopyKey]:
    if key.gang_size != 1:
        return []  # a desired copy is one that works alone
    places = [(node.node_id, Tier.GPU, index, key.model_id) for index in (slot.ref.index, None)]
    return [place for place in places if place in node.desired]


# --- what follows -------------------------------------------------------------------------------------------------------------


def advance(ctx: Context, touched: dict[NodeId, None]) -> None:
    """Begin what may begin. Called once per step, after the attempts had their turn; `touched`: nodes where something changed."""
    state = ctx.state
    for node_id in touched:
        if state.nodes[node_id].desired:
            state.pending[node_id] = None
    if not state.pending and not state.ahead:
        return
    if not touched and (due_us(state) or ctx.now_us + 1) > ctx.now_us:
        return
    busy = _attempts_fetch(state)
    if busy:
        _yield_all(ctx)
    for node_id in list(state.pending):
        node = state.nodes[node_id]
        _keep(ctx, node)
        node.paused = {key: until_us for key, until_us in node.paused.items() if until_us > ctx.now_us}
        if not _advance_node(ctx, node, busy):
            del state.pending[node_id]


def _attempts_fetch(state: State) -> bool:
    """Whether anything is being fetched that an attempt waits for."""
    quiet = (Ahead.QUIET, Ahead.YIELDING)
    return any(state.ahead.get((node.node_id, model_id)) not in quiet for node in state.nodes.values() for model_id in node.fetching)


def _yield_all(ctx: Context) -> None:
    for (node_id, model_id), told in ctx.state.ahead.items():
        if told is Ahead.QUIET:
            ctx.state.ahead[(node_id, model_id)] = Ahead.YIELDING
            ctx.commands.append(YieldFetch(node_id=node_id, model_id=model_id))


def _keep(ctx: Context, node: Node) -> None:
    """Tell the runtime what its caches must not drop, if that changed."""
    chosen = [desired for desired in node.desired.values() if desired.pin]
    disk = {desired.model_id: ctx.state.specs[desired.model_id].weights_digest for desired in chosen}
    # Copies wanted in memory stay there, pinned or not: else two of them would push each other out for ever.
    host = {desired.model_id for desired in node.desired.values() if desired.tier is Tier.HOST}
    pins = PinWeights(node_id=node.node_id, disk=tuple(sorted(disk.items())), host=tuple(sorted(host)))
    if pins != (node.pins or PinWeights(node_id=node.node_id)):
        node.pins = pins
        ctx.commands.append(pins)


def _advance_node(ctx: Context, node: Node, busy: bool) -> bool:
    """Whether some copy is still missing."""
    missing = False
    for desired in node.desired.values():
        model = ctx.state.specs[desired.model_id]
        if desired.model_id in ctx.state.leaving or _there(node, desired, model):
            continue
        missing = True
        if (desired.tier, desired.model_id) in node.paused:
            continue
        if not weights.at_hand(node, model):
            _fetch(ctx, node, desired, model, busy)
        elif desired.tier is Tier.HOST:
            _stage(ctx, node, model)
        elif desired.tier is Tier.GPU:
            _load(ctx, node, desired, model)
        elif not weights.on_disk(node, model):
            _fetch(ctx, node, desired, model, busy)  # in host memory only, which nothing but power keeps
    return missing


def _there(node: Node, desired: DesiredReplica, model: ModelSpec) -> bool:
    match desired.tier:
        case Tier.GPU:
            return any(weights.resident(slot, model) for slot in _slots(node, desired))
        case Tier.HOST:
            return node.host.get(model.model_id) == model.weights_digest
        case _:
            return weights.on_disk(node, model)


def _slots(node: Node, desired: DesiredReplica) -> list[Slot]:
    return [slot for slot in node.slots if desired.index in (None, slot.ref.index)]


def _fetch(ctx: Context, node: Node, desired: DesiredReplica, model: ModelSpec, busy: bool) -> None:
    """Fetch within the site's limit, unless attempts fetch, or there is no room and nothing that gives way."""
    state = ctx.state
    if busy or model.model_id in node.fetching or model.model_id in node.deleting or len(state.ahead) >= FETCHES_AHEAD_MAX:
        return
    coming = sum(other.weights_bytes for other in node.fetching.values())
    if node.disk_free_bytes - coming < model.weights_bytes:
        for victim in desired.evict if desired.tier is Tier.DISK else ():
            _make_room_on_disk(ctx, node, victim)
        return
    node.fetching[model.model_id] = model
    state.ahead[(node.node_id, model.model_id)] = Ahead.QUIET
    ctx.commands.append(FetchWeights(node_id=node.node_id, model=model, ahead=True, fetch_from=desired.fetch_from))
    state.dirty[node.node_id] = None


def _make_room_on_disk(ctx: Context, node: Node, model_id: ModelId) -> None:
    wanted = any(desired.model_id == model_id for desired in node.desired.values())
    needed = wanted or model_id in node.fetching or model_id in node.deleting
    if model_id in node.disk and not needed and not any(weights.uses(ctx, slot, model_id) for slot in node.slots):
        node.deleting[model_id] = None
        ctx.commands.append(DeleteWeights(node_id=node.node_id, model_id=model_id))


def _stage(ctx: Context, node: Node, model: ModelSpec) -> None:
    """Bring weights into host memory, one model at a time and while no slot of the node loads for an attempt."""
    if not ctx.state.host_tier or node.staging or any(slot.loading_for is not None for slot in node.slots):
        return
    node.staging[model.model_id] = None
    ctx.commands.append(StageWeights(node_id=node.node_id, model=model))


def _load(ctx: Context, node: Node, desired: DesiredReplica, model: ModelSpec) -> None:
    """Load into an idle slot with room; replicas that the assignment names give way first, if they are idle and not wanted there too."""
    idle = [slot for slot in _slots(node, desired) if slot.ready and not slot.occupied and not slot.queue]
    for slot in idle:
        if not slot.memory_bytes or slot.used_bytes + model.resident_bytes <= slot.memory_bytes:
            replica = Replica(
                model_id=model.model_id,
                state=ReplicaState.LOADING,
                memory_bytes=model.resident_bytes,
                weights_digest=model.weights_digest,
                ahead=True,
                load_from_us=ctx.now_us,
            )
            slot.replicas[replica.key] = replica
            ctx.commands.append(LoadReplica(slot=slot.ref, model=model))
            ctx.state.dirty[node.node_id] = None
            ctx.report_soon()
            return
    for slot in idle:
        victims = [key for key in slot.replicas if key.model_id in desired.evict and not _wanted_in(node, slot, key)]
        freed = sum(slot.replicas[victim].memory_bytes for victim in victims)
        if victims and slot.used_bytes - freed + model.resident_bytes <= slot.memory_bytes:
            for victim in victims:
                evict(ctx, slot, victim)
            return


def evict(ctx: Context, slot: Slot, key: ReplicaKey) -> None:
    """Unload a replica of a slot that does nothing."""
    slot.replicas[key] = slot.replicas[key].evicting()
    ctx.commands.append(EvictReplica(slot=slot.ref, model_id=key.model_id, gang_size=key.gang_size))
    ctx.state.dirty[slot.ref.node_id] = None


def give_way(node: Node, slot: Slot, wanted: ReplicaKey) -> list[ReplicaKey]:
    """What leaves a slot, if it must, for an attempt that does not name it: copies loaded ahead, unused and unpinned."""
    return [key for key, replica in slot.replicas.items() if replica.ahead and key != wanted and not pinned_in(node, slot, key)]


def make_way(ctx: Context, slot: Slot, more_bytes: int, wanted: ReplicaKey) -> None:
    """An attempt needs room that such copies hold, and there is enough of it: as many go as it takes."""
    lacking = slot.used_bytes + more_bytes - slot.memory_bytes
    for victim in give_way(ctx.node(slot.ref), slot, wanted):
        if lacking > 0:
            lacking -= slot.replicas[victim].memory_bytes
            evict(ctx, slot, victim)
    ctx.touch(slot)


def pause(ctx: Context, node: Node, tier: Tier, model_id: ModelId) -> None:
    """Bringing a copy failed: not again for a while."""
    for wanted in (tier, Tier.GPU, Tier.HOST) if tier is Tier.DISK else (tier,):
        node.paused[(wanted, model_id)] = ctx.now_us + _PAUSE_US


def due_us(state: State) -> int | None:
    """When something that failed may be tried again."""
    return min((until_us for node_id in state.pending for until_us in state.nodes[node_id].paused.values()), default=None)


# --- what the runtime says ----------------------------------------------------------------------------------------------------


def fetch_yielded(ctx: Context, event: FetchYielded) -> None:
    """A fetch made room on the link; attempts that came to wait for it meanwhile have it begun again at once."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None or node.fetching.pop(event.model_id, None) is None:
        return
    ctx.state.ahead.pop((event.node_id, event.model_id), None)
    ctx.touch_node(event.node_id)


def host_changed(ctx: Context, event: HostMemoryChanged) -> None:
    """What a node's host memory holds."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        return
    node.host = dict(event.models)
    for model_id in event.ended:
        node.staging.pop(model_id, None)
        if model_id not in node.host:
            pause(ctx, node, Tier.HOST, model_id)
    ctx.touch_node(event.node_id)
    for model_id in list(ctx.state.leaving):
        weights.settle_leaving(ctx, model_id)
