"""Weights on the disk of this host, as the runtime's commands and events want them: fetched, deleted, given up, kept while needed.

Decides what is pinned and how the end of a fetch is told. All nodes of a site of one host share its disk. The cache itself is
`agents.weights`; must not know Ray.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final, assert_never

from agents.core.events import (
    FetchAdvanced,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import DeleteWeights, FetchWeights, PinWeights, StageWeights, YieldFetch
from agents.core.rates import Rates
from agents.engine.errors import failure_of
from agents.fetching import WeightsFetcher
from agents.origins import FetchError, FetchStoppedError
from agents.peers import PeerSource, PeerSources
from agents.runtime.base import Sink
from agents.weights import FetchResult, OnBytes, WeightsCache
from atoll.model.attempt import Failure, FailureKind
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import ModelId, NodeId, SlotRef
from atoll.model.modelspec import ModelSpec

_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# How often it is told how far a fetch has come.
_TELL_S: Final = 1.0
_PATH_RULE: Final = "a folder below the origin: names of letters, digits, '.', '_' and '-', joined by '/'"


def origin_of(origin_url: str, model: ModelSpec) -> str:
    """URL of a model's folder. FieldError for a path that could lead out of the origin, or none."""
    parts = model.origin_path.split("/")
    if len(model.origin_path) > 500 or not all(_PART.match(part) for part in parts):
        raise FieldError(f"origin_path of model {model.model_id}", model.origin_path, _PATH_RULE)
    return f"{origin_url.rstrip('/')}/{model.origin_path}"


class NodeWeights:
    """The disk of this host. All methods on the agent's event loop."""

    def __init__(self, cache: WeightsCache, *, nodes: tuple[NodeId, ...], tell: Sink, rates: Rates, peer_token: str = "") -> None:
        self._peer_token = peer_token
        self._fetcher = WeightsFetcher(cache)
        self._nodes = nodes
        self._tell = tell
        self._rates = rates
        # Fetched and not loaded since: somebody waits for it, or it was fetched ahead. The only pins that may give way.
        self._awaited: dict[ModelId, str] = {}
        self._resident: dict[SlotRef, dict[tuple[ModelId, int], str]] = {}
        # What the assignment pins, by node.
        self._kept: dict[NodeId, tuple[tuple[ModelId, str], ...]] = {}
        # Fetches that nobody waits for, while they go on.
        self._ahead: dict[tuple[NodeId, ModelId], asyncio.Task[FetchResult]] = {}

    async def perform(self, command: YieldFetch | PinWeights | StageWeights | DeleteWeights) -> None:
        """Anything but a fetch."""
        match command:
            case YieldFetch():
                task = self._ahead.pop((command.node_id, command.model_id), None)
                if task is not None:
                    task.cancel()
            case PinWeights():
                self._kept[command.node_id] = command.disk
                self._pin()
            case StageWeights():
                # Free host memory is the system's cache of files, which no program can promise: there is no such tier here.
                self._tell(HostMemoryChanged(node_id=command.node_id, models=(), ended=(command.model.model_id,)))
            case DeleteWeights():
                await self.delete(command)
            case _:
                assert_never(command)

    async def on_disk(self) -> tuple[tuple[NodeId, ModelId, str], ...]:
        """Node, model and digest of everything complete."""
        entries = await self._fetcher.entries()
        return tuple((node, model.model_id, model.digest) for node in self._nodes for model in entries)

    async def folder_of(self, model: ModelSpec) -> Path | None:
        """Where a model lies, None if it is not there (any more). FieldError for an id or digest that is none."""
        found = await asyncio.to_thread(self._fetcher.cache.get, model.model_id, model.weights_digest)
        return found.folder if found is not None else None

    async def fetch(self, command: FetchWeights, origin_url: str | None) -> None:
        """Told by WeightsFetched or FetchFailed, or not at all when this runtime closes meanwhile."""
        model = command.model
        key = (command.node_id, model.model_id)
        try:
            if origin_url is None:
                raise FetchError(FailureKind.FETCH_FAILED, "no orchestrator has told where weights come from")
            url = origin_of(origin_url, model)
            result = await self._fetch_ahead(key, command, url) if command.ahead else await self._fetch(command, url)
        except FetchStoppedError:
            return
        except asyncio.CancelledError:
            if not command.ahead or key in self._ahead:
                raise
            self._tell(FetchYielded(node_id=command.node_id, model_id=model.model_id))
            return
        except FetchError as error:
            self._tell(FetchFailed(node_id=command.node_id, model_id=model.model_id, failure=error.failure))
            return
        except (AtollError, OSError) as error:
            failure = failure_of(error, FailureKind.FETCH_FAILED)
            if isinstance(error, FieldError):
                # Not the job's input is wrong, as `failure_of` takes it, but what the fleet says of the model.
                failure = Failure(kind=FailureKind.BAD_WEIGHTS, message=failure.message)
            self._tell(FetchFailed(node_id=command.node_id, model_id=model.model_id, failure=failure))
            return
        for evicted in result.evicted:
            self._gone(evicted.model_id)
        if not command.ahead:
            self._awaited[model.model_id] = model.weights_digest
        self._pin()
        self._tell(
            WeightsFetched(
                node_id=command.node_id,
                model_id=model.model_id,
                weights_digest=model.weights_digest,
                bytes=result.manifest.total_bytes,
                elapsed_us=result.elapsed_us,
            )
        )
        self._rates.measured(origin=result.bytes_per_s)

    async def _fetch_ahead(self, key: tuple[NodeId, ModelId], command: FetchWeights, url: str) -> FetchResult:
        """As a task that can be told to yield: it is no longer in the list then, and ends by cancellation."""
        model = command.model
        work = self._fetcher.fetch(
            model.model_id, model.weights_digest, url, on_bytes=self._teller(command), make_room=False, peers=self._peers(command)
        )
        task = self._ahead[key] = asyncio.ensure_future(work)
        try:
            return await task
        finally:
            if task.done() and self._ahead.get(key) is task and not task.cancelled():
                del self._ahead[key]

    async def _fetch(self, command: FetchWeights, url: str) -> FetchResult:
        model, on_bytes, peers = command.model, self._teller(command), self._peers(command)
        try:
            return await self._fetcher.fetch(model.model_id, model.weights_digest, url, on_bytes=on_bytes, peers=peers)
        except FetchError as error:
            if error.kind is not FailureKind.DISK_FULL:
                raise
        # What was fetched before and never loaded gives way to what is wanted now; and a fetch that this one joined may have been one
        # for which nothing gives way.
        self._awaited.clear()
        self._pin()
        return await self._fetcher.fetch(model.model_id, model.weights_digest, url, on_bytes=on_bytes, peers=peers)

    def _peers(self, command: FetchWeights) -> PeerSources | None:
        """Where the orchestrator says that the weights are nearest."""
        told = command.fetch_from
        if told is None or not told.peers:
            return None
        peers = tuple(PeerSource(site_id=peer.site_id, url=peer.url, token=self._peer_token) for peer in told.peers)
        return PeerSources(peers=peers, origin_too=told.origin_too)

    def _teller(self, command: FetchWeights) -> OnBytes:
        """Says how far a fetch has come, once a second."""
        loop = asyncio.get_running_loop()
        next_s = loop.time() + _TELL_S

        def tell(done: int, total: int) -> None:
            nonlocal next_s
            del total
            if loop.time() >= next_s:
                next_s = loop.time() + _TELL_S
                self._tell(FetchAdvanced(node_id=command.node_id, model_id=command.model.model_id, bytes_done=done))

        return tell

    async def delete(self, command: DeleteWeights) -> None:
        """Told by WeightsDeleted, for every node that shares the disk. A resident replica lives on without its files."""
        await self.drop(command.model_id)

    async def drop(self, model_id: ModelId) -> None:
        """Remove a model that nobody wants, or that proved to be damaged."""
        self._awaited.pop(model_id, None)
        self._pin(without=model_id)
        try:
            await self._fetcher.delete(model_id)
        finally:
            self._pin()
        self._gone(model_id)

    def loaded(self, slot: SlotRef, model_id: ModelId, digest: str, gang_size: int = 1) -> None:
        """A model is resident in a slot, by itself or for gangs of a size."""
        self._resident.setdefault(slot, {})[model_id, gang_size] = digest
        self._awaited.pop(model_id, None)
        self._pin()

    def load_failed(self, model_id: ModelId) -> None:
        """Whoever waited for a model has his answer."""
        self._awaited.pop(model_id, None)
        self._pin()

    def unloaded(self, slot: SlotRef, model_id: ModelId | None = None, gang_size: int = 1) -> None:
        """A replica (all without `model_id`) left a slot."""
        if model_id is None:
            self._resident.pop(slot, None)
        else:
            self._resident.get(slot, {}).pop((model_id, gang_size), None)
        self._pin()

    async def close(self) -> None:
        """Stop what is being fetched; a later fetch continues it."""
        await self._fetcher.close()

    def _pin(self, *, without: ModelId | None = None) -> None:
        pins = {*self._awaited.items(), *((key[0], digest) for held in self._resident.values() for key, digest in held.items())}
        pins |= {pin for kept in self._kept.values() for pin in kept}
        self._fetcher.cache.pin(frozenset(pin for pin in pins if pin[0] != without))

    def _gone(self, model_id: ModelId) -> None:
        self._awaited.pop(model_id, None)
        for node_id in self._nodes:
            self._tell(WeightsDeleted(node_id=node_id, model_id=model_id))
