"""What etcd's refusals mean to a caller.

Decides which failures may pass by themselves: only those are tried again. Must not know what was asked for.
"""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from atoll.model.errors import AtollError

# Of another's text so much is shown: gRPC lists every address it tried, with a reason each.
_DETAILS_CHARS: Final = 400

_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,  # no leader, leader changed, timed out, cannot connect
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # by a member that stops
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,  # "context canceled", "raft: stopped": whatever a member in trouble had no code for
        grpc.StatusCode.INTERNAL,  # a stream that was reset under a call
    }
)


class EtcdError(AtollError):
    """etcd did not do what was asked. What became of a write that met this is not known unless a subclass says so."""


class EtcdUnavailableError(EtcdError):
    """No answer for as long as was allowed: no majority, nobody there, or no way to them."""


class EtcdCompactedError(EtcdError):
    """The revision asked for is history that etcd no longer has. `revision`: the oldest that it has; 0: not said."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class EtcdFullError(EtcdError):
    """etcd's quota of space is used up: it takes nothing until it was compacted, defragmented and its alarm disarmed."""


class EtcdDeniedError(EtcdError):
    """User, password, token or permissions are not what etcd wants. Nothing was written."""


class EtcdRejectedError(EtcdError):
    """etcd will never take this request: our bug, or a limit of its that was set lower than its default. Nothing was written."""


class EtcdLeaseGoneError(EtcdError):
    """There is no such lease any more, and none of its keys."""


class EtcdLeaseExistsError(EtcdRejectedError):
    """The id is taken: by an earlier try of the same grant, as ids are drawn from so many."""


class EtcdTokenError(EtcdDeniedError):
    """The token ran out: another one is to be had for the same password."""


def passes(error: grpc.RpcError) -> bool:
    """Whether the same request may succeed a moment later, without anybody's doing."""
    code, details = _code(error), _details(error)
    return code in _PASSING or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and "too many requests" in details)


def told(error: grpc.RpcError) -> EtcdError:
    """The refusal as a typed error, in words for an operator."""
    code, details = _code(error), _details(error)
    if "has been compacted" in details:
        return EtcdCompactedError(f"etcd no longer has that revision: {details}")
    if "database space exceeded" in details:
        return EtcdFullError(
            f"etcd is full: {details}; compact and defragment it, then `etcdctl alarm disarm`, or raise its --quota-backend-bytes"
        )
    if "requested lease not found" in details:
        return EtcdLeaseGoneError(details)
    if "lease already exists" in details:
        return EtcdLeaseExistsError(details)
    if code is grpc.StatusCode.UNAUTHENTICATED or "revision of auth store is old" in details:
        return EtcdTokenError(f"etcd does not accept the token: {details}")
    if "authentication is not enabled" in details:
        return EtcdDeniedError("etcd has no authentication switched on, but a user was given: leave the user out, or `etcdctl auth enable`")
    if "user name is empty" in details or "user name not found" in details:
        return EtcdDeniedError("etcd asks for a user: give --store-user, and its password in ATOLL_ORCHESTRATOR_STORE_PASSWORD")
    if "authentication failed" in details:
        return EtcdDeniedError("etcd does not know this user with this password (--store-user, ATOLL_ORCHESTRATOR_STORE_PASSWORD)")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return EtcdDeniedError(f"etcd's user may not do this: {details}; grant its role readwrite on the whole prefix of the store")
    if passes(error):
        return EtcdUnavailableError(f"etcd does not answer: {details or code.name}")
    return EtcdRejectedError(f"etcd refused ({code.name}): {details}")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _details(error: grpc.RpcError) -> str:
    details = str(error.details() or "") if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)
    return details if len(details) <= _DETAILS_CHARS else f"{details[:_DETAILS_CHARS]}..."
