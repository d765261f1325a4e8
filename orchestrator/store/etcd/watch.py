"""Following keys: first what they are, then every change in order, whatever happens to the stream meanwhile.

Decides from where a stream that broke goes on, and when one that says nothing counts as broken. Must not know what keys mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from orchestrator.store.etcd import methods
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdCompactedError, EtcdDeniedError, EtcdTokenError, EtcdUnavailableError, passes, told
from orchestrator.store.etcd.pb import etcd_pb2 as pb

# A stream over which nothing came for so long is asked for its progress; a second such silence means that it is dead.
QUIET_S: Final = 2.0
# To open a stream, or to write to one.
_OPENING_S: Final = 3.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_PAGE: Final = 1_000
# What a stream reads at its end; the stubs lack it.
_EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys as of `revision`. First of all, and again when changes were missed for good because etcd has compacted them."""

    kvs: tuple[pb.KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened next, in order."""

    events: tuple[pb.Event, ...]


async def follow(client: EtcdClient, key: bytes, end: bytes = b"", *, quiet_s: float = QUIET_S) -> AsyncGenerator[Listing | Changes]:
    """The key, or all keys of [key, end): a listing, then every change after it, once each and in order, for ever.

    Outages are waited out. Raises EtcdError only for what waiting does not cure: a refused user, a member that does not know the method.
    """
    while True:
        try:
            listing = await _patiently(lambda: _list(client, key, end), client)
            yield listing
            async with aclosing(changes(client, key, end, after=listing.revision, quiet_s=quiet_s)) as following:
                async for change in following:
                    yield change
        except EtcdCompactedError:
            await asyncio.sleep(_FIRST_PAUSE_S)


async def changes(client: EtcdClient, key: bytes, end: bytes, *, after: int, quiet_s: float = QUIET_S) -> AsyncGenerator[Changes]:
    """Every change of the key, or of keys of [key, end), after a revision, once each and in order, for ever.

    EtcdCompactedError when some of them are history that etcd no longer has. Else as `follow`.
    """
    revision = after + 1  # the next that is wanted
    pauses = _Pauses(client)
    while True:
        try:
            async for events in _stream(client, key, end, revision, quiet_s):
                pauses.over()
                if not events:
                    continue
                # Not from what the server says it has reached: it said so before it sent what came before that.
                revision = events[-1].kv.mod_revision + 1
                yield Changes(events)
        except (EtcdDeniedError, EtcdUnavailableError, TimeoutError) as error:
            pauses.judge(error)
        await pauses.pause()


async def _patiently(ask: Callable[[], Awaitable[Listing]], client: EtcdClient) -> Listing:
    pauses = _Pauses(client)
    while True:
        try:
            return await ask()
        except (EtcdDeniedError, EtcdUnavailableError, TimeoutError) as error:
            pauses.judge(error)
        await pauses.pause()


class _Pauses:
    """Between tries, longer each time. Tried again is what may pass, and once what was refused."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._refused = False
        self._pause_s = _FIRST_PAUSE_S

    def over(self) -> None:
        """It is answered."""
        self._refused, self._pause_s = False, _FIRST_PAUSE_S

    def judge(self, error: EtcdDeniedError | EtcdUnavailableError | TimeoutError) -> None:
        """Raises it if another try makes no sense."""
        if isinstance(error, EtcdDeniedError):
            if self._refused:
                raise error
            # Of a token that is void, as all are once a member was restarted, some versions say only that permission is denied.
            self._refused = True
            self._client.forget_token()

    async def pause(self) -> None:
        """Before the next try."""
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)


async def _list(client: EtcdClient, key: bytes, end: bytes) -> Listing:
    first = await client.range(key, end, limit=_PAGE)
    kvs, page = list(first.kvs), first
    while page.more:
        page = await client.range(kvs[-1].key + b"\x00", end, limit=_PAGE, revision=first.header.revision)
        kvs.extend(page.kvs)
    return Listing(tuple(kvs), first.header.revision)


async def _stream(client: EtcdClient, key: bytes, end: bytes, revision: int, quiet_s: float) -> AsyncGenerator[tuple[pb.Event, ...]]:
    """Changes from `revision` on, none at first, once it is watched; until the stream ends.

    TimeoutError when it says nothing. EtcdUnavailableError, EtcdCompactedError, EtcdDeniedError.
    """
    try:
        async for events in _read_stream(client, key, end, revision, quiet_s):
            yield events
    except grpc.RpcError as error:
        raise EtcdUnavailableError(str(told(error))) if passes(error) else told(error) from error


async def _read_stream(client: EtcdClient, key: bytes, end: bytes, revision: int, quiet_s: float) -> AsyncGenerator[tuple[pb.Event, ...]]:
    opened: Any = client.channel.stream_stream(  # the stubs know it with an iterator of requests only
        methods.WATCH.path,
        request_serializer=methods.WATCH.request.SerializeToString,
        response_deserializer=methods.WATCH.response.FromString,
    )
    call: Any = opened(metadata=await client.metadata())
    try:
        create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=revision)
        async with asyncio.timeout(_OPENING_S):
            await call.write(pb.WatchRequest(create_request=create))
        while True:
            response = await _read(call, quiet_s)
            if response is None:
                return
            if response.compact_revision:
                raise EtcdCompactedError(f"revision {revision} is gone", response.compact_revision)
            if response.canceled:
                _refused(response.cancel_reason)
                return
            if response.events or response.created:
                yield tuple(response.events)
    finally:
        call.cancel()


async def _read(call: Any, quiet_s: float) -> pb.WatchResponse | None:
    """The next answer; None: the stream ended. TimeoutError when it is silent although it was asked."""
    reading = asyncio.ensure_future(call.read())
    try:
        done, _ = await asyncio.wait({reading}, timeout=quiet_s)
        if not done:
            async with asyncio.timeout(quiet_s):
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                await asyncio.wait({reading})
        answer = reading.result()
    finally:
        reading.cancel()
    if answer is _EOF:
        # What the stream ended with, if with an error.
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), await call.details(), None)
        return None
    found: pb.WatchResponse = answer
    return found


def _refused(reason: str) -> None:
    """Why the server does not watch: said in words only."""
    if "permission denied" in reason:
        raise EtcdDeniedError(f"etcd does not let this user watch: {reason}")
    if "token" in reason:
        raise EtcdTokenError(f"etcd does not let this user watch: {reason}")
