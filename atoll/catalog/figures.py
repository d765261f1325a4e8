"""Written figures -> exact integers in base units, and back: "99.5" GB/s is 99500000000 bytes a second.

Decides which spellings count as a number. Decimal throughout, so that what is written out reads back to the same integer.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

# Enough for any figure within the bounds of atoll.model.limits times any unit; no number a person writes is longer.
_DIGITS_MAX: Final = 40
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?\Z")
# A context of our own: the thread's may be anybody's.
_EXACT: Final = Context(prec=200, rounding=ROUND_HALF_EVEN)


def parse_figure(text: str, unit: int, low: int, high: int) -> int | None:
    """`text` times `unit` as a whole number of base units, rounded to even; None unless a number with a result in low..high."""
    if len(text) > 2 * _DIGITS_MAX or not _NUMBER.match(text):
        return None
    value = _EXACT.multiply(_EXACT.create_decimal(text), Decimal(unit))
    if not low <= value <= high:
        return None
    if 0 < abs(value) < 1:  # what is written as a little must not become nothing, nor more than it is
        return None
    return int(value.to_integral_value(rounding=ROUND_HALF_EVEN, context=_EXACT))


def parse_whole(text: str, low: int, high: int) -> int | None:
    """`text` if it is a whole number in low..high written in digits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        return None
    value = int(text)
    return value if low <= value <= high else None


def written(value: int, unit: int) -> str:
    """`value` base units in units, shortest exact form. `unit` must have no prime factors but 2 and 5."""
    number = _EXACT.divide(Decimal(value), Decimal(unit))
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def range_text(unit: int, low: int, high: int) -> str:
    """How a range is told to a person: what is less than one base unit, and not nothing, is outside of it."""
    if low == 0 and unit > 1:
        return f"0, or a number from {written(1, unit)} to {written(high, unit)}"
    return f"a number from {written(low, unit)} to {written(high, unit)}"
