"""What goes up a stream, and what a stream ends with, in gRPC's terms.

Decides how much of a log fits into a message. Must not know when anything is sent.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import grpc
import grpc.aio

from agents.core.outputs import RequestResync, SendEvents, SendReport
from agents.driver import Upward
from atoll.v1 import site_service_pb2 as pb
from atoll.wire.bounds import LOG_LINE_CHARS, line
from atoll.wire.reports import attempt_events_to_proto, report_to_proto

# Half of gRPC's 4 MiB: the end of a log is what is asked for.
_LOG_BYTES_MAX: Final = 2 * 1024 * 1024
# Which field of the hello a refusal names; and what every answer of an orchestrator carries.
FIELD_KEY: Final = "atoll-field"
ANSWERED_KEY: Final = "x-request-id"


def last(found: tuple[str, ...], lines: int) -> list[str]:
    """The end of a log that fits into a message."""
    kept: list[str] = []
    left = _LOG_BYTES_MAX
    for text in reversed(found[-lines:]):
        shown = line(text, LOG_LINE_CHARS)
        left -= len(shown.encode())
        if left < 0:
            break
        kept.append(shown)
    kept.reverse()
    return kept


def up(message: Upward | pb.LogChunk) -> pb.AgentMessage:
    """What is sent."""
    match message:
        case SendReport(report=report):
            return pb.AgentMessage(report=report_to_proto(report))
        case SendEvents(events=events):
            return pb.AgentMessage(events=attempt_events_to_proto(events))
        case RequestResync(generation=generation):
            return pb.AgentMessage(resync=pb.ResyncRequest(generation=generation))
        case pb.LogChunk():
            return pb.AgentMessage(log=message)
        case _:
            assert_never(message)


async def raise_status(call: Any) -> None:
    """Raise what the peer ended the stream with."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        raise ConnectionError("the orchestrator ended the stream")
    raise grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details(), debug_error_string=None
    )


def trailer(error: grpc.aio.AioRpcError, key: str) -> str:
    """What a refusal says under this key, "" if nothing."""
    metadata: Any = error.trailing_metadata()
    found = dict(metadata or ()).get(key, "")
    return found if isinstance(found, str) else ""
