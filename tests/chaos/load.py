"""The clients: so many submits a second, half of them sent twice, a watcher of all; all of it goes into a history.

Decides what is asked and when. What fails is repeated by the SDK, as any client's is. Must not know what befalls the fleet.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Final

from atoll.client import AsyncClient, ClientError, JobRequest
from atoll.model.job import TERMINAL
from tests.chaos.history import Asked, History, seen_of

# The cheapest models of the catalogue: what is looked at is the fleet's bookkeeping, and twins must keep up.
MODELS: Final = ("sdxl-turbo", "sdxl-lightning-4-step")
# A call is given up after this long: longer than any fault of the table keeps orchestrators away.
TIMEOUT_S: Final = 60.0
# Connections, as clients have several: what is lost with one is not lost with all.
_CONNECTIONS: Final = 4
# Bounds the wait for the last jobs to end; how soon is never asserted.
PATIENCE_S: Final = 120.0


class Load:
    """Clients of one orchestrator. `replayed`: which share of submits is sent a second time, at the same moment or later."""

    def __init__(self, address: str, *, rate: float, seed: int, replayed: float = 0.5) -> None:
        self.history = History()
        self.accepted_s: list[float] = []
        self._address = address
        self._rate = rate
        self._replayed = replayed
        self._chance = random.Random(seed)
        self._stop = asyncio.Event()
        self._answered = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Submit until `stop`, then wait until every job has ended and write them all down."""
        clients = [AsyncClient(self._address, timeout_s=TIMEOUT_S) for _ in range(_CONNECTIONS)]
        watching = asyncio.create_task(self._watch(clients[0]))
        try:
            await self._submit_for_ever(clients)
            await asyncio.gather(*self._calls)
            await self._until_all_ended(clients[0])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            for client in clients:
                await client.close()

    async def answered(self) -> None:
        """A submit that is answered from now on."""
        self._answered.clear()
        await self._answered.wait()

    def stop(self) -> None:
        """No more submits."""
        self._stop.set()

    async def _submit_for_ever(self, clients: list[AsyncClient]) -> None:
        begun_s, sent = time.monotonic(), 0
        while not self._stop.is_set():
            due = int((time.monotonic() - begun_s) * self._rate)
            for number in range(sent, due):
                request = JobRequest(model=MODELS[number % len(MODELS)], prompt=f"chaos {number}", seed=number, simulated=True)
                for _ in range(2 if self._chance.random() < self._replayed else 1):
                    call = asyncio.create_task(self._submit(self._chance.choice(clients), request))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
            sent = due
            await asyncio.sleep(0.01)

    async def _submit(self, client: AsyncClient, request: JobRequest) -> None:
        asked = Asked(key=request.idempotency_key, began_s=time.monotonic(), ended_s=0.0)
        try:
            answered = replace(asked, job_id=await client.submit_request(request))
            self.accepted_s.append(time.monotonic())
            self._answered.set()
        except ClientError:
            answered = asked  # refused, or nobody knows
        self.history.asked.append(replace(answered, ended_s=time.monotonic()))

    async def _watch(self, client: AsyncClient) -> None:
        async for change in client.watch(timeout_s=None):
            self.history.seen.append(seen_of(change.job))

    async def _until_all_ended(self, client: AsyncClient) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                jobs = [job async for job in client.list(page_size=1_000)]
                if all(job.state in TERMINAL for job in jobs):
                    break
                await asyncio.sleep(0.5)
        # One that ended between two pages comes twice, the same.
        self.history.jobs = list({job.job_id: job for job in jobs}.values())
