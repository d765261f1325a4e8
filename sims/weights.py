"""The disks and host memories of a simulated site: fetches, what yields, what is deleted, what stays in memory after an eviction.

Decides how commands about weights end, and when they fail. Nothing here gives way by itself: a full disk fails the fetch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from atoll.model.assignment import Sources
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import AdapterId, ModelId, NodeId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec
from atoll.physics.joint import FetchKey, JointFetches
from sims.checks import History
from sims.faults import Fault, Faults
from sims.truth import Truth
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

WeightsCommand = FetchWeights | YieldFetch | PinWeights | StageWeights | DeleteWeights

_FAILURE_US: Final = (50 * MILLISECOND_US, 3 * SECOND_US)
_STAGE_US: Final = (200 * MILLISECOND_US, 6 * SECOND_US)
# Models in the host memory of a node: few, so that some have to leave.
_HOST_MODELS: Final = 2
_WHOLE_PPM: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class Storage:
    """One node: what its disk and its memory hold, bytes and digest, and what is on its way."""

    pool: PoolSpec
    disk: dict[ModelId, tuple[int, str]] = field(default_factory=dict)
    fetching: dict[ModelId, Flight] = field(default_factory=dict)
    host: dict[ModelId, str] = field(default_factory=dict)
    pinned: frozenset[ModelId] = frozenset()

    def disk_free_bytes(self) -> int:
        """What is not taken."""
        return self.pool.node.disk_cache_bytes - sum(size for size, _ in self.disk.values())


class Disks(dict[SiteId, "SimWeights"]):
    """The weights of every site, and which fetches read those of others."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = JointFetches()
        self.adapters: dict[SiteId, Callable[[AdapterId], bool]] = {}  # which sites can give which

    def retime(self, keys: Iterable[FetchKey]) -> None:
        """These fetches take another time from now on."""
        for key in keys:
            self[key[0]].retimed(key, self.joint.whole_us(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A fetch under way: what of it was left when its time was last reckoned, in millionths, and what its whole takes since."""

    timer: Timer
    done: Callable[[], None]
    began_us: int
    since_us: int
    left_ppm: int
    whole_us: int


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
        disks[site_id] = self

    def perform(self, command: WeightsCommand) -> None:
        """Begin a command; the outcome comes through `say`."""
        node = self._nodes[command.node_id]
        match command:
            case FetchWeights():
                self._fetch(node, command)
            case YieldFetch():
                flight = node.fetching.pop(command.model_id, None)
                if flight is not None:
                    flight.timer.cancel()
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
            for model_id, flight in node.fetching.items():
                flight.timer.cancel()
                self._read_no_more(node_id, model_id)
            node.fetching.clear()
        self._serves = False
        self._interrupt(None)

    def agent_started(self) -> None:
        """An agent gives what is on the disks."""
        self._serves = True

    @property
    def serves(self) -> bool:
        """Whether others can read here."""
        return self._serves

    def gives(self, model_id: ModelId) -> bool:
        """Whether other sites can read a model here."""
        return self._serves and any(model_id in node.disk for node in self._nodes.values())

    def _interrupt(self, model_id: ModelId | None) -> None:
        """Who reads a model here (None: any) has to go on with its other sources."""
        self._disks.retime(self._disks.joint.lost(self._site_id, model_id))

    def _read_no_more(self, node_id: NodeId, model_id: ModelId) -> None:
        self._disks.retime(self._disks.joint.end((self._site_id, node_id, model_id)))

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
        near = command.fetch_from is None and any(other.disk.get(model.model_id) for other in self._nodes.values())
        elapsed_us = self._truth.copy_us(self._site_id, model) if near else self._truth.fetch_us(self._site_id, model)
        if self._faults.strikes(Fault.FETCH_FAILS):
            kind = self._random.choice((FailureKind.FETCH_FAILED, FailureKind.BAD_WEIGHTS, FailureKind.DISK_FULL))
            fail = partial(self._fail_fetch, command, kind)
            self._fly(node, model.model_id, self._random.randint(*_FAILURE_US), fail)
            return
        if command.fetch_from is not None:
            elapsed_us = self._read(command.node_id, model, command.fetch_from, elapsed_us)
        self._fly(node, model.model_id, elapsed_us, partial(self._fetched, node, command.node_id, model))

    def _fly(self, node: Storage, model_id: ModelId, whole_us: int, done: Callable[[], None]) -> None:
        timer, now_us = self._world.after(whole_us, done), self._world.now_us
        node.fetching[model_id] = Flight(timer=timer, done=done, began_us=now_us, since_us=now_us, left_ppm=_WHOLE_PPM, whole_us=whole_us)

    def _read(self, node_id: NodeId, model: ModelSpec, sources: Sources, origin_us: int) -> int:
        """How long a fetch takes from those of its sources that have the weights; microseconds."""
        found: dict[SiteId, int] = {}
        for peer in sources.peers:
            source = self._disks.get(peer.site_id)
            peer_us = self._truth.peer_us(peer.site_id, self._site_id, model) if source is not None else None
            if source is not None and peer_us is not None and source.gives(model.model_id):
                found[peer.site_id] = peer_us
        if not found:
            return origin_us
        names = " and ".join((*found, *(["the origin store"] if sources.origin_too else [])))
        self._world.note(self._site_id, f"fetches {model.model_id} from {names}")
        key, link = (self._site_id, node_id, model.model_id), self._truth.link_bytes_per_s(self._site_id)
        joint = self._disks.joint
        others = joint.begin(key, model.weights_bytes, found, origin_us, origin_too=sources.origin_too, link_bytes_per_s=link)
        self._disks.retime(others)
        return joint.whole_us(key)

    def retimed(self, key: FetchKey, whole_us: int) -> None:
        """A fetch under way shares its sources with others now, or no longer, or has lost one of them."""
        _, node_id, model_id = key
        node = self._nodes[node_id]
        flight = node.fetching.get(model_id)
        if flight is None:
            return
        flight.timer.cancel()
        if not self._disks.joint.reads_peers(key):
            self._world.note(self._site_id, f"goes on with the origin store for {model_id}")
        passed_ppm = (self._world.now_us - flight.since_us) * _WHOLE_PPM // max(flight.whole_us, 1)
        left_ppm = max(flight.left_ppm - passed_ppm, 0)
        timer = self._world.after(whole_us * left_ppm // _WHOLE_PPM, flight.done)
        node.fetching[model_id] = replace(flight, timer=timer, since_us=self._world.now_us, left_ppm=left_ppm, whole_us=whole_us)

    def _fetched(self, node: Storage, node_id: NodeId, model: ModelSpec) -> None:
        elapsed_us = self._world.now_us - node.fetching.pop(model.model_id).began_us
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
