"""Adapters at a simulated site: fetched to the disks of its nodes, put on idle replicas, lost with processes and disks.

Decides how commands about adapters end, and when they fail. Which adapters a slot's replicas hold is kept with the slot.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from agents.core.events import AdapterFetched, AdapterFetchFailed, AgentEvent, ReplicaAdapted, ReplicaAdaptFailed
from agents.core.outputs import AdaptReplica, FetchAdapter
from atoll.model.adapter import AdapterSpec
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import AdapterId, NodeId, SiteId
from sims.checks import History
from sims.faults import Fault, Faults
from sims.truth import Truth
from sims.weights import Disks
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

_FAILURE_US: Final = (50 * MILLISECOND_US, 3 * SECOND_US)

Held = dict[AdapterId, int]  # bytes


class SimAdapters:
    """The adapters of one site. Files are few and small: they take no part in the room of its disks."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        history: History,
        truth: Truth,
        site_id: SiteId,
        chance: random.Random,
        say: Callable[[AgentEvent], None],
        disks: Disks,
    ) -> None:
        self._elsewhere = disks
        disks.adapters[site_id] = lambda name: any(name in held for held in self._disks.values())
        self._world = world
        self._faults = faults
        self._history = history
        self._truth = truth
        self._site_id = site_id
        self._random = chance
        self._say = say
        self._disks: dict[NodeId, dict[AdapterId, str]] = {}
        self._fetching: dict[tuple[NodeId, AdapterId], Timer] = {}

    def on_disk(self) -> tuple[tuple[NodeId, AdapterId, str], ...]:
        """What an agent finds."""
        return tuple((node_id, name, digest) for node_id, held in self._disks.items() for name, digest in held.items())

    def fetch(self, command: FetchAdapter) -> None:
        """From the origin to a node's disk."""
        adapter, node_id = command.adapter, command.node_id
        key = (node_id, adapter.adapter_id)
        if key in self._fetching:
            self._history.fail(f"{self._site_id} was told to fetch adapter {adapter.adapter_id} to {node_id} twice at once")
        if self._faults.strikes(Fault.FETCH_FAILS):
            kind = self._random.choice((FailureKind.FETCH_FAILED, FailureKind.BAD_WEIGHTS, FailureKind.DISK_FULL))
            self._fetching[key] = self._world.after(self._random.randint(*_FAILURE_US), partial(self._fetch_failed, command, kind))
            return
        peer_us = self._peer_us(command.fetch_from.site_id, adapter) if command.fetch_from is not None else None
        elapsed_us = peer_us or self._truth.adapter_fetch_us(self._site_id, adapter)
        self._fetching[key] = self._world.after(elapsed_us, partial(self._fetched, command, elapsed_us))

    def _peer_us(self, src: SiteId, adapter: AdapterSpec) -> int | None:
        """How long an adapter takes from another site; None: it cannot be had there."""
        weights, has = self._elsewhere.get(src), self._elsewhere.adapters.get(src)
        if weights is None or has is None or not weights.serves or not has(adapter.adapter_id):
            return None
        elapsed_us = self._truth.adapter_peer_us(src, self._site_id, adapter)
        if elapsed_us is not None:
            self._world.note(self._site_id, f"fetches adapter {adapter.adapter_id} from {src}")
        return elapsed_us

    def _fetched(self, command: FetchAdapter, elapsed_us: int) -> None:
        adapter, node_id = command.adapter, command.node_id
        del self._fetching[(node_id, adapter.adapter_id)]
        self._disks.setdefault(node_id, {})[adapter.adapter_id] = adapter.weights_digest
        self._say(
            AdapterFetched(
                node_id=node_id,
                adapter_id=adapter.adapter_id,
                weights_digest=adapter.weights_digest,
                bytes=adapter.weights_bytes,
                elapsed_us=elapsed_us,
            )
        )

    def _fetch_failed(self, command: FetchAdapter, kind: FailureKind) -> None:
        del self._fetching[(command.node_id, command.adapter.adapter_id)]
        failure = Failure(kind=kind, message=f"simulated: {kind}")
        self._say(AdapterFetchFailed(node_id=command.node_id, adapter_id=command.adapter.adapter_id, failure=failure))

    def adapt(self, command: AdaptReplica, held: Held, base_bytes: int, room_bytes: int, done: Callable[[int], None]) -> Timer:
        """Put adapters on a replica that holds `held`, and take others off; `done` hears what the replica takes of the slot then.

        The base takes `base_bytes`; `room_bytes` is what all other replicas leave of the slot.
        """
        missing = [one.adapter_id for one in command.adapters if one.adapter_id not in self._disks.get(command.slot.node_id, {})]
        if missing:
            self._history.fail(f"{self._site_id} was told to load {missing}, which are not on the disk of {command.slot.node_id}")
        new = {name: size for name, size in held.items() if name not in command.unload}
        kind: FailureKind | None = None
        if self._faults.strikes(Fault.OUT_OF_MEMORY):
            kind = self._random.choice((FailureKind.OUT_OF_MEMORY, FailureKind.BAD_INPUT))
        else:
            new |= {one.adapter_id: one.weights_bytes for one in command.adapters}
        size = base_bytes + sum(new.values())
        if size > room_bytes:
            self._history.overcommitted(self._site_id, command.slot, command.model_id)
            new = {name: size for name, size in held.items() if name not in command.unload}
            size, kind = base_bytes + sum(new.values()), FailureKind.OUT_OF_MEMORY
        elapsed_us = self._truth.adapt_us(self._site_id, command.adapters)

        def over() -> None:
            held.clear()
            held.update(new)
            done(size)
            self._say(_told(command, tuple(sorted(held)), size, elapsed_us, kind))

        return self._world.after(elapsed_us, over)

    def agent_died(self) -> None:
        """The agent's fetches end with it."""
        for timer in self._fetching.values():
            timer.cancel()
        self._fetching.clear()

    def disks_lost(self) -> None:
        """Nothing is left of what was fetched."""
        self._disks.clear()


def _told(
    command: AdaptReplica, held: tuple[AdapterId, ...], size: int, elapsed_us: int, kind: FailureKind | None
) -> ReplicaAdapted | ReplicaAdaptFailed:
    slot, model_id, gang_size = command.slot, command.model_id, command.gang_size
    if kind is None:
        return ReplicaAdapted(slot=slot, model_id=model_id, adapters=held, memory_bytes=size, elapsed_us=elapsed_us, gang_size=gang_size)
    failure = Failure(kind=kind, message=f"simulated: {kind}")
    return ReplicaAdaptFailed(slot=slot, model_id=model_id, adapters=held, memory_bytes=size, failure=failure, gang_size=gang_size)
