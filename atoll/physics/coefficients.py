"""Fitted effects on execution times, and what they make of a base.

Decides how effects combine and what stands in for a GPU type that no table lists. Must not know how effects were fitted.

An effect is a thousandth of a natural logarithm of time: +100 is 10.5 % slower. Effects of one part add up. The only exponentials are here,
and their results are whole thousandths, so that every machine decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from atoll.physics.terms import Run, Stage, Term, terms

_MILLI: Final = 1_000
# exp(+-7): a thousand times faster or slower than nominal is no calibration any more, and bounds what one broken row can do.
EFFECT_MAX_MILLI: Final = 7_000
DEVICE: Final = "device:"
# Measured transitions are sharp: at equal times the sum is 9 % above either. A power of two, for its root is taken in whole numbers.
JOIN_POWER: Final = 8
# Types that no table lists: the middle of their architecture, else of all.
UNLISTED: Final = "unlisted:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where actual times lay against predictions for rows of sources left out: a tenth below, a tenth above; thousandths of a logarithm."""

    low_milli: int
    high_milli: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coefficients:
    """Effects by name, rows that spoke for each, and spreads by situation ("one", "gang", "new-device")."""

    effects_milli: Mapping[str, int]
    rows: Mapping[str, int]
    spreads: Mapping[str, Spread]


def situation(run: Run, device_seen: bool) -> str:
    """Which spread holds for a run. `device_seen`: rows spoke for its GPU type."""
    if run.gang_size > 1:
        return "gang"
    return "one" if device_seen else "new-device"


@lru_cache(maxsize=65_536)
def factor_milli(coefficients: Coefficients, keys: tuple[str, ...]) -> int:
    """exp(sum of these effects) in thousandths. At least 1."""
    total = sum(effect_milli(coefficients, key) for key in keys)
    return max(round(_MILLI * math.exp(min(max(total, -EFFECT_MAX_MILLI), EFFECT_MAX_MILLI) / _MILLI)), 1)


def effect_milli(coefficients: Coefficients, key: str) -> int:
    """One effect; 0 where nothing is known."""
    known = coefficients.effects_milli.get(key)
    if known is not None:
        return known
    if key.startswith(DEVICE):
        arch = key.rsplit(":", 1)[1]
        middle = coefficients.effects_milli.get(UNLISTED + arch)
        return coefficients.effects_milli.get(UNLISTED, 0) if middle is None else middle
    return 0


def term_ns(coefficients: Coefficients, term: Term) -> int:
    """Time of one part."""
    return term.base_ns * factor_milli(coefficients, term.effects) // _MILLI


def stages_ns(coefficients: Coefficients, run: Run) -> dict[Stage, int]:
    """Time of each stage of a run, each for itself: what of the host's work the GPU waits for is `joined`'s."""
    found = dict.fromkeys(Stage, 0)
    for term in terms(run):
        found[term.stage] += term_ns(coefficients, term)
    return found


def joined(device_ns: int, host_ns: int) -> int:
    """How long both take that go on at the same time: the longer one, and a little more where they are alike, for then the GPU waits in
    some layers and the host in others. (device^8 + host^8)^(1/8), rounded down in whole numbers."""
    return math.isqrt(math.isqrt(math.isqrt(device_ns**JOIN_POWER + host_ns**JOIN_POWER)))
