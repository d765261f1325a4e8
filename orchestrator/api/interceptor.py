"""One way in for every call: request id, credential, deadline, and one way out for every error.

Decides what a handler may rely on: a known caller, an orchestrator that leads, a request that was decoded, a bounded time. Must not
know what methods do.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from atoll.model.errors import FieldError
from orchestrator.api.auth import CALLER, REQUEST_ID, Authenticator
from orchestrator.api.status import Status, status_of
from orchestrator.standing import Standing
from orchestrator.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

# As texts: gRPC's classes are generic in their stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]"

REQUEST_ID_KEY: Final = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
# A unary call without a deadline would hold its memory for as long as its client lives.
DEADLINE_S: Final = 30.0
# The longest that a unary call may ask for; what takes longer is watched.
DEADLINE_MAX_S: Final = 600.0


class _Malformed:
    """Stands for a request that is no message."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _decoder(decode: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Decode or say so: gRPC itself would answer UNKNOWN, with internals."""

    def decoded(data: bytes) -> object:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return decoded


def _checked(request: object) -> object:
    if isinstance(request, _Malformed):
        raise FieldError("request", request.reason, "a well-formed protobuf message of this method")
    return request


async def _all_checked(requests: AsyncIterator[object]) -> AsyncIterator[object]:
    async for request in requests:
        yield _checked(request)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """The one interceptor of the server."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics, standing: Standing) -> None:
        self._authenticator = authenticator
        self._standing = standing
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of a known method; an unknown one stays UNIMPLEMENTED."""
        # None for a method that nobody has, whatever the stubs say.
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/atoll.v1."):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)  # health and reflection: open, and of gRPC's own making
        decode = _decoder(handler.request_deserializer) if handler.request_deserializer else None
        encode = handler.response_serializer
        # The flags say which one of the four is set.
        unary = cast("Callable[[Any, Context], Awaitable[Any]]", handler.unary_unary or handler.stream_unary)
        stream = cast("Callable[[Any, Context], AsyncIterator[Any]]", handler.unary_stream or handler.stream_stream)
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._unary(method, unary), decode, encode)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._unary(method, unary), decode, encode)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._stream(method, stream), decode, encode)
            case _:
                return grpc.stream_stream_rpc_method_handler(self._stream(method, stream), decode, encode)

    def _unary(self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            began = time.monotonic()
            code = grpc.StatusCode.OK
            try:
                self._enter(method, context)
                async with asyncio.timeout(_time_left_s(context)):
                    return await behaviour(_entering(request), context)
            except TimeoutError:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                await context.abort(code, "the call took longer than its deadline; what it asked for may still take effect")
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # noqa: BLE001 - the one place where every error becomes a status
                status = status_of(error, REQUEST_ID.get(""))
                code = status.code
                await _abort(context, status)
            finally:
                self._metrics.called(method, code, time.monotonic() - began)

        return call

    def _stream(self, method: str, behaviour: Callable[[Any, Context], AsyncIterator[Any]]) -> Callable[[Any, Context], Awaitable[None]]:
        async def call(request: Any, context: Context) -> None:
            began = time.monotonic()
            code = grpc.StatusCode.OK
            try:
                self._enter(method, context)
                # Closed here and now when the client goes away, not when the garbage collector comes by.
                async with aclosing(cast("Any", behaviour(_entering(request), context))) as messages:
                    async for message in messages:
                        await context.write(message)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # noqa: BLE001 - as above
                status = status_of(error, REQUEST_ID.get(""))
                code = status.code
                await _abort(context, status)
            finally:
                self._metrics.called(method, code, time.monotonic() - began)

        return call

    def _enter(self, method: str, context: Context) -> None:
        """Take or make the request id and find out who calls. Raises what the contract knows."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get(REQUEST_ID_KEY, "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        CALLER.set(self._authenticator.allow(method, metadata.get("authorization")))
        self._standing.check(method)


def _entering(request: Any) -> Any:
    return _all_checked(request) if hasattr(request, "__aiter__") else _checked(request)


def _time_left_s(context: Context) -> float:
    left_s: float | None = context.time_remaining()
    return DEADLINE_S if left_s is None else min(left_s, DEADLINE_MAX_S)


async def _abort(context: Context, status: Status) -> NoReturn:
    trailers = ((REQUEST_ID_KEY, REQUEST_ID.get("")), *status.trailers())
    await context.abort(status.code, status.message, trailers)
    raise AssertionError("abort raises")
