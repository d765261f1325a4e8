"""What stands before a real etcd and passes everything on, except what it is told not to: as other versions and busier clusters behave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from atoll.model.address import Address
from orchestrator.store.etcd.methods import LEASE_KEEP_ALIVE, WATCH

_STREAMS: Final = frozenset({WATCH.path, LEASE_KEEP_ALIVE.path})
_DENIED: Final = (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

_RAW: Final[dict[str, Any]] = {"request_serializer": None, "response_deserializer": None}


class Behind(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    """`denied`: methods that this user may not call. `before`: awaited before each unary call is passed on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.denied: frozenset[str] = frozenset()
        self.before: Callable[[str], Awaitable[None]] | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = handler_call_details.method
        if path in _STREAMS:
            return grpc.stream_stream_rpc_method_handler(self._stream(path))
        return grpc.unary_unary_rpc_method_handler(self._unary(path))

    def _unary(self, path: str) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]:
        async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            if path in self.denied:
                await context.abort(*_DENIED)
            if self.before is not None:
                await self.before(path)
            try:
                found: bytes = await self._channel.unary_unary(path, **_RAW)(request)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            return found

        return answer

    def _stream(self, path: str) -> Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext[bytes, bytes]], AsyncGenerator[bytes]]:
        async def answers(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncGenerator[bytes]:
            if path in self.denied:
                await context.abort(*_DENIED)
            async for each in self._channel.stream_stream(path, **_RAW)(requests):
                yield each

        return answers


@asynccontextmanager
async def etcd_behind(etcd: Address) -> AsyncGenerator[tuple[Behind, Address]]:
    """Before the member at `etcd`, until the block ends, and its own address."""
    async with grpc.aio.insecure_channel(str(etcd)) as channel:
        behind = Behind(channel)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((behind,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield behind, Address(host="127.0.0.1", port=port)
        finally:
            await server.stop(None)
