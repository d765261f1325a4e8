"""How `Client` sends what it says: to the orchestrator that leads, again where that cannot double an effect.

Decides nothing that `aio_callers` decides differently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from atoll.client.calls import OPERATOR, Call, Stream, Stubs
from atoll.client.channel import metadata, open_sync
from atoll.client.errors import ClientError, refuse_unreachable
from atoll.client.patience import FIRST_PAUSE_S, PROBE_S, Patience, Resuming, Turn
from atoll.client.settings import Settings
from atoll.client.turns import HEALTH, LEADING, Seeking, shown, took_turn, typed
from atoll.model.address import Address
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.whereabouts import Whereabouts

T = TypeVar("T")


class Caller:
    """Sends calls and streams of one `settings`. May be used from several threads."""

    def __init__(self, settings: Settings, *, timeout_s: float, connect_timeout_s: float) -> None:
        self.settings = settings
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._where = Whereabouts(settings.addresses)
        self._lines: dict[Address, tuple[grpc.Channel, Stubs]] = {}
        self._line(self._where.current)  # what is wrong with the settings is said at once
        self._connected = False

    def close(self) -> None:
        """Give the connections back; calls in flight end."""
        for channel, _ in list(self._lines.values()):
            channel.close()

    def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """Make a call, and again where that cannot double its effect, until it is answered or its time is over."""
        patience = Patience(repeatable=call.repeatable, deadline_s=time.monotonic() + (timeout_s or self._timeout_s))
        headers = metadata(self.settings)
        while True:
            address, send = self.method(call.service, call.method)
            try:
                response = send(call.request, timeout=patience.left_s(time.monotonic()), metadata=headers)
            except grpc.RpcError as error:
                time.sleep(patience.pause_s(*self.failed(error, address)))
            else:
                self._where.answered()
                return call.answer(response)

    def follow(self, stream: Stream[T], *, after_seq: int = 0, timeout_s: float | None = None) -> Iterator[T]:
        """The items of a stream, taken up again where it breaks. Raises DeadlineError after `timeout_s`."""
        resuming = Resuming(after_seq=after_seq)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            address, receive = self.method(stream.service, stream.method)
            left_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 0.001)
            messages = receive(stream.request_after(resuming.after_seq), timeout=left_s, metadata=metadata(self.settings))
            try:
                for message in messages:
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
            time.sleep(pause_s if left_s is None else min(pause_s, left_s))

    def method(self, service: str, method: str) -> tuple[Address, Callable[..., Any]]:
        """Whom to ask now, and how."""
        self._connect()
        address = self._where.current
        found: Callable[..., Any] = self._line(address)[1].method(service, method)
        return address, found

    def failed(self, error: Exception, address: Address) -> tuple[ClientError, float, Turn]:
        """What a try at this address ended with, the time, and whom the next one asks."""
        found = typed(error, shown(self.settings, self._where))
        return found, time.monotonic(), took_turn(self._where, address, found)

    # --- connections ---------------------------------------------------------------------------------------------------------

    def _line(self, address: Address) -> tuple[grpc.Channel, Stubs]:
        found = self._lines.get(address)
        if found is None:
            channel = open_sync(self.settings, address)
            # Two threads may come here at once: one line stays.
            found = self._lines.setdefault(address, (channel, Stubs(channel)))
            if found[0] is not channel:
                channel.close()
        return found

    def _connect(self) -> None:
        """Wait for the first connection, to the leader if there is one; UnavailableError says why there is none.

        A call that waits until the channel is ready, and not gRPC's own future for that: its polling thread outlives the wait, and
        complains when the channel is closed meanwhile.
        """
        if self._connected:
            return
        if self._where.several:
            self._seek()
        else:
            try:
                self._health(self._where.current, self._connect_timeout_s, wait=True)
            except grpc.RpcError as error:
                # Any other answer, whatever it says, came over a connection.
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._say_why()
        self._connected = True

    def _seek(self) -> None:
        seeking = Seeking(self.settings, deadline_s=time.monotonic() + self._connect_timeout_s)
        while True:
            for address in self.settings.addresses:
                try:
                    answer = self._health(address, seeking.try_s(time.monotonic()), wait=False)
                except grpc.RpcError as error:
                    seeking.failed(error, address)
                else:
                    if answer == LEADING:
                        self._where.found(address)
                        return
                    seeking.stands_by(address)
            if seeking.over(self._where, time.monotonic()):
                return
            time.sleep(FIRST_PAUSE_S)

    def _health(self, address: Address, timeout_s: float, *, wait: bool) -> bytes:
        ask = self._line(address)[0].unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = ask(b"", timeout=timeout_s, wait_for_ready=wait)
        return answer

    def _say_why(self) -> None:
        probe = self._line(self._where.current)[1].method(OPERATOR, "GetFleet")
        try:
            probe(operator_pb.GetFleetRequest(), timeout=PROBE_S)
        except grpc.RpcError as error:
            refuse_unreachable(typed(error, self.settings.shown_address), self.settings.shown_address)
