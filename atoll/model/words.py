"""Durations, sizes and numbers of things as people read them, in tables, sentences and the texts of errors alike.

Decides precision and units: three significant figures are what a glance takes in. Programs get the integers.
"""

from __future__ import annotations

from typing import Final

# Six digits tell apart what differs by a millionth; what differs by less is nobody's reason for anything.
_FINER_MAX: Final = 3
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


def count(number: int, singular: str, plural: str = "") -> str:
    """ "1 job", "3 jobs"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def size(count: int, finer: int = 0) -> str:
    """ "812 B", "8.30 MB", "24.1 GB"; decimal units, as disks and networks are sold in. `finer`: so many digits more."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1_000, unit + 1
    if unit == 0:
        return f"{count} B"
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places + finer}f} {_BYTE_UNITS[unit]}"


def sizes(one: int, other: int) -> tuple[str, str]:
    """Both as `size`, in as many digits as tell them apart: who reads that 33.7 GB do not fit into 33.7 GB takes it for a mistake."""
    finer = next((digits for digits in range(_FINER_MAX) if one == other or size(one, digits) != size(other, digits)), _FINER_MAX)
    return size(one, finer), size(other, finer)
