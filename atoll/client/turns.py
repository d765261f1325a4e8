"""What both clients make of a try that went wrong, and of looking for the leader among several orchestrators.

Decides as values: the clients do the asking and the waiting.
"""

from __future__ import annotations

from typing import Any, Final

import grpc

from atoll.client.errors import ClientError, DeadlineError, NotLeadingError, UnavailableError, UnreachableError, of_rpc
from atoll.client.patience import Turn
from atoll.client.settings import Settings
from atoll.model.address import Address
from atoll.whereabouts import Whereabouts

# Answered by every server, with or without a credential; asks nothing of the core.
HEALTH: Final = "/grpc.health.v1.Health/Check"
# A HealthCheckResponse that says SERVING: only a leader does.
LEADING: Final = b"\x08\x01"
# How long one of several may take to answer, before the next is asked.
_TRY_S: Final = 1.0


def typed(error: Exception, address: str) -> ClientError:
    """The error of a try."""
    return error if isinstance(error, ClientError) else of_rpc(error, address=address)


def shown(settings: Settings, where: Whereabouts) -> str:
    """Who does not answer, in words."""
    return f"{where.current}, where the leader is said to be" if where.hinted else settings.shown_address


def took_turn(where: Whereabouts, asked: Address, error: ClientError) -> Turn:
    """Whom the next try asks, after one at `asked` ended so."""
    if where.current != asked:
        return Turn.FRESH  # another thread has moved on meanwhile
    match error:
        case NotLeadingError(leader=leader):
            fresh = where.told(leader)
        case UnreachableError() | DeadlineError():
            fresh = where.unanswered()
        case UnavailableError():
            fresh = where.troubled()
        case _:
            where.answered()
            return Turn.SAME
    if not where.several:
        return Turn.SAME
    return Turn.FRESH if fresh else Turn.KNOWN


class Seeking:
    """Looking for the leader, round after round through all addresses. Times are seconds of a monotonic clock."""

    def __init__(self, settings: Settings, *, deadline_s: float) -> None:
        self._settings = settings
        self._deadline_s = deadline_s
        self._standby: Address | None = None
        self._error: Any = None

    def try_s(self, now_s: float) -> float:
        """How long to wait for the next answer."""
        return max(min(_TRY_S, self._deadline_s - now_s), 0.05)

    def stands_by(self, address: Address) -> None:
        """This one answers, and does not lead."""
        self._standby = address

    def failed(self, error: grpc.RpcError, address: Address) -> None:
        """This one does not answer; or not to this question, which counts as an answer."""
        code: grpc.StatusCode = error.code()
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
            self._error = error
        else:
            self._standby = address

    def over(self, where: Whereabouts, now_s: float) -> bool:
        """Whether to go on with what was found in this round. Raises UnreachableError when the time is over and nobody answered."""
        if self._standby is not None:
            where.found(self._standby)
            return True
        if now_s < self._deadline_s:
            return False
        told = of_rpc(self._error, address=self._settings.shown_address)
        if isinstance(told, DeadlineError):
            raise UnreachableError(f"no orchestrator answers at {self._settings.shown_address} (no answer in time)") from None
        raise told from None
