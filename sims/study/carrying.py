"""How long a fleet is busy with some work at the least: spread over its GPUs so that all are done soonest, and cut like water.

Decides what a fleet of unequal GPUs can carry. No schedule does it sooner: it would have to load, wait and keep jobs whole besides. A
GPU that takes four times as long as the fastest counts a quarter of it, and nothing for work that it cannot do. Must not know traces,
sites or deadlines.

The least time is that of a linear programme: classes of jobs share types of GPUs. By its dual, any prices of GPU time prove a bound:
the work on the cheapest GPUs for each class, over the price of all of them. The prices are found as in a market: what is asked for more
becomes dearer. Each class spreads over what costs it nearly the same, so that they settle; "nearly" shrinks until the bound is within a
part in a thousand of a spread that can be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Microseconds of one job by pool, each of its GPUs counted: what makes a class.
Times = tuple[tuple[str, int], ...]
# What a class takes for nearly the same price, as a natural logarithm: from a fifth of the prices there are to less than what is told.
_NEARNESS: Final = (0.2, 0.1, 0.03, 0.01, 0.003, 0.001)
# Prices settle in a hundred or two at each nearness; a matrix of a hundred classes and twenty types takes 20 us a step.
_STEPS: Final = 400
# A type that nobody asks for becomes cheaper step by step, not at once.
_LEAST_USE: Final = 1e-3
# Digits that are told: more than the method has, fewer than processors may differ in.
_DIGITS: Final = 4


def busy_us(work: Mapping[Times, int], slots: Mapping[str, int]) -> int:
    """The least microseconds for so many jobs of each class; a class that no pool can do counts nothing. To four digits; 0: no work."""
    counts, times, capacity = _matrix(work, slots)
    if not len(counts):
        return 0
    with np.errstate(divide="ignore"):
        log_times = np.log(times)
    demand = np.where(np.isfinite(times), times, 0.0) * counts[:, None]
    log_prices = np.zeros(len(capacity))
    bound = 0.0
    for nearness in _NEARNESS:
        for _ in range(_STEPS):
            costs = log_prices + log_times
            cheapest = costs.min(axis=1)
            spread = np.exp((cheapest[:, None] - costs) / nearness)
            spread /= spread.sum(axis=1)[:, None]
            paid = float((counts * np.exp(cheapest)).sum() / (capacity * np.exp(log_prices)).sum())
            bound = max(bound, paid)
            used = (spread * demand).sum(axis=0) / capacity
            log_prices += nearness * np.log(np.maximum(used / paid, _LEAST_USE))
            log_prices -= log_prices.max()
    return int(float(f"{bound:.{_DIGITS - 1}e}"))


def _matrix(work: Mapping[Times, int], slots: Mapping[str, int]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Jobs by class, times by class and type (never: infinity), GPUs by type. Pools in which all take equally long are one type."""
    column = {name: index for index, name in enumerate(sorted(slots))}
    able = [(pairs, count) for pairs, count in sorted(work.items()) if any(slots.get(name, 0) for name, _ in pairs)]
    times = np.full((len(able), len(column)), np.inf)
    for row, (pairs, _) in enumerate(able):
        for name, took_us in pairs:
            if slots.get(name, 0):
                times[row, column[name]] = max(took_us, 1)
    useful = np.isfinite(times).any(axis=0)
    capacity = np.array([slots[name] for name in sorted(slots)], dtype=np.float64)[useful]
    types, of_type = np.unique(times[:, useful], axis=1, return_inverse=True)
    counts = np.array([count for _, count in able], dtype=np.float64)
    return counts, types, np.bincount(of_type.ravel(), weights=capacity).astype(np.float64)
