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


class SimWeights:
    """All nodes of one site."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        history: History,
        truth: Truth,
        site_id: SiteId,
        nodes: dict[NodeId, Storage],
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
                    self._say(FetchYielded(node_id=command.node_id, model_id=command.model_id))
            case PinWeights():
                node.pinned = frozenset((*command.host, *(model_id for model_id, _ in command.disk)))
            case StageWeights():
                self._world.after(self._random.randint(*_STAGE_US), partial(self._staged, node, command))
            case DeleteWeights():
                node.disk.pop(command.model_id, None)
                if node.host.pop(command.model_id, None) is not None:
                    self._tell_host(command.node_id)
                self._say(WeightsDeleted(node_id=command.node_id, model_id=command.model_id))
            case _:
                assert_never(command)

    def agent_died(self) -> None:
        """The agent's fetches end with it."""
        for node in self._nodes.values():
            for timer in node.fetching.values():
                timer.cancel()
            node.fetching.clear()

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
        node.fetching[model.model_id] = self._world.after(elapsed_us, partial(self._fetched, node, command.node_id, model, elapsed_us))

    def _fetched(self, node: Storage, node_id: NodeId, model: ModelSpec, elapsed_us: int) -> None:
        node.fetching.pop(model.model_id, None)
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
