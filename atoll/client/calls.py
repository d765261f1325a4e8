"""One call as a value: which method, what is sent, how the answer is read, and whether it may be made twice.

Decides the form. Both clients drive the same values, so that they cannot differ in what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from atoll.client.errors import CorruptError, InputError
from atoll.model.errors import FieldError
from atoll.v1 import job_service_pb2_grpc as job_grpc
from atoll.v1 import operator_service_pb2_grpc as operator_grpc

T = TypeVar("T")

JOBS: Final = "JobService"
OPERATOR: Final = "OperatorService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A unary call. `repeatable`: made twice it has the effect of once."""

    service: str
    method: str
    request: Message
    read: Callable[[Any], T]
    repeatable: bool

    def answer(self, response: Any) -> T:
        """The noun of a response; CorruptError when it cannot be one."""
        return checked(self.method, self.read, response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Number of a stream's message. `complete`: everything up to this number has come; else more may come under it."""

    seq: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Generic[T]):
    """A call that answers a stream and can be taken up again after a position."""

    service: str
    method: str
    request_after: Callable[[int], Message]
    read: Callable[[Any], T | None]  # None: a keep-alive
    position: Callable[[Any], Position]

    def item(self, message: Any) -> T | None:
        """The noun of a message; CorruptError when it cannot be one."""
        return checked(self.method, self.read, message)


class Stubs:
    """The generated stubs of one channel, by service and method."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        self._stubs = {JOBS: job_grpc.JobServiceStub(channel), OPERATOR: operator_grpc.OperatorServiceStub(channel)}

    def method(self, service: str, method: str) -> Any:
        """The callable of the generated code; its types are those of the request and of `Call.read`."""
        return getattr(self._stubs[service], method)


def checked(method: str, read: Callable[[Any], T], response: Any) -> T:
    """`read(response)`; CorruptError when the orchestrator answered what cannot be."""
    try:
        return read(response)
    except FieldError as error:
        raise CorruptError(f"the orchestrator's answer to {method} cannot be read: {error}") from None


def argument(parse: Callable[[str, str], str], field: str, value: object) -> str:
    """A caller's argument; InputError when it is wrong."""
    try:
        if not isinstance(value, str):
            raise FieldError(field, value, "text")
        return parse(field, value)
    except FieldError as error:
        raise InputError(str(error), field=error.field) from None


def whole(field: str, value: object, low: int, high: int) -> int:
    """A caller's number; InputError when it is no whole number in low..high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(str(FieldError(field, value, f"a whole number from {low} to {high}")), field=field)
    return value
