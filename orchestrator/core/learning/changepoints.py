"""Whether a site has lastingly changed: a two-sided CUSUM of its standardised residuals, per component.

Decides when a run of residuals to one side is no chance any more, and how large the change is. Must not know what is done about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Final

from atoll.model.learned import WatchState
from orchestrator.core.learning.logs import ONE

# Half of the smallest change that should be found, and how far the sum must run, in standard deviations. A site as it should be alarms
# once in half a million observations; one that changed by one standard deviation after 24, by four after 4.
_SLACK: Final = ONE // 2
_ALARM: Final = 12 * ONE
# One observation counts at most this much: an alarm takes at least four.
_STANDARD_MAX: Final = 4 * ONE
# A site is watched once it has so much evidence (observations x 2^16); before, its residuals are what is still to be learned.
WATCH_FROM: Final = 24 * ONE
# Below this spread (3.5 %) residuals are rounding, and every site would alarm.
_SPREAD_MIN: Final = ONE // 20
# How far a model that has not been seen there yet may be from what is known of others, as a spread: a quarter of an octave.
_UNSEEN: Final = ONE // 4
# What a change adds to the stated P90 halves about every five observations.
_WIDENED_KEEP: Final = (ONE * 7) // 8


def standard_deviation(variance: int, weights: tuple[int, int], leftover: int, shrink: int) -> int:
    """The spread of a residual as a log: within a mode (2^-16 square octaves), of a site and of a model there with this much evidence
    (x 2^16), and of what the site's shrinkage still leaves over: that is no news.
    """
    unseen = sum(_UNSEEN * _UNSEEN * shrink // (weight // ONE + shrink) for weight in weights)
    return max(isqrt((variance << 16) + unseen + leftover * leftover), _SPREAD_MIN)


@dataclass(slots=True, kw_only=True)
class Watch:
    """The sums; see `WatchState`."""

    up: int = 0
    up_log: int = 0
    up_n: int = 0
    down: int = 0
    down_log: int = 0
    down_n: int = 0
    widened_log: int = 0

    def see(self, residual: int, deviation: int) -> int:
        """One residual (a log) with its standard deviation; the change as a log if there was one, else 0. Then it begins anew."""
        self.widened_log = self.widened_log * _WIDENED_KEEP >> 16
        standard = min(max(residual * ONE // deviation, -_STANDARD_MAX), _STANDARD_MAX)
        self.up += standard - _SLACK
        self.up_log += residual
        self.up_n += 1
        if self.up <= 0:
            self.up = self.up_log = self.up_n = 0
        self.down -= standard + _SLACK
        self.down_log += residual
        self.down_n += 1
        if self.down <= 0:
            self.down = self.down_log = self.down_n = 0
        if self.up < _ALARM and self.down < _ALARM:
            return 0
        shift = self.up_log // self.up_n if self.up >= _ALARM else self.down_log // self.down_n
        self.up = self.up_log = self.up_n = self.down = self.down_log = self.down_n = 0
        self.widened_log = abs(shift) // 2
        return shift

    def take(self) -> WatchState:
        """As a frozen value."""
        return WatchState(
            up=self.up,
            up_log=self.up_log,
            up_n=self.up_n,
            down=self.down,
            down_log=self.down_log,
            down_n=self.down_n,
            widened_log=self.widened_log,
        )
