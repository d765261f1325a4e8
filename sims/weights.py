"""The disks and host memories of a simulated site: fetches, what yields, what is deleted, what stays in memory after an eviction.

Decides how commands about weights end, and when they fail. Nothing here gives way by itself: a full disk fails the fetch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from agents.core.events import (
    AgentEvent,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import DeleteWeights, FetchWeights, PinWeights, StageWeights, YieldFetch
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import ModelId, NodeId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec
from sims.checks import History
from sims.faults import Fault, Faults
from sims.truth import Truth
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

Disks = dict[SiteId, "SimWeights"]
WeightsCommand = FetchWeights | YieldFetch | PinWeights | StageWeights | DeleteWeights

_FAILURE_US: Final = (50 * MILLISECOND_US, 3 * SECOND_US)
_STAGE_US: Final = (200 * MILLISECOND_US, 6 * SECOND_US)
# Models in the host memory of a node: few, so that some have to leave.
_HOST_MODELS: Final = 2


@dataclass(slots=True, kw_only=True)
class Storage:
    """One node: what its disk and its memory hold, bytes and digest, and what is on its way."""

    pool: PoolSpec
    disk: dict[ModelId, tuple[int, str]] = field(default_factory=dict)
    fetching: dict[ModelId, Timer] = field(default_factory=dict)
    host: dict[ModelId, str] = field(default_factory=dict)
    pinned: frozenset[ModelId] = frozenset()

    def disk_free_bytes(self) -> int:
        """What is not taken."""
        return self.pool.node.disk_cache_bytes - sum(size for size, _ in self.disk.values())


# Who reads what of another site: site, node and model.
Reading = tuple[SiteId, NodeId, ModelId]


class SimWeights:
    """All nodes of one site. `disks`: those of every site, this one's included."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        history: History,
        truth: Truth,
        site_id: SiteId,
        nodes: dict[NodeId, Storage],
        disks: Disks,
        chance: random.Random,
        say: Callable[[AgentEvent], None],
    ) -> None:
        self._world = world
        self._faults = faults
        self._history = history
        self._truth = truth
        self._site_id = site_id
        self._nodes = nodes
        self._random = chance
        self._say = say
        self._disks = disks
        self._serves = False  # its agent runs
        self._readers: dict[Reading, Callable[[], None]] = {}  # what other sites read here, and what they do when it ends
        disks[site_id] = self

    def perform(self, command: WeightsCommand) -> None:
        """Begin a command; the outcome comes through `say`."""
        node = self._nodes[command.node_id]
        match command:
            case FetchWeights():
                self._fetch(node, command)
            case YieldFetch():
                timer = node.fetching.pop(command.model_id, None)
                if timer is not None:
                    timer.cancel()
                    self._read_no_more(command.node_id, command.model_id)
                    self._say(FetchYielded(node_id=command.node_id, model_id=command.model_id))
            case PinWeights():
                node.pinned = frozenset((*command.host, *(model_id for model_id, _ in command.disk)))
            case StageWeights():
                self._world.after(self._random.randint(*_STAGE_US), partial(self._staged, node, command))
            case DeleteWeights():
                node.disk.pop(command.model_id, None)
                if not self.gives(command.model_id):
                    self._interrupt(command.model_id)
                if node.host.pop(command.model_id, None) is not None:
                    self._tell_host(command.node_id)
                self._say(WeightsDeleted(node_id=command.node_id, model_id=command.model_id))
            case _:
                assert_never(command)

    def agent_died(self) -> None:
        """The agent's fetches end with it, and what others read here."""
        for node_id, node in self._nodes.items():
            for model_id, timer in node.fetching.items():
                timer.cancel()
                self._read_no_more(node_id, model_id)
            node.fetching.clear()
        self._serves = False
        self._interrupt(None)

    def agent_started(self) -> None:
        """An agent gives what is on the disks."""
        self._serves = True

    def gives(self, model_id: ModelId) -> bool:
        """Whether other sites can read a model here."""
        return self._serves and any(model_id in node.disk for node in self._nodes.values())

    def _interrupt(self, model_id: ModelId | None) -> None:
        """Who reads a model here (None: any) has to go on elsewhere."""
        for reading in [reading for reading in self._readers if model_id in (None, reading[2])]:
            self._readers.pop(reading)()

    def _read_no_more(self, node_id: NodeId, model_id: ModelId) -> None:
        for other in self._disks.values():
            other._readers.pop((self._site_id, node_id, model_id), None)

    def power_lost(self, *, disk_lost: bool) -> None:
        """Nothing is in memory any more."""
        for node in self._nodes.values():
            node.host.clear()
            if disk_lost:
                node.disk.clear()

    def left_gpu(self, node_id: NodeId, model_id: ModelId) -> None:
        """A model was unloaded: its weights stay in host memory."""
        node = self._nodes[node_id]
        held = node.disk.get(model_id)
        if held is not None:
            self._hold(node, model_id, held[1])
            self._tell_host(node_id)

    def _hold(self, node: Storage, model_id: ModelId, digest: str) -> None:
        node.host.pop(model_id, None)
        node.host[model_id] = digest
        for oldest in [oldest for oldest in node.host if oldest not in node.pinned]:
            if len(node.host) > _HOST_MODELS:
                del node.host[oldest]

    def _staged(self, node: Storage, command: StageWeights) -> None:
        held = node.disk.get(command.model.model_id)
        if held is not None and held[1] == command.model.weights_digest:
            self._hold(node, command.model.model_id, held[1])
        self._tell_host(command.node_id, command.model.model_id)

    def _tell_host(self, node_id: NodeId, *ended: ModelId) -> None:
        models = tuple(self._nodes[node_id].host.items())
        self._say(HostMemoryChanged(node_id=node_id, models=models, ended=ended))

    def _fetch(self, node: Storage, command: FetchWeights) -> None:
        model = command.model
        if model.model_id in node.fetching:
            self._history.fail(f"{self._site_id} was told to fetch {model.model_id} to {command.node_id} twice at once")
        if node.disk_free_bytes() < model.weights_bytes:
            self._fail_fetch(command, FailureKind.DISK_FULL)
            return
        near = any(other.disk.get(model.model_id) for other in self._nodes.values())
        elapsed_us = self._truth.copy_us(self._site_id, model) if near else self._truth.fetch_us(self._site_id, model)
        if self._faults.strikes(Fault.FETCH_FAILS):
            kind = self._random.choice((FailureKind.FETCH_FAILED, FailureKind.BAD_WEIGHTS, FailureKind.DISK_FULL))
            fail = partial(self._fail_fetch, command, kind)
            node.fetching[model.model_id] = self._world.after(self._random.randint(*_FAILURE_US), fail)
            return
        source = self._disks.get(command.fetch_from.site_id) if command.fetch_from is not None and not near else None
        if source is not None and source.gives(model.model_id):
            peer_us = self._truth.peer_us(source._site_id, self._site_id, model)
            if peer_us is not None:
                self._world.note(self._site_id, f"fetches {model.model_id} from {source._site_id}")
                elsewhere = partial(self._go_on, node, command.node_id, model, self._world.now_us, peer_us, elapsed_us)
                source._readers[self._site_id, command.node_id, model.model_id] = elsewhere
                elapsed_us = peer_us
        node.fetching[model.model_id] = self._world.after(elapsed_us, partial(self._fetched, node, command.node_id, model, elapsed_us))

    def _go_on(self, node: Storage, node_id: NodeId, model: ModelSpec, since_us: int, peer_us: int, origin_us: int) -> None:
        """The peer is gone in the middle of a fetch: the rest comes from the origin store."""
        timer = node.fetching.pop(model.model_id, None)
        if timer is None:
            return
        timer.cancel()
        passed_us = self._world.now_us - since_us
        left_us = origin_us * max(peer_us - passed_us, 0) // max(peer_us, 1)
        self._world.note(self._site_id, f"goes on with the origin store for {model.model_id}")
        node.fetching[model.model_id] = self._world.after(left_us, partial(self._fetched, node, node_id, model, passed_us + left_us))

    def _fetched(self, node: Storage, node_id: NodeId, model: ModelSpec, elapsed_us: int) -> None:
        node.fetching.pop(model.model_id, None)
        self._read_no_more(node_id, model.model_id)
        node.disk[model.model_id] = (model.weights_bytes, model.weights_digest)
        self._say(
            WeightsFetched(
                node_id=node_id,
                model_id=model.model_id,
                weights_digest=model.weights_digest,
                bytes=model.weights_bytes,
                elapsed_us=elapsed_us,
            )
        )

    def _fail_fetch(self, command: FetchWeights, kind: FailureKind) -> None:
        self._nodes[command.node_id].fetching.pop(command.model.model_id, None)
        failure = Failure(kind=kind, message=f"simulated: {kind}")
        self._say(FetchFailed(node_id=command.node_id, model_id=command.model.model_id, failure=failure))
