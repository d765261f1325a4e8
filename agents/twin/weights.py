"""Weights at a twin: what its nodes hold on disk and in host memory, and what is on its way there.

Decides what a fetch, a staging, a deletion and a pin do to the caches of a node. Times come from the hidden truth of the world; must not
know slots or attempts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from agents.core.commands import WeightsCommand
from agents.core.events import (
    AdapterDeleted,
    AdapterFetched,
    AdapterFetchFailed,
    AgentEvent,
    FetchAdvanced,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    NodeMeasured,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import DeleteWeights, FetchAdapter, FetchWeights, PinWeights, StageWeights, YieldFetch
from agents.twin.fetches import Flight, TwinFetches
from agents.twin.holdings import Holding
from agents.twin.host_memory import HostMemory
from agents.twin.peers import TwinPeers
from agents.twin.timers import Timers
from agents.twin.truth import Truth
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import AdapterId, ModelId, NodeId
from atoll.model.modelspec import ModelSpec
from atoll.model.site import NodeSpec, SiteSpec
from atoll.model.words import size


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the weights of a twin need of it: its clock, how often progress is told, who hears events, which models slots use, who learns
    rates (of the origin)."""

    timers: Timers
    pace_us: Callable[[], int]
    tell: Callable[[AgentEvent], None]
    uses: Callable[[NodeId, ModelId], bool]
    learn_origin: Callable[[int], None]


@dataclass(slots=True, kw_only=True)
class _Storage:
    spec: NodeSpec
    host: HostMemory
    disk: OrderedDict[ModelId, tuple[int, str]] = field(default_factory=OrderedDict)  # bytes, digest; least recently used first
    adapters: OrderedDict[AdapterId, int] = field(default_factory=OrderedDict)  # bytes; least recently used first
    incoming: dict[str, int] = field(default_factory=dict)
    pinned: frozenset[ModelId] = frozenset()
    stagings: int = 0

    @property
    def disk_free_bytes(self) -> int:
        held = sum(size for size, _ in self.disk.values()) + sum(self.adapters.values()) + sum(self.incoming.values())
        return max(self.spec.disk_cache_bytes - held, 0)


class TwinWeights:
    """The disks and host memories of one twin."""

    def __init__(self, spec: SiteSpec, truth: Truth, surroundings: Surroundings, peers: TwinPeers) -> None:
        self._spec = spec
        self._peers = peers
        self._truth = truth
        self._around = surroundings
        timers, pace_us = surroundings.timers, surroundings.pace_us
        self._fetching = TwinFetches(timers, pace_us, done=self._fetched, came=self._came)
        self._copying = TwinFetches(timers, pace_us, done=self._copied, came=self._came)  # between nodes of the site
        self._fetches = 0
        self._nodes = {
            pool.node_id(index): _Storage(spec=pool.node, host=HostMemory(pool.node.host_memory_bytes))
            for pool in spec.pools
            for index in range(pool.nodes)
        }
        peers.join(spec.site_id, self)

    def hold(self, node_id: NodeId, holding: Holding) -> None:
        """A node has these from the beginning, as far as there is room."""
        node = self._nodes[node_id]
        for model in holding.disk:
            if node.disk_free_bytes >= model.weights_bytes:
                node.disk[model.model_id] = (model.weights_bytes, model.weights_digest)
        for model in holding.host:
            node.host.hold(model)

    @property
    def on_disk(self) -> tuple[tuple[NodeId, ModelId, str], ...]:
        """What disks hold, with digests."""
        held = ((node_id, model_id, digest) for node_id, node in self._nodes.items() for model_id, (_, digest) in node.disk.items())
        return tuple(held)

    def tell_held(self) -> None:
        """Tell what memories hold, and the room that is left, of nodes that hold anything."""
        for node_id, node in self._nodes.items():
            if node.host.models:
                self._tell_host(node_id)
            if node.host.models or node.disk:
                self._measure(node_id)

    def perform(self, command: WeightsCommand) -> None:
        """Begin a command."""
        node = self._nodes[command.node_id]
        match command:
            case FetchWeights():
                self._fetch(node, command)
            case YieldFetch():
                ways = (self._fetching, self._copying)
                if any(way.yields(command.node_id, command.model_id) for way in ways):
                    del node.incoming[command.model_id]
                    left = self._fetching.left(command.node_id, command.model_id)
                    self._peers.end((self._spec.site_id, command.node_id, command.model_id), left=left)
                    self._around.tell(FetchYielded(node_id=command.node_id, model_id=command.model_id))
                    self._measure(command.node_id)
            case PinWeights():
                node.pinned = frozenset(model_id for model_id, _ in command.disk)
                node.host.pinned = frozenset(command.host)
            case StageWeights():
                self._stage(node, command)
            case DeleteWeights():
                self._delete(node, command)
            case FetchAdapter():
                self._fetch_adapter(node, command)
            case _:
                assert_never(command)

    def begin_load(self, node_id: NodeId, model: ModelSpec) -> bool:
        """A slot loads a model: it counts as used. Whether it comes from host memory."""
        node = self._nodes[node_id]
        if model.model_id in node.disk:
            node.disk.move_to_end(model.model_id)
        return node.host.holds(model)

    def left_gpu(self, node_id: NodeId, model: ModelSpec) -> None:
        """A model was unloaded: its weights stay in host memory, if there is room."""
        if self._nodes[node_id].host.hold(model):
            self._tell_host(node_id)
            self._measure(node_id)

    def lose_memory(self, node_id: NodeId) -> None:
        """A node's host memory is empty: it lost its power."""
        if self._nodes[node_id].host.clear():
            self._tell_host(node_id)
            self._measure(node_id)

    def close(self) -> None:
        """Nothing comes any more."""
        self._peers.leave(self._spec.site_id)
        self._fetching.close()
        self._copying.close()

    # --- disk -----------------------------------------------------------------------------------------------------------------

    def _fetch(self, node: _Storage, command: FetchWeights) -> None:
        """Make room as a cache does, then share the way to the site with the other fetches."""
        model = command.model
        for held in [] if command.ahead else list(node.disk):
            if node.disk_free_bytes >= model.weights_bytes:
                break
            if held not in node.pinned and not self._around.uses(command.node_id, held):
                self._drop(node, held)
                self._around.tell(WeightsDeleted(node_id=command.node_id, model_id=held))
        if node.disk_free_bytes < model.weights_bytes:
            room = f"the disk of {command.node_id} has room for {size(node.disk_free_bytes)}"
            message = f"{model.model_id} has {size(model.weights_bytes)}, {room}"
            failure = Failure(kind=FailureKind.DISK_FULL, message=message)
            self._around.tell(FetchFailed(node_id=command.node_id, model_id=model.model_id, failure=failure))
            return
        self._begin(node, command, model.model_id, model.weights_bytes)

    def _begin(self, node: _Storage, command: FetchWeights | FetchAdapter, name: str, size_bytes: int) -> None:
        node.incoming[name] = size_bytes
        self._fetches += 1
        copied = isinstance(command, FetchWeights) and command.fetch_from is None and self.holds(command.model.model_id)
        rate = self._spec.lan_bytes_per_s if copied else min(self._spec.origin_bytes_per_s, self._spec.wan_bytes_per_s)
        key = f"{command.node_id}/{name}#{self._fetches}"
        alone_us, share = self._truth.fetch_us(size_bytes, rate, 0, self._spec.site_id, key), 1.0
        if isinstance(command, FetchWeights) and command.fetch_from is not None:
            here, model_id = self._spec.site_id, command.model.model_id
            named = [peer.site_id for peer in command.fetch_from.peers]
            found = {src: self._peers.fetch_us(self._truth, src, here, model_id, size_bytes, key) for src in named}
            giving = {src: peer_us for src, peer_us in found.items() if peer_us is not None}
            if giving:
                where, both = (here, command.node_id, model_id), command.fetch_from.origin_too
                left = self._fetching.left(command.node_id, model_id)
                alone_us = self._peers.begin(where, size_bytes, giving, alone_us, origin_too=both, left=left)
                share = self._peers.share(where)
        if isinstance(command, FetchAdapter) and command.fetch_from is not None:
            src = command.fetch_from.site_id
            alone_us = self._peers.adapter_us(self._truth, src, self._spec.site_id, command.adapter, key) or alone_us
        (self._copying if copied else self._fetching).begin(command, alone_us, share)

    def books(self) -> tuple[tuple[float, float], ...]:
        """Of the way to the site and of that between its nodes, `TwinFetches.books`."""
        return self._fetching.books(), self._copying.books()

    def held_bytes(self) -> dict[NodeId, int]:
        """What each node's disk holds, models and adapters."""
        return {node_id: sum(size for size, _ in node.disk.values()) + sum(node.adapters.values()) for node_id, node in self._nodes.items()}

    def held_models(self) -> tuple[tuple[NodeId, ModelId, int], ...]:
        """What disks hold of models, with bytes."""
        return tuple((node_id, model_id, size) for node_id, node in self._nodes.items() for model_id, (size, _) in node.disk.items())

    def holds(self, model_id: ModelId) -> bool:
        """Whether one of its disks has the model."""
        return any(model_id in node.disk for node in self._nodes.values())

    def holds_adapter(self, adapter_id: AdapterId) -> bool:
        """Whether one of its disks has the adapter."""
        return any(adapter_id in node.adapters for node in self._nodes.values())

    def retimed(self, node_id: NodeId, model_id: ModelId, whole_us: int, share: float) -> None:
        """Other fetches share the sources of one under way, or no longer do, or one of them has the weights no more."""
        self._fetching.retime(node_id, model_id, whole_us, share)

    def _drop(self, node: _Storage, model_id: ModelId) -> None:
        if node.disk.pop(model_id, None) is not None and not self.holds(model_id):
            self._peers.lost(self._spec.site_id, model_id)

    def _came(self, command: FetchWeights, done_bytes: int) -> None:
        self._around.tell(FetchAdvanced(node_id=command.node_id, model_id=command.model.model_id, bytes_done=done_bytes))

    def _copied(self, flight: Flight) -> None:
        """From another node of the site: what it took says nothing of the way to the origin."""
        self._arrived(flight)

    def _fetched(self, flight: Flight) -> None:
        command = flight.command
        model_id = command.model.model_id if isinstance(command, FetchWeights) else ModelId("")
        from_peer = self._peers.end((self._spec.site_id, command.node_id, model_id))
        size_bytes = self._arrived(flight)
        if size_bytes and not from_peer:
            self._around.learn_origin(size_bytes * 1_000_000 // max(flight.work_us, 1))

    def _arrived(self, flight: Flight) -> int:
        """The last byte has come; bytes of a model, 0 of an adapter."""
        command = flight.command
        node = self._nodes[command.node_id]
        if isinstance(command, FetchAdapter):
            self._fetched_adapter(node, command, flight)
            return 0
        model = command.model
        del node.incoming[model.model_id]
        node.disk[model.model_id] = (model.weights_bytes, model.weights_digest)
        elapsed_us = self._around.timers.now_us() - flight.began_us
        self._around.tell(
            WeightsFetched(
                node_id=command.node_id,
                model_id=model.model_id,
                weights_digest=model.weights_digest,
                bytes=model.weights_bytes,
                elapsed_us=elapsed_us,
            )
        )
        self._measure(command.node_id)
        return model.weights_bytes

    def _fetch_adapter(self, node: _Storage, command: FetchAdapter) -> None:
        """Other adapters make room, the least recently used first; models never do."""
        adapter = command.adapter
        while node.disk_free_bytes < adapter.weights_bytes and node.adapters:
            oldest, _ = node.adapters.popitem(last=False)
            self._around.tell(AdapterDeleted(node_id=command.node_id, adapter_id=oldest))
        if node.disk_free_bytes < adapter.weights_bytes:
            message = f"{adapter.adapter_id} has {size(adapter.weights_bytes)}, {command.node_id} has room for {size(node.disk_free_bytes)}"
            failure = Failure(kind=FailureKind.DISK_FULL, message=message)
            self._around.tell(AdapterFetchFailed(node_id=command.node_id, adapter_id=adapter.adapter_id, failure=failure))
            return
        self._begin(node, command, _incoming(adapter.adapter_id), adapter.weights_bytes)

    def _fetched_adapter(self, node: _Storage, command: FetchAdapter, flight: Flight) -> None:
        adapter = command.adapter
        del node.incoming[_incoming(adapter.adapter_id)]
        node.adapters[adapter.adapter_id] = adapter.weights_bytes
        self._around.tell(
            AdapterFetched(
                node_id=command.node_id,
                adapter_id=adapter.adapter_id,
                weights_digest=adapter.weights_digest,
                bytes=adapter.weights_bytes,
                elapsed_us=self._around.timers.now_us() - flight.began_us,
            )
        )
        self._measure(command.node_id)

    def use_adapter(self, node_id: NodeId, adapter_id: AdapterId) -> None:
        """A replica takes an adapter: its file counts as used."""
        if adapter_id in self._nodes[node_id].adapters:
            self._nodes[node_id].adapters.move_to_end(adapter_id)

    def _delete(self, node: _Storage, command: DeleteWeights) -> None:
        self._drop(node, command.model_id)
        self._fetching.forget(command.node_id, command.model_id)
        self._copying.forget(command.node_id, command.model_id)
        if node.host.drop(command.model_id):
            self._tell_host(command.node_id)
        self._around.tell(WeightsDeleted(node_id=command.node_id, model_id=command.model_id))
        self._measure(command.node_id)

    def _measure(self, node_id: NodeId) -> None:
        node = self._nodes[node_id]
        measured = NodeMeasured(
            node_id=node_id, host_free_bytes=node.host.free_bytes, disk_free_bytes=node.disk_free_bytes, gpu_free_bytes=()
        )
        self._around.tell(measured)

    # --- host memory ------------------------------------------------------------------------------------------------------------

    def _stage(self, node: _Storage, command: StageWeights) -> None:
        """Read the disk: the leg that a load from host memory saves."""
        node.stagings += 1
        key = f"{command.node_id}/{command.model.model_id}@{node.stagings}"
        disk = node.spec.disk_bytes_per_s
        staging_us = self._truth.stage_us(command.model, disk, disk, False, self._spec.site_id, key)
        self._around.timers.after(staging_us, partial(self._staged, node, command))

    def _staged(self, node: _Storage, command: StageWeights) -> None:
        if command.model.model_id in node.disk:
            node.host.hold(command.model)
        self._tell_host(command.node_id, command.model.model_id)
        self._measure(command.node_id)

    def _tell_host(self, node_id: NodeId, *ended: ModelId) -> None:
        self._around.tell(HostMemoryChanged(node_id=node_id, models=self._nodes[node_id].host.models, ended=ended))


def _incoming(adapter_id: AdapterId) -> str:
    return f"adapter {adapter_id}"  # models have names without spaces
