"""Probabilities of something happening within a time, in whole parts per million.

Decides how 1 - exp(-x) is computed: in fixed-point integers, so that a replay gives the same on every machine.
"""

from __future__ import annotations

from typing import Final, TypeVar

from orchestrator.core.placement.rows import Ints

Number = TypeVar("Number", int, Ints)

_PPM: Final = 1_000_000
# 30 binary digits: products of two stay within int64. Shifts, not divisions: nothing is negative, and this runs for every row.
_BITS: Final = 30
_ONE: Final = 1 << _BITS
# x is halved this often before the series and the result squared as often: the series then sees at most 1/32.
_HALVINGS: Final = 8
# exp(-8) is 335 ppm; beyond it "certain" is near enough.
X_PPM_MAX: Final = 8 * _PPM


def within_ppm(x_ppm: Number) -> Number:
    """1 - exp(-x) in parts per million, of an expected number of events x in parts per million, 0 to X_PPM_MAX. Off by at most 2."""
    y = (x_ppm * _ONE // _PPM) >> _HALVINGS
    squared = (y * y) >> _BITS
    survival = _ONE - y + (squared >> 1) - ((squared * y) >> _BITS) // 6 + ((squared * squared) >> _BITS) // 24
    for _ in range(_HALVINGS):
        survival = (survival * survival) >> _BITS
    likely: Number = ((_ONE - survival) * _PPM) >> _BITS
    return likely
