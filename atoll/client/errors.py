"""What a call can end with, as typed errors, and how a gRPC status becomes one.

Decides which error a caller sees. Must not know which method was called: whether to ask again is `atoll.client.patience`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc

from atoll.model.errors import AtollError
from atoll.model.job import Job

# Every answer of an orchestrator carries it, also every refusal; what gRPC itself says of a broken connection does not.
_ANSWERED_KEY: Final = "x-request-id"
# How gRPC tells the answer of a web server, whatever status it makes of that.
_FOREIGN: Final = "received http2 header with status"
# Whoever listens takes a connection before it can say anything: so does an orchestrator that starts.
SAYS_NOTHING: Final = "something listens there and says nothing yet"
# What gRPC calls what went wrong, and what a person calls it; the first sign that is found counts.
_TROUBLES: Final = {
    "connection refused": "connection refused",
    "before receiving settings": SAYS_NOTHING,
    "handshake read failed": SAYS_NOTHING,
    "failed parsing http/2": "what answers there is no orchestrator",
    _FOREIGN: "what answers there is a web server or a proxy",
    "connection reset": "the connection broke",
    "broken pipe": "the connection broke",
    "no route to host": "there is no way to it",
    "unreachable": "there is no way to it",
    "timed out": "no answer in time",
    "certificate_verify_failed": "its TLS certificate is not signed by the given authority",
    "wrong_version_number": "it does not speak TLS",
    "ssl": "TLS handshake failed",
    "dns resolution failed": "its name cannot be resolved",
    "domain name not found": "its name cannot be resolved",
    "socket closed": "the connection broke",
    "deadline exceeded": "no answer in time",
}
# The longest pause a server can ask for that is believed: a day.
_RETRY_AFTER_MS_MAX: Final = 86_400_000


class ClientError(AtollError):
    """Root of what the SDK raises.

    `field` is the dotted name of the input that is wrong, or "". `retry_after_ms` is the pause asked for, or 0.
    `reference` finds the failure in the orchestrator's log, or "".
    """

    def __init__(self, message: str, *, field: str = "", retry_after_ms: int = 0, reference: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_ms = retry_after_ms
        self.reference = reference


class InputError(ClientError):
    """An argument is wrong; the message names field, value and what would be right."""


class SettingsError(ClientError):
    """The address, the credential or the configuration file is wrong."""


class NotFoundError(ClientError):
    """There is no such thing, or it belongs to somebody else."""


class ConflictError(ClientError):
    """It exists already with other content, such as another job under the same idempotency key."""


class StateError(ClientError):
    """The thing is not in a state that allows this."""


class LimitError(ClientError):
    """A quota or a bound is reached; `retry_after_ms` says when another try makes sense (0: not by waiting)."""


class AuthError(ClientError):
    """No credential, or one that is not known."""


class ForbiddenError(AuthError):
    """The credential is known and does not allow this."""


class UnavailableError(ClientError):
    """No orchestrator answered, or it asks to come back. What was asked for may have taken effect."""


class UnreachableError(UnavailableError):
    """No orchestrator answered."""


class NotLeadingError(UnavailableError):
    """An orchestrator answered that stands by, and what was asked for had no effect. `leader`: what it says of where the leader is."""

    def __init__(self, message: str, *, leader: str, retry_after_ms: int = 0) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self.leader = leader


class DeadlineError(ClientError):
    """It took longer than it was given. What was asked for may still take effect."""


class CorruptError(ClientError):
    """Bytes arrived that are not what was promised."""


class InternalError(ClientError):
    """The orchestrator failed in a way that is its own fault; `reference` finds it in its log."""


class UnsupportedError(ClientError):
    """The orchestrator does not know this method: it is of another version."""


class JobEndedError(ClientError):
    """The job reached its end without a result; `job` says how."""

    def __init__(self, job: Job) -> None:
        why = f": {job.failure.words}" if job.failure else ""
        if not why and job.cancel_reason:
            why = f": {job.cancel_reason}"
        super().__init__(f"job {job.job_id} ended as {job.state}{why}")
        self.job = job


_CLASSES: Final[dict[grpc.StatusCode, type[ClientError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.OUT_OF_RANGE: InputError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: StateError,
    grpc.StatusCode.ABORTED: StateError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitError,
    grpc.StatusCode.UNAUTHENTICATED: AuthError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DATA_LOSS: CorruptError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
}
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}

Metadata = Iterable[tuple[str, str | bytes]]


def of_status(code: grpc.StatusCode, message: str, trailers: Metadata = ()) -> ClientError:
    """The error of a status and its trailing metadata."""
    field, retry_after_ms, reference, leader = "", 0, "", ""
    details = b""
    for key, value in trailers:
        match key, value:
            case "atoll-field", str():
                field = value
            case "atoll-retry-after-ms", str() if value.isascii() and value.isdecimal() and len(value) < 16:
                retry_after_ms = min(int(value), _RETRY_AFTER_MS_MAX)
            case "atoll-reference", str():
                reference = value
            case "atoll-leader", str():
                leader = value
            case "grpc-status-details-bin", bytes():
                details = value
            case _:
                pass  # others' metadata, or not of the form agreed on
    if details and not (field or retry_after_ms or reference):
        field, retry_after_ms, reference = _of_details(details)
    known = _CLASSES.get(code, InternalError)
    text = message or f"the orchestrator answered {code.name} without a message"
    if leader and known is UnavailableError:
        return NotLeadingError(text, leader=leader, retry_after_ms=retry_after_ms)
    return known(text, field=field, retry_after_ms=retry_after_ms, reference=reference)


def of_rpc(error: Any, *, address: str) -> ClientError:
    """The error of a failed call, as either of gRPC's two APIs raises it."""
    code: grpc.StatusCode = error.code()
    trailers = tuple(error.trailing_metadata() or ())
    details = error.details() or ""
    broken = code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} or _FOREIGN in details.lower()
    if broken and not any(key == _ANSWERED_KEY for key, _ in trailers):
        unanswered = UnreachableError(f"no orchestrator answers at {address} ({_why(details)})")
        # Of use to who looks at a traceback, and to nobody else.
        unanswered.add_note(f"gRPC: {details}")
        return unanswered
    return of_status(code, details, trailers)


def _why(details: str) -> str:
    """What gRPC says of a connection that is not, in the words of a person."""
    lowered = details.lower()
    if "last error: " in lowered and "socket closed" in lowered:  # not later, in the middle of a call
        return "it takes no connection without TLS, or is no orchestrator"
    return next((words for sign, words in _TROUBLES.items() if sign in lowered), "no connection came about")


def refuse_unreachable(error: ClientError, address: str) -> None:
    """Raise what the first word to an orchestrator ended with, if it means that there is none; any other answer comes from one."""
    if isinstance(error, DeadlineError):
        raise UnreachableError(f"no orchestrator answers at {address} (no answer in time)") from None
    if isinstance(error, UnavailableError):
        raise error from None


def of_refusal(code: int, message: str, field: str, retry_after_ms: int) -> ClientError:
    """The error of one refused entry of a batch; `code` as in google.rpc.Code."""
    known = _CLASSES.get(_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), InternalError)
    return known(message or f"refused with code {code}", field=field, retry_after_ms=max(retry_after_ms, 0))


def _of_details(details: bytes) -> tuple[str, int, str]:
    """Field, pause and reference out of google.rpc details: a proxy may keep those and drop Atoll's own keys."""
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    field, retry_after_ms, reference = "", 0, ""
    try:
        for detail in status_pb2.Status.FromString(details).details:
            bad, retry, info = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
            if detail.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_ms = max(0, min(retry.retry_delay.ToMilliseconds(), _RETRY_AFTER_MS_MAX))
            elif detail.Unpack(info):
                reference = info.request_id
    except DecodeError:
        pass  # the status and its message stand without them
    return field, retry_after_ms, reference
