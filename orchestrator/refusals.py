"""Refusals as exceptions: what a reader or a stream raises where a request would be answered with a Refusal.

Decides the wording of "not now". Must not know gRPC: `orchestrator.api.status` maps these.
"""

from __future__ import annotations

from typing import Final

from atoll.model.errors import AtollError
from orchestrator.core.outputs import Refusal, RefusalCode

# A reload from the store takes well under a second at usual sizes; a restart a few.
_SOON_MS: Final = 500
_LATER_MS: Final = 2_000


class RefusedError(AtollError):
    """A Refusal on its way to the caller."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class NotLeadingError(AtollError):
    """This orchestrator stands by: nothing that it is asked for has any effect. `leader`: where the one is that leads, "" if not known."""

    def __init__(self, message: str, leader: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.leader = leader
        self.retry_after_ms = retry_after_ms


class CoreFailedError(AtollError):
    """The core raised: our bug. `reference` finds it in the log; the caller learns nothing else."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"internal error, reference {reference}")
        self.reference = reference


def unavailable(message: str, retry_after_ms: int) -> Refusal:
    """A Refusal that asks to come back."""
    return Refusal(code=RefusalCode.UNAVAILABLE, message=message, retry_after_ms=retry_after_ms)


# Ended jobs leave once a minute; a person who defragments, or raises a quota, takes longer.
_ROOM_MS: Final = 30_000


def store_full(why: str) -> Refusal:
    """Nothing new is accepted; what was accepted goes on."""
    return unavailable(f"no room for new jobs: {why}", _ROOM_MS)


SHUTTING_DOWN: Final = unavailable("the orchestrator is shutting down", _LATER_MS)
RELOADING: Final = unavailable("the orchestrator is loading its state from the store", _SOON_MS)
# Whether the commit took effect is unknown: the same idempotency key asked again finds out.
COMMIT_LOST: Final = unavailable("the store did not confirm the write: ask again with the same idempotency key", _SOON_MS)
# Where the leader is then is known elsewhere, if anywhere.
OUT_OF_TOUCH: Final = unavailable("the orchestrator does not reach its store, and another may lead by now", _SOON_MS)
DEPOSED: Final = unavailable("another orchestrator took over", _SOON_MS)
OVERLOADED: Final = unavailable("more submits are waiting than can be made durable soon", _SOON_MS)
