"""What people write on a command line, as figures: durations, sizes, prices, numbers.

Decides how such text is read. Every refusal names the option, the value and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError, quoted

DURATION_RULE: Final = "a duration such as 90s, 10m or 1h30m"
SIZE_RULE: Final = f"WIDTHxHEIGHT in pixels, each from {limits.SIDE_PX_MIN} to {limits.SIDE_PX_MAX}, such as 1280x720"
RATE_RULE: Final = "a rate such as 10Gbps, 500Mbps (bits) or 1.2GB/s (bytes)"
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([kMGT]?)(bps|B/s)\Z")
BYTES_RULE: Final = "a size such as 500MB, 200GB or 64GiB"
_BYTES: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([kMGT])(i?)B\Z")
_PREFIXES: Final = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000, "T": 1_000_000_000_000}
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,8}(?:\.\d{1,3})?)s)?(?:(\d{1,9})ms)?\Z")
_SIZE = re.compile(r"(\d{1,5})[xX\N{MULTIPLICATION SIGN}](\d{1,5})\Z")
_FACTORS_MS: Final = (86_400_000, 3_600_000, 60_000, 1_000, 1)


def is_duration(text: str) -> bool:
    """Whether a text is meant as a duration."""
    match = _DURATION.match(text.strip().lower())
    return match is not None and any(match.groups())


def duration_ms(option: str, text: str, *, low_ms: int = 1, high_ms: int = limits.DEADLINE_MS_MAX) -> int:
    """Milliseconds of "10m", "90s", "1h30m", "250ms"; a bare number is refused, because nobody knows its unit."""
    match = _DURATION.match(text.strip().lower())
    if not match or not is_duration(text):
        raise FieldError(option, text, DURATION_RULE)
    total = round(sum(float(part) * factor for part, factor in zip(match.groups(), _FACTORS_MS, strict=True) if part))
    if not low_ms <= total <= high_ms:
        raise FieldError(option, text, f"{DURATION_RULE}, from {_shown(low_ms)} to {_shown(high_ms)}")
    return total


def size_px(option: str, text: str) -> tuple[int, int]:
    """(width, height) of "1280x720"."""
    match = _SIZE.match(text.strip())
    if not match:
        raise FieldError(option, text, SIZE_RULE)
    width, height = int(match[1]), int(match[2])
    if not all(limits.SIDE_PX_MIN <= side <= limits.SIDE_PX_MAX for side in (width, height)):
        raise FieldError(option, text, SIZE_RULE)
    if width * height > limits.FRAME_PX_MAX:
        raise FieldError(option, text, f"at most {limits.FRAME_PX_MAX} pixels a frame")
    return width, height


def whole(option: str, text: str | None, low: int, high: int, default: int = 0) -> int:
    """A whole number in low..high; `default` when the option was not given."""
    if text is None:
        return default
    expected = f"a whole number from {low} to {high}"
    if not re.fullmatch(r"[+-]?\d{1,30}", text.strip()):
        raise FieldError(option, text, expected)
    number = int(text)
    if not low <= number <= high:
        raise FieldError(option, text, expected)
    return number


def gang_size(option: str, text: str | None) -> int:
    """How many GPUs of one node at once; 1 when the option was not given."""
    if text is None:
        return 1
    if text.strip() not in (sizes := {str(size): size for size in limits.GANG_SIZES}):
        raise FieldError(option, text, f"one of {', '.join(sizes)}")
    return sizes[text.strip()]


def decimal(option: str, text: str | None, low: float, high: float) -> float | None:
    """A finite number in low..high; None when the option was not given."""
    if text is None:
        return None
    expected = f"a number from {low:g} to {high:g}"
    try:
        number = float(text)
    except ValueError:
        raise FieldError(option, text, expected) from None
    if not math.isfinite(number) or not low <= number <= high:
        raise FieldError(option, text, expected)
    return number


def bytes_per_s(option: str, text: str) -> int:
    """Bytes per second of "10Gbps", "500Mbps" (bits) or "1.2GB/s", "80MB/s" (bytes)."""
    match = _RATE.match(text.strip())
    if not match:
        raise FieldError(option, text, RATE_RULE)
    factor = _PREFIXES[match[2]]
    found = round(float(match[1]) * factor / (8 if match[3] == "bps" else 1))
    if not 1 <= found <= limits.RATE_BYTES_PER_S_MAX:
        raise FieldError(option, text, RATE_RULE)
    return found


def size_bytes(option: str, text: str) -> int:
    """Bytes of "500MB", "200GB", "64GiB"; a bare number is refused, because nobody knows its unit."""
    match = _BYTES.match(text.strip())
    if not match:
        raise FieldError(option, text, BYTES_RULE)
    factor = 1 << 10 * ("kMGT".index(match[2]) + 1) if match[3] else _PREFIXES[match[2]]
    found = round(float(match[1]) * factor)
    if not 1 <= found <= limits.BYTES_MAX:
        raise FieldError(option, text, BYTES_RULE)
    return found


def price_usd(option: str, text: str) -> float:
    """US dollars of "0.25" or "$0.25"."""
    return decimal(option, text.strip().removeprefix("$"), 0, limits.PRICE_USD_MICROS_MAX / 1_000_000) or 0.0


def price_limit_usd(option: str, text: str | None) -> float | None:
    """As `price_usd`, of what something may cost; None when the option was not given. What rounds to no micro-dollar is no price."""
    if text is None:
        return None
    most = limits.PRICE_USD_MICROS_MAX // 1_000_000
    try:
        found = price_usd(option, text)
    except FieldError:
        found = 0.0
    if not round(found * 1_000_000):
        raise FieldError(option, text, f"dollars from 0.000001 to {most}; without the option there is no limit")
    return found


def names(values: list[str] | None) -> tuple[str, ...]:
    """Names of a repeated option, each of which may be a list with commas."""
    return tuple(name for value in values or () for name in value.split(",") if name)


def labels(values: list[str] | None) -> tuple[str, ...]:
    """As `names`, of names with spaces: "San Jose, CA" is one, "Tokyo,N. Virginia" are two."""
    return tuple(name for value in values or () for name in re.split(r",(?! )", value) if name)


def meant(name: str, known: Collection[str]) -> str:
    """What an unknown name may stand for, as the end of a sentence; "" where nothing looks like it."""
    from atoll.catalog.likeness import alike

    close = alike(name, known)
    return f"; did you mean {' or '.join(map(quoted, close))}?" if close else ""


def _shown(duration: int) -> str:
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if duration % factor == 0:
            return f"{duration // factor}{unit}"
    return f"{duration}ms"
