"""Adapters on the disk of this host and on the replicas of its slots, as the runtime's commands and events want them.

Decides how fetches of adapters are shared and told, and what a slot is handed to adapt a replica. All nodes of a site of one host share its
disk. The files themselves are `agents.adapter_files`; must not know Ray.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from agents.adapter_files import AdapterFiles, FetchedAdapter
from agents.core.events import AdapterDeleted, AdapterFetched, AdapterFetchFailed, ReplicaAdaptFailed
from agents.core.outputs import AdaptReplica, FetchAdapter
from agents.engine.errors import failure_of
from agents.engine.request import AdapterFile
from agents.origins import FetchError, FetchStoppedError
from agents.peers import PeerSource
from agents.runtime.base import Sink
from atoll.model.attempt import Failure, FailureKind
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import AdapterId, NodeId, SlotRef

# Beside the fetches of weights: small files, of which a job may need eight.
_PARALLEL: Final = 4

CallSlot = Callable[..., Awaitable[None]]


class NodeAdapters:
    """The adapters of this host. All methods on the agent's event loop."""

    def __init__(self, files: AdapterFiles, *, nodes: tuple[NodeId, ...], tell: Sink, peer_token: str = "") -> None:
        self._files = files
        self._peer_token = peer_token
        self._nodes = nodes
        self._tell = tell
        self._threads = ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="adapters")
        self._stop = threading.Event()
        self._flights: dict[tuple[AdapterId, str], asyncio.Future[FetchedAdapter]] = {}
        self._orders: dict[SlotRef, AdaptReplica] = {}

    async def on_disk(self) -> tuple[tuple[NodeId, AdapterId, str], ...]:
        """Node, adapter and digest of everything complete."""
        held = await asyncio.to_thread(self._files.held)
        return tuple((node, adapter_id, digest) for node in self._nodes for adapter_id, digest in held)

    async def fetch(self, command: FetchAdapter, origin_url: str | None) -> None:
        """Told by AdapterFetched or AdapterFetchFailed, or not at all when this runtime closes meanwhile."""
        adapter, node_id = command.adapter, command.node_id
        try:
            if origin_url is None:
                raise FetchError(FailureKind.FETCH_FAILED, "no orchestrator has told where adapters come from")
            result = await self._shared(command, origin_url)
        except FetchStoppedError:
            return
        except (AtollError, OSError) as error:
            failure = error.failure if isinstance(error, FetchError) else failure_of(error, FailureKind.FETCH_FAILED)
            if isinstance(error, FieldError):
                # Not the job's input is wrong, as `failure_of` takes it, but what the fleet says of the adapter.
                failure = Failure(kind=FailureKind.BAD_WEIGHTS, message=failure.message)
            self._tell(AdapterFetchFailed(node_id=node_id, adapter_id=adapter.adapter_id, failure=failure))
            return
        for evicted in result.evicted:
            self._gone(evicted)
        self._tell(
            AdapterFetched(
                node_id=node_id,
                adapter_id=adapter.adapter_id,
                weights_digest=adapter.weights_digest,
                bytes=result.fetched_bytes,
                elapsed_us=result.elapsed_us,
            )
        )

    async def _shared(self, command: FetchAdapter, origin_url: str) -> FetchedAdapter:
        """One fetch however many nodes of this host ask."""
        key = (command.adapter.adapter_id, command.adapter.weights_digest)
        flight = self._flights.get(key)
        if flight is None:
            told = command.fetch_from
            peer = PeerSource(site_id=told.site_id, url=told.url, token=self._peer_token) if told is not None else None
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, self._files.fetch, command.adapter, origin_url, self._stop.is_set, peer
            )
            flight = self._flights[key] = work
            flight.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(flight)

    def _ended(self, key: tuple[AdapterId, str], flight: asyncio.Future[FetchedAdapter]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # seen: nobody may be waiting any more

    async def adapt(self, command: AdaptReplica, call: CallSlot) -> None:
        """Hand the order to the slot, which tells its end; one whose file left the disk fails there as one that is damaged."""
        self._orders[command.slot] = command
        files = tuple(
            AdapterFile(adapter_id=one.adapter_id, path=self._files.path_of(one), digest=one.weights_digest) for one in command.adapters
        )
        await call("adapt", command, files)

    def adapted(self, slot: SlotRef) -> None:
        """The order of a slot was carried out."""
        self._orders.pop(slot, None)

    async def adapt_failed(self, event: ReplicaAdaptFailed) -> None:
        """Files that proved to be damaged go, so that the next fetch brings them anew. Before the event is told."""
        order = self._orders.pop(event.slot, None)
        if order is not None and event.failure.kind is FailureKind.BAD_WEIGHTS:
            for adapter in order.adapters:
                await asyncio.to_thread(self._files.drop, adapter)
                self._gone(adapter.adapter_id)
        self._tell(event)

    async def close(self) -> None:
        """Stop what is being fetched; a later fetch continues it."""
        self._stop.set()
        if self._flights:
            await asyncio.wait(list(self._flights.values()))
        self._threads.shutdown(wait=True)

    def _gone(self, adapter_id: AdapterId) -> None:
        for node_id in self._nodes:
            self._tell(AdapterDeleted(node_id=node_id, adapter_id=adapter_id))
