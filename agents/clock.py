"""The agent's own fleet time: this machine's monotonic clock at the scale that the orchestrator told.

Decides what time it is for the core. Never compared with another machine's clock; never steps back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

REAL_TIME_MILLI: Final = 1_000


class AgentClock:
    """Fleet time from 0 at the start of the process, running `scale_milli` thousandths as fast as real time."""

    __slots__ = ("_from_ns", "_from_us", "_monotonic_ns", "_scale_milli")

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._from_ns = monotonic_ns()
        self._from_us = 0
        self._scale_milli = REAL_TIME_MILLI

    @property
    def scale_milli(self) -> int:
        """Thousandths of real time."""
        return self._scale_milli

    def now_us(self) -> int:
        """Fleet time, microseconds since the start."""
        return self._from_us + (self._monotonic_ns() - self._from_ns) * self._scale_milli // 1_000_000

    def set_scale(self, scale_milli: int) -> None:
        """From now on fleet time runs at this scale."""
        if scale_milli != self._scale_milli:
            now_ns = self._monotonic_ns()
            self._from_us += (now_ns - self._from_ns) * self._scale_milli // 1_000_000
            self._from_ns, self._scale_milli = now_ns, scale_milli

    def real_s(self, fleet_us: int) -> float:
        """How many real seconds a duration of fleet time takes."""
        return fleet_us / 1_000 / self._scale_milli
