"""How `AsyncClient` sends what it says: to the orchestrator that leads, again where that cannot double an effect.

Decides nothing that `callers` decides differently.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from atoll.client.calls import OPERATOR, Call, Stream, Stubs
from atoll.client.channel import metadata, open_aio
from atoll.client.errors import ClientError, refuse_unreachable
from atoll.client.patience import FIRST_PAUSE_S, PROBE_S, Patience, Resuming, Turn
from atoll.client.settings import Settings
from atoll.client.turns import HEALTH, LEADING, Seeking, shown, took_turn, typed
from atoll.model.address import Address
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.whereabouts import Whereabouts

T = TypeVar("T")


class AsyncCaller:
    """Sends calls and streams of one `settings`. Made within a running event loop."""

    def __init__(self, settings: Settings, *, timeout_s: float, connect_timeout_s: float) -> None:
        self.settings = settings
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._where = Whereabouts(settings.addresses)
        self._lines: dict[Address, tuple[grpc.aio.Channel, Stubs]] = {}
        self._line(self._where.current)  # what is wrong with the settings is said at once
        self._connected = False

    async def close(self) -> None:
        """Give the connections back; calls in flight end."""
        for channel, _ in self._lines.values():
            await channel.close(grace=None)

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """Make a call, and again where that cannot double its effect, until it is answered or its time is over."""
        patience = Patience(repeatable=call.repeatable, deadline_s=time.monotonic() + (timeout_s or self._timeout_s))
        headers = metadata(self.settings)
        while True:
            address, send = await self.method(call.service, call.method)
            try:
                response = await send(call.request, timeout=patience.left_s(time.monotonic()), metadata=headers)
            except grpc.RpcError as error:
                await asyncio.sleep(patience.pause_s(*self.failed(error, address)))
            else:
                self._where.answered()
                return call.answer(response)

    async def follow(self, stream: Stream[T], *, after_seq: int = 0, timeout_s: float | None = None) -> AsyncIterator[T]:
        """The items of a stream, taken up again where it breaks. Raises DeadlineError after `timeout_s`."""
        resuming = Resuming(after_seq=after_seq)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            address, receive = await self.method(stream.service, stream.method)
            left_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 0.001)
            messages = receive(stream.request_after(resuming.after_seq), timeout=left_s, metadata=metadata(self.settings))
            try:
                async for message in messages:
                    self._where.answered()
                    resuming.advance(stream.position(message))
                    item = stream.item(message)
                    if item is not None:
                        yield item
                return
            except grpc.RpcError as error:
                pause_s = resuming.pause_s(*self.failed(error, address))
            finally:
                messages.cancel()
            await asyncio.sleep(pause_s if left_s is None else min(pause_s, left_s))

    async def method(self, service: str, method: str) -> tuple[Address, Callable[..., Any]]:
        """Whom to ask now, and how."""
        await self._connect()
        address = self._where.current
        found: Callable[..., Any] = self._line(address)[1].method(service, method)
        return address, found

    def failed(self, error: Exception, address: Address) -> tuple[ClientError, float, Turn]:
        """What a try at this address ended with, the time, and whom the next one asks."""
        found = typed(error, shown(self.settings, self._where))
        return found, time.monotonic(), took_turn(self._where, address, found)

    # --- connections ---------------------------------------------------------------------------------------------------------

    def _line(self, address: Address) -> tuple[grpc.aio.Channel, Stubs]:
        found = self._lines.get(address)
        if found is None:
            channel = open_aio(self.settings, address)
            found = self._lines[address] = channel, Stubs(channel)
        return found

    async def _connect(self) -> None:
        """Wait for the first connection, to the leader if there is one; UnavailableError says why there is none."""
        if self._connected:
            return
        if self._where.several:
            await self._seek()
        else:
            await self._wait_for_the_only_one()
        self._connected = True

    async def _wait_for_the_only_one(self) -> None:
        channel, stubs = self._line(self._where.current)
        try:
            # No wait_for: a cancellation at the wrong moment would be lost in it.
            async with asyncio.timeout(self._connect_timeout_s):
                await channel.channel_ready()
        except TimeoutError:
            try:
                await stubs.method(OPERATOR, "GetFleet")(operator_pb.GetFleetRequest(), timeout=PROBE_S)
            except grpc.RpcError as error:
                refuse_unreachable(typed(error, self.settings.shown_address), self.settings.shown_address)

    async def _seek(self) -> None:
        seeking = Seeking(self.settings, deadline_s=time.monotonic() + self._connect_timeout_s)
        while True:
            for address in self.settings.addresses:
                ask = self._line(address)[0].unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
                try:
                    answer = await ask(b"", timeout=seeking.try_s(time.monotonic()))
                except grpc.RpcError as error:
                    seeking.failed(error, address)
                else:
                    if answer == LEADING:
                        self._where.found(address)
                        return
                    seeking.stands_by(address)
            if seeking.over(self._where, time.monotonic()):
                return
            await asyncio.sleep(FIRST_PAUSE_S)
