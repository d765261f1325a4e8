"""Fetches of weights for an event loop: each in a thread, one per model however many ask, ended when nobody wants it
any more.

Decides who shares which fetch. The work itself is `agents.weights`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agents.peers import PeerSources
from agents.weights import CachedModel, FetchResult, OnBytes, WeightsCache
from atoll.model.ids import ModelId

# Fetches share a site's links: more at a time only delay the first. The rest waits.
_PARALLEL = 4


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One fetch in progress and those who wait for it. `stop` is set when the last of them left."""

    future: asyncio.Future[FetchResult]
    stop: threading.Event
    listeners: list[OnBytes] = field(default_factory=list)
    waiters: int = 0


class WeightsFetcher:
    """The asynchronous face of one WeightsCache; all methods on one event loop."""

    def __init__(self, cache: WeightsCache) -> None:
        self.cache = cache
        self._threads = ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="weights")
        self._flights: dict[tuple[ModelId, str], _Flight] = {}

    async def fetch(
        self,
        model_id: ModelId,
        digest: str,
        origin_url: str,
        *,
        on_bytes: OnBytes | None = None,
        make_room: bool = True,
        peers: PeerSources | None = None,
    ) -> FetchResult:
        """As `WeightsCache.fetch`; progress is told on the loop. Cancelling the last waiter stops the fetch, to be
        continued. One who joins a fetch shares its `make_room` and its `peers`."""
        key = (model_id, digest)
        while (flight := self._flights.get(key)) is not None and flight.stop.is_set():
            await asyncio.wait([flight.future])  # one that is ending: begin anew after it
        if flight is None:
            flight = self._begin(key, origin_url, make_room, peers)
        if on_bytes is not None:
            flight.listeners.append(on_bytes)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.future)
        finally:
            flight.waiters -= 1
            if on_bytes is not None:
                flight.listeners.remove(on_bytes)
            if flight.waiters == 0 and not flight.future.done():
                flight.stop.set()

    async def delete(self, model_id: ModelId, digest: str | None = None) -> tuple[CachedModel, ...]:
        """As `WeightsCache.delete`, off the loop."""
        return await asyncio.get_running_loop().run_in_executor(None, self.cache.delete, model_id, digest)

    async def entries(self) -> tuple[CachedModel, ...]:
        """As `WeightsCache.entries`, off the loop."""
        return await asyncio.get_running_loop().run_in_executor(None, self.cache.entries)

    async def close(self) -> None:
        """Stop every fetch, wait for its end, and let the threads go."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.stop.set()
        if flights:
            await asyncio.wait([flight.future for flight in flights])
        self._threads.shutdown(wait=True)

    def _begin(self, key: tuple[ModelId, str], origin_url: str, make_room: bool, peers: PeerSources | None) -> _Flight:
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def tell(done: int, total: int) -> None:
            loop.call_soon_threadsafe(self._tell, key, done, total)

        def work() -> FetchResult:
            return self.cache.fetch(*key, origin_url, on_bytes=tell, should_stop=stop.is_set, make_room=make_room, peers=peers)

        flight = _Flight(future=loop.run_in_executor(self._threads, work), stop=stop)
        self._flights[key] = flight
        flight.future.add_done_callback(lambda future: self._ended(key, future))
        return flight

    def _tell(self, key: tuple[ModelId, str], done: int, total: int) -> None:
        flight = self._flights.get(key)
        for listener in list(flight.listeners) if flight is not None else ():
            listener(done, total)

    def _ended(self, key: tuple[ModelId, str], future: asyncio.Future[FetchResult]) -> None:
        del self._flights[key]
        if not future.cancelled():
            future.exception()  # seen: nobody may be waiting any more
