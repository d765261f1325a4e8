"""Fleet time: the orchestrator's own clock, in whole microseconds.

Decides what time it is for the fleet: the machine's monotonic clock times the scale, continued from the highest fleet time
the store has seen. Never steps back, and never reads a wall clock. Must not know who asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Real time: a thousand thousandths. Rehearsals may run faster.
REAL_TIME_MILLI: Final = 1_000
# A timer further away than this is armed again on the way there: floats of seconds stay exact and a changed scale harmless.
_LONGEST_SLEEP_S: Final = 3_600.0


class FleetClock:
    """Fleet time runs `time_scale_milli` thousandths as fast as real time, from `start_us` on."""

    __slots__ = ("_last_us", "_monotonic_ns", "_origin_ns", "_scale_milli", "_start_us")

    def __init__(
        self,
        *,
        start_us: int = 0,
        time_scale_milli: int = REAL_TIME_MILLI,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._origin_ns = monotonic_ns()
        self._start_us = start_us
        self._last_us = start_us
        self._scale_milli = time_scale_milli

    @property
    def time_scale_milli(self) -> int:
        """Thousandths of real time at which fleet time runs."""
        return self._scale_milli

    def now_us(self) -> int:
        """The fleet time, microseconds; never less than an earlier answer."""
        elapsed_us = (self._monotonic_ns() - self._origin_ns) * self._scale_milli // 1_000_000
        self._last_us = max(self._last_us, self._start_us + elapsed_us)
        return self._last_us

    def begin_at(self, fleet_time_us: int) -> None:
        """It is `fleet_time_us` now, whatever was shown before: nobody has lived by that."""
        self._origin_ns = self._monotonic_ns()
        self._start_us = self._last_us = fleet_time_us

    def not_before(self, fleet_time_us: int) -> None:
        """From now on the time is at least `fleet_time_us`: what a store has seen is past."""
        now_us = self.now_us()
        if fleet_time_us > now_us:
            self._start_us += fleet_time_us - now_us
            self._last_us = fleet_time_us

    def real_s(self, fleet_us: int) -> float:
        """How many real seconds a duration of fleet time takes."""
        return fleet_us / 1_000 / self._scale_milli

    def sleep_s(self, until_us: int) -> float:
        """Real seconds until this fleet time, at most an hour; 0 if it is past."""
        return min(max(self.real_s(until_us - self.now_us()), 0.0), _LONGEST_SLEEP_S)
