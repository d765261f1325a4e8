"""What a deadline makes of a predicted delay: whether it is in time for sure, and how late it is on average if not.

A job is ended at its deadline, and if it has not begun by its start timeout. Where that is more likely than not (the middle is later)
nobody has to leave for it: `short_us` says by how much.

Decides how the widths of predictions (`learning.widths`) become one: middles add up, and widths of errors that know nothing of one another
by their squares. In time is what 95 of 100 such completions are. Else the expected lateness is that of a normal error,

    E[max(C - D, 0)] = sigma x L((D - middle) / sigma),  L(z) = phi(z) - z (1 - Phi(z)),

and L is convex, so it is what the highest of its tangents says: at z that is sigma phi(z) + (1 - Phi(z)) (middle - D), which needs two
products and no division, and grows with the middle and with the width as it should. With these six the result is low by at most 3 % of
sigma, in the tails. Integers only: the scalar form is for `kernel`, the other for `vectors`, and a test holds them together.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from atoll.model.learned import Start
from orchestrator.core.placement.machine_code import jit
from orchestrator.core.placement.rows import COLD, NO_DEADLINE, STARTS, WIDTHS_EACH, Dyn, Fix, Ints, Rate, Source

# phi(z) / 1.645 and 1 - Phi(z), both times 2^10, at z = -1, -1/2, 0, 1/2, 1 and 3/2. The first is of widths: P95 less P50 is 1.645 sigma.
_SHIFT: Final = 10
_HEIGHTS: Final = (150, 219, 248, 219, 150, 80)
_SLOPES: Final = (861, 708, 512, 315, 162, 68)
# A delay beyond four years, a width beyond sixteen times the prediction: products with them stay in int64.
_DELAY_MAX_MS: Final = 2**37
_WIDTH_MAX_MILLI: Final = 16_000
# As plain integers: see `kernel`.
_COLD, _EACH, _WIDTHS = int(COLD), int(WIDTHS_EACH), int(Rate.WIDTHS)
_WARM, _FROM_HOST, _FROM_DISK, _FROM_PEER, _FROM_ORIGIN = (
    STARTS.index(start) for start in (Start.WARM, Start.HOST, Start.DISK, Start.PEER, Start.ORIGIN)
)
_ORIGIN, _SITE, _SITE_FETCHING = int(Source.ORIGIN), int(Source.SITE), int(Source.SITE_FETCHING)
_DISK, _HOST = int(Source.DISK), int(Source.HOST)
_F_EXECUTION, _F_PEERS = int(Fix.EXECUTION), int(Fix.PEERS)
_D_BEFORE, _D_EXECUTION = int(Dyn.WIDE_BEFORE), int(Dyn.WIDE_EXECUTION)
_R_SLACK, _R_TARDY = int(Rate.SLACK), int(Rate.TARDY_MILLI)
_R_DONE, _R_BEGUN = int(Rate.DONE_WITHIN), int(Rate.BEGUN_WITHIN)


@jit
def _start(fix: Ints, row: int, pools: int, source: int) -> int:
    """How a row begins, by its number among the starts."""
    if row // pools != _COLD:
        return _WARM
    if source == _HOST:
        return _FROM_HOST
    if source == _DISK:
        return _FROM_DISK
    peers = source in (_SITE, _SITE_FETCHING) or (source == _ORIGIN and fix[row, _F_PEERS] != 0)
    return _FROM_PEER if peers else _FROM_ORIGIN


@jit
def is_timed(rates: Ints) -> bool:
    """Whether the job is ended at some time."""
    return bool(rates[_R_DONE] != NO_DEADLINE or rates[_R_BEGUN] != NO_DEADLINE)


@jit
def in_order(rates: Ints) -> bool:
    """Whether a nearer source is nowhere less sure than one that is farther away, host memory to origin store; of a job that has time for
    ever nobody asks."""
    if not is_timed(rates):
        return True
    for at in range(_WIDTHS + _EACH * _FROM_HOST, _WIDTHS + _EACH * _FROM_ORIGIN):  # noqa: SIM110 - numba compiles no generators
        if rates[at] > rates[at + _EACH]:
            return False
    return True


@jit
def outlook(fix: Ints, dyn: Ints, rates: Ints, row: int, delay: int, source: int) -> tuple[int, int]:
    """(middle, width) of a row's completion: half are done by the one, 95 of 100 by both together. Neither falls when the delay grows."""
    pool, at = row % len(dyn), _WIDTHS + _EACH * _start(fix, row, len(dyn), source)
    after = min(fix[row, _F_EXECUTION], delay)
    before, after = min((delay - after) // 1_000, _DELAY_MAX_MS), min(after // 1_000, _DELAY_MAX_MS)
    first = before * min(rates[at + 1] * dyn[pool, _D_BEFORE] // 1_000, _WIDTH_MAX_MILLI)
    second = after * min(rates[at + 3] * dyn[pool, _D_EXECUTION] // 1_000, _WIDTH_MAX_MILLI)
    wide, narrow = max(first, second), min(first, second)
    # The root of the sum of squares, off by 3 % at most.
    return int(before * rates[at] + after * rates[at + 2]), int(max(wide, wide - (wide >> 3) + (narrow >> 1)))


@jit
def tardy_us(fix: Ints, dyn: Ints, rates: Ints, row: int, delay: int, source: int) -> int:
    """What the deadline makes of a row's delay: minus all of it where it is in time for sure, else what its expected lateness is worth."""
    slack = rates[_R_SLACK]
    if slack == NO_DEADLINE:
        return 0
    middle, width = outlook(fix, dyn, rates, row, delay, source)
    if middle + width <= slack:
        return -delay
    over = middle - slack
    late = max(over, 0)
    for tangent in range(len(_HEIGHTS)):
        late = max(late, (_HEIGHTS[tangent] * width + _SLOPES[tangent] * over) >> _SHIFT)
    return int(rates[_R_TARDY] * (late // 1_000))


@jit
def short_us(fix: Ints, dyn: Ints, rates: Ints, row: int, delay: int, source: int) -> int:
    """By how much a row's job is likely to be too late, with its end or its beginning; negative: by how much it is not."""
    at = _WIDTHS + _EACH * _start(fix, row, len(dyn), source)
    after = min(fix[row, _F_EXECUTION], delay)
    begins = min((delay - after) // 1_000, _DELAY_MAX_MS) * rates[at]
    ends = begins + min(after // 1_000, _DELAY_MAX_MS) * rates[at + 2]
    return int(max(ends - rates[_R_DONE], begins - rates[_R_BEGUN]))


class Outlook(NamedTuple):
    """`tardy_us` and `short_us` of many rows."""

    tardy: Ints
    short: Ints


def outlooks(fix: Ints, dyn: Ints, rates: Ints, rows: Ints, delay: Ints, source: Ints) -> Outlook:
    """As `tardy_us` and `short_us` (0 of a job that has time for ever), of many rows; `fix` has a line for each of them."""
    none = np.zeros(len(rows), dtype=np.int64)
    if not is_timed(rates):
        return Outlook(none, none)
    slack, pools = rates[Rate.SLACK], max(len(dyn), 1)
    pool = rows % pools
    peers = (source == Source.SITE) | (source == Source.SITE_FETCHING) | ((source == Source.ORIGIN) & (fix[:, Fix.PEERS] != 0))
    start = np.where(peers, _FROM_PEER, _FROM_ORIGIN)
    start = np.where(source == Source.HOST, _FROM_HOST, np.where(source == Source.DISK, _FROM_DISK, start))
    at = _WIDTHS + _EACH * np.where(rows // pools == COLD, start, _WARM)
    after = np.minimum(fix[:, Fix.EXECUTION], delay)
    before, after = np.minimum((delay - after) // 1_000, _DELAY_MAX_MS), np.minimum(after // 1_000, _DELAY_MAX_MS)
    begins = before * rates[at]
    middle = begins + after * rates[at + 2]
    short = np.maximum(middle - rates[Rate.DONE_WITHIN], begins - rates[Rate.BEGUN_WITHIN])
    if slack == NO_DEADLINE:
        return Outlook(none, short)
    first = before * np.minimum(rates[at + 1] * dyn[pool, Dyn.WIDE_BEFORE] // 1_000, _WIDTH_MAX_MILLI)
    second = after * np.minimum(rates[at + 3] * dyn[pool, Dyn.WIDE_EXECUTION] // 1_000, _WIDTH_MAX_MILLI)
    wide, narrow = np.maximum(first, second), np.minimum(first, second)
    width = np.maximum(wide, wide - (wide >> 3) + (narrow >> 1))
    over = middle - slack
    late = np.maximum(over, 0)
    for height, slope in zip(_HEIGHTS, _SLOPES, strict=True):
        late = np.maximum(late, (height * width + slope * over) >> _SHIFT)
    return Outlook(np.where(middle + width <= slack, -delay, rates[Rate.TARDY_MILLI] * (late // 1_000)), short)
