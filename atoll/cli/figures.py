"""How figures are shown to people: durations, times of day, bytes, money, digests.

Decides precision and units: three significant figures are what a glance takes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from atoll.model import words

NONE: Final = "-"
# As in the texts of errors.
duration = words.duration
size = words.size
sizes = words.sizes
count = words.count
_SHARED_FROM_US: Final = 10_000
_SECOND_US: Final = 1_000_000
_LEAST_USD_MICROS: Final = 100
# Below that many microseconds figures are rounded to so many.
_UNITS_US: Final = ((1_000_000, 1_000), (100_000_000, 10_000), (1_000_000_000, 100_000))


def local_time(unix_ms: int) -> str:
    """ "2026-11-26 02:25:48" by this machine's clock and time zone; "-" when nothing is known."""
    return f"{datetime.fromtimestamp(unix_ms // 1_000).astimezone():%Y-%m-%d %H:%M:%S}" if unix_ms else NONE


def rfc3339(unix_ms: int) -> str | None:
    """ "2026-11-26T01:25:48.123Z", for programs; None when nothing is known."""
    if not unix_ms:
        return None
    return f"{datetime.fromtimestamp(unix_ms // 1_000, UTC):%Y-%m-%dT%H:%M:%S}.{unix_ms % 1_000:03}Z"


def seconds(us: int) -> str:
    """Seconds for a table whose heading says so: "0", "0.004", "12.3", "1842"."""
    if us == 0:
        return "0"
    value = us / 1_000_000
    if abs(value) < 0.1:
        return f"{value:.3f}"
    if abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:.0f}"


def rate(bytes_per_s: int) -> str:
    """Bytes per second; "-" when nothing is known."""
    return f"{size(bytes_per_s)}/s" if bytes_per_s else NONE


def money(usd_micros: int) -> str:
    """ "$4.13", "$0.0021"; four places below a dollar, where prices of single jobs are, and "<$0.0001" for what is less."""
    if 0 < usd_micros < _LEAST_USD_MICROS:
        return "<$0.0001"
    dollars = usd_micros / 1_000_000
    return f"${dollars:.2f}" if usd_micros == 0 or abs(dollars) >= 1 else f"${dollars:.4f}"


def change(predicted_us: int, actual_us: int) -> str:
    """How far off a prediction was: "+8 %". Nothing below 10 ms, of which a share says nothing."""
    if predicted_us < _SHARED_FROM_US:
        return ""
    return f"{(actual_us - predicted_us) / predicted_us * 100:+.0f} %"


def unit_us(us: int) -> int:
    """To what figures next to each other are rounded, the largest of which is this: three of its figures, and what is smaller as far."""
    return next((unit for below, unit in _UNITS_US if abs(us) < below), _SECOND_US)


def shares(parts: Sequence[int], whole: int, unit: int) -> list[int]:
    """Each part in whole units, so that they add up to the whole as it is rounded itself: those nearest to the next unit get it."""
    least = [part // unit for part in parts]
    missing = (whole + unit // 2) // unit - sum(least)
    nearest = sorted(range(len(parts)), key=lambda index: (-(parts[index] % unit), index))
    for index in nearest[: max(missing, 0)]:
        least[index] += 1
    return least


def in_seconds(units: int, unit: int, *, nothing: bool = False) -> str:
    """Whole units as seconds: "12.35"; "0" for what is nothing at all, and "0.00" for what only rounds to it."""
    places = len(str(_SECOND_US // unit)) - 1
    return "0" if nothing else f"{units * unit / _SECOND_US:.{places}f}"
