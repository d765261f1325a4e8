"""The status contract: every error of Atoll's as one gRPC status with the same details.

Decides codes and details only. A caller learns of our own bugs a reference, nothing else.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from atoll.catalog.likeness import alike
from atoll.model.errors import AtollError, ConflictError, FieldError, LimitError, NotFoundError, StateError, quoted
from orchestrator.core.outputs import Refusal, RefusalCode
from orchestrator.refusals import CoreFailedError, NotLeadingError, RefusedError

_log = structlog.get_logger(__name__)

FIELD_KEY: Final = "atoll-field"
RETRY_KEY: Final = "atoll-retry-after-ms"
# Only of an orchestrator that stands by: where the leader is, or that nobody leads at this moment. What was asked for had no effect.
LEADER_KEY: Final = "atoll-leader"
NO_LEADER: Final = "none"
REFERENCE_KEY: Final = "atoll-reference"
# Read by gRPC's own retries: the pause a server asks for.
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
# Read by `grpc_status.rpc_status.from_call` and its kin in other languages.
DETAILS_KEY: Final = "grpc-status-details-bin"

CODES: Final = {
    RefusalCode.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    RefusalCode.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    RefusalCode.QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    RefusalCode.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
}
# HTTP/2 headers are bytes of at most 16 KiB in all; a message of this length says enough.
_MESSAGE_CHARS: Final = 2_000
# Names that are all told where none is like the one that was meant.
_LISTED_MAX: Final = 5


class UnauthenticatedError(AtollError):
    """No credential, or one that nobody has."""


class ForbiddenError(AtollError):
    """A good credential that does not allow this."""


class TooLargeError(AtollError):
    """What a caller sends is larger than what is taken."""


class CorruptError(AtollError):
    """Stored bytes are not what was promised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One error as it goes out."""

    code: grpc.StatusCode
    message: str
    field: str = ""
    retry_after_ms: int = 0
    reference: str = ""
    leader: str = ""

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata: Atoll's own keys, gRPC's push-back, and google.rpc details."""
        found: list[tuple[str, str | bytes]] = []
        details: list[any_pb2.Any] = []
        if self.field:
            found.append((FIELD_KEY, _ascii(self.field)))
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
        if self.retry_after_ms:
            found.append((RETRY_KEY, str(self.retry_after_ms)))
            found.append((PUSHBACK_KEY, str(self.retry_after_ms)))
            pause = duration_pb2.Duration()
            pause.FromMilliseconds(self.retry_after_ms)
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=pause)))
        if self.leader:
            found.append((LEADER_KEY, _ascii(self.leader)))
            details.append(_packed(error_details_pb2.ErrorInfo(reason="NOT_LEADER", domain="atoll", metadata={"leader": self.leader})))
        if self.reference:
            found.append((REFERENCE_KEY, self.reference))
            details.append(_packed(error_details_pb2.RequestInfo(request_id=self.reference)))
        if details:
            number: int = self.code.value[0]
            rich = status_pb2.Status(code=number, message=self.message, details=details)
            found.append((DETAILS_KEY, rich.SerializeToString()))
        return tuple(found)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def refusal_status(refusal: Refusal) -> Status:
    """A core's or a driver's refusal."""
    return Status(
        code=CODES[refusal.code],
        message=refusal.message[:_MESSAGE_CHARS],
        field=refusal.field,
        retry_after_ms=refusal.retry_after_ms,
    )


def field_refusal(error: FieldError) -> Refusal:
    """A wrong field as a refusal, for requests that hold many."""
    return Refusal(code=RefusalCode.INVALID, message=str(error)[:_MESSAGE_CHARS], field=error.field)


def status_of(error: Exception, request_id: str) -> Status:
    """The status of any error; one that is not Atoll's is our bug: logged in full, told as a reference only."""
    match error:
        case RefusedError(refusal=refusal):
            return refusal_status(refusal)
        case NotLeadingError(leader=leader, retry_after_ms=retry_after_ms):
            return Status(code=grpc.StatusCode.UNAVAILABLE, message=str(error), retry_after_ms=retry_after_ms, leader=leader or NO_LEADER)
        case FieldError(field=field):
            return Status(code=grpc.StatusCode.INVALID_ARGUMENT, message=str(error)[:_MESSAGE_CHARS], field=field)
        case NotFoundError():
            return Status(code=grpc.StatusCode.NOT_FOUND, message=str(error))
        case ConflictError():
            return Status(code=grpc.StatusCode.ALREADY_EXISTS, message=str(error))
        case StateError():
            return Status(code=grpc.StatusCode.FAILED_PRECONDITION, message=str(error))
        case LimitError(retry_after_ms=retry_after_ms):
            return Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message=str(error), retry_after_ms=retry_after_ms)
        case UnauthenticatedError():
            return Status(code=grpc.StatusCode.UNAUTHENTICATED, message=str(error))
        case ForbiddenError():
            return Status(code=grpc.StatusCode.PERMISSION_DENIED, message=str(error))
        case TooLargeError():
            return Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message=str(error))
        case CorruptError():
            return Status(code=grpc.StatusCode.DATA_LOSS, message=str(error))
        case CoreFailedError(reference=reference):
            return _internal(reference)
        case _:
            reference = uuid.uuid4().hex
            _log.error("request_failed", reference=reference, request_id=request_id, exc_info=error)
            return _internal(reference)


def _internal(reference: str) -> Status:
    return Status(code=grpc.StatusCode.INTERNAL, message=f"internal error, reference {reference}", reference=reference)


def did_you_mean(field: str, value: str, what: str, known: Collection[str], *, guess: bool = True) -> FieldError:
    """An unknown name, with those that look like it (unless told not to look); `what` is the noun of what there should be."""
    close = alike(value, known) if guess else []
    if close:
        return FieldError(field, value, f"a known {what}; did you mean {_either(close)}?")
    if len(known) > _LISTED_MAX:
        # Some of many would be those that happen to come first, which nobody meant.
        return FieldError(field, value, f"a known {what}" + (f"; none of the {len(known)} is like it" if guess else ""))
    return FieldError(field, value, f"a known {what} ({', '.join(sorted(known)) or 'none yet'})")


def not_found(kind: str, name: str, known: Collection[str]) -> NotFoundError:
    """There is no such thing, and those of its kind that look like it."""
    close = alike(name, known)
    return NotFoundError(kind, name, f"did you mean {_either(close)}?" if close else "")


def _either(names: list[str]) -> str:
    return " or ".join(quoted(name) for name in names)
