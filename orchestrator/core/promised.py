"""Open promises to jobs that wait, by kind.

Decides the form only (`promises` decides when they are made and settled).
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.ids import JobId
from atoll.model.job import Priority
from orchestrator.core.learning.waits import WaitKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A job came at an instant, and was predicted to execute after so long."""

    at_us: int
    predicted_us: int


@dataclass(slots=True, kw_only=True)
class Kind:
    """Open promises of a kind, and when the last was made."""

    open: dict[JobId, Promise]
    last_us: int = 0


Promises = dict[WaitKey, Kind]


def no_promises() -> Promises:
    """Of every kind none."""
    return {(priority, gang): Kind(open={}) for priority in Priority for gang in (False, True)}
