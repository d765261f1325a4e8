"""How figures are shown to people: durations, times of day, bytes, money, digests.

Decides precision and units: three significant figures are what a glance takes in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

NONE: Final = "-"
_SHARED_FROM_US: Final = 10_000
_BYTE_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def duration(us: int) -> str:
    """ "340ms", "2.41s", "3m12s", "1h05m", "2d03h"; negative ones with a sign."""
    if us < 0:
        return f"-{duration(-us)}"
    if us < 1_000:
        return f"{us}us" if us else "0s"
    if us < 999_500:
        return f"{round(us / 1_000)}ms"
    seconds = us / 1_000_000
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(seconds / 3_600)
    return f"{hours // 24}d{hours % 24:02}h"


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


def size(count: int) -> str:
    """ "812 B", "8.30 MB", "24.1 GB"; decimal units, as disks and networks are sold in."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1_000, unit + 1
    if unit == 0:
        return f"{count} B"
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places}f} {_BYTE_UNITS[unit]}"


def rate(bytes_per_s: int) -> str:
    """Bytes per second; "-" when nothing is known."""
    return f"{size(bytes_per_s)}/s" if bytes_per_s else NONE


def money(usd_micros: int) -> str:
    """ "$4.13", "$0.0021"; four places below a dollar, where prices of single jobs are."""
    dollars = usd_micros / 1_000_000
    return f"${dollars:.2f}" if usd_micros == 0 or abs(dollars) >= 1 else f"${dollars:.4f}"


def change(predicted_us: int, actual_us: int) -> str:
    """How far off a prediction was: "+8 %". Nothing below 10 ms, of which a share says nothing."""
    if predicted_us < _SHARED_FROM_US:
        return ""
    return f"{(actual_us - predicted_us) / predicted_us * 100:+.0f} %"


def count(number: int, singular: str, plural: str = "") -> str:
    """ "1 job", "3 jobs"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
