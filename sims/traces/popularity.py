"""How much a model is asked for: Zipf over all of them, a half-life of a month, and launches that take the place of what fades.

Decides weights; knows neither tenants nor arrivals. Everything decays alike, so what is older keeps its order, and the new enters at any
rank: the shares of a day are Zipf's again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final

HALF_LIFE_H: Final = 30 * 24
# Of one service with a hundred models. Fitted: references drawn independently find theirs among the 8 used last 70 times of 100.
MEASURED_EXPONENT: Final = 1.5
# Of hundreds: what half a dozen services like that are together, each with its favourites.
ZIPF_EXPONENT: Final = 1.1
# Models whose shares make up the mix change by launches; nobody needs them more often than by the hour.
_US_PER_H: Final = 3_600 * 1_000_000


def zipf(count: int, exponent: float) -> list[float]:
    """Shares of ranks 1 to `count`; they sum up to 1."""
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def exponent_for(count: int, top: int, share: float) -> float:
    """With which exponent the first `top` of `count` have this share."""
    low, high = 0.0, 8.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(zipf(count, middle)[:top]) < share else (low, middle)
    return low


@dataclass(slots=True, kw_only=True)
class Popularity:
    """The models that there are by now, by their number, and how much each is asked for. Numbers of launched ones follow the first."""

    weights: list[float]
    launch_gap_h: float
    random: Random
    launched: list[int] = field(default_factory=list)
    _cumulative: list[float] = field(default_factory=list)
    _next_launch_h: float = 0.0

    def draw(self) -> int:
        """One model."""
        if not self._cumulative:
            self._cumulative = list(accumulate(self.weights))
        return min(bisect_right(self._cumulative, self.random.random() * self._cumulative[-1]), len(self.weights) - 1)

    def advance(self, now_us: int) -> None:
        """Launch what is due. What was there before has decayed by then; instead of that, what is new is heavier."""
        now_h = now_us / _US_PER_H
        while self.launch_gap_h and self._next_launch_h <= now_h:
            rank = self.random.randrange(len(self.weights))
            self.launched.append(len(self.weights))
            self.weights.append(self.weights[rank] * 2 ** (self._next_launch_h / HALF_LIFE_H))
            self._cumulative = []
            self._schedule()

    def _schedule(self) -> None:
        self._next_launch_h += self.random.expovariate(1 / self.launch_gap_h)


def popularity(models: int, exponent: float, *, launches: bool, random: Random) -> Popularity:
    """The first models, number 0 asked for most; with `launches` as many new ones as keep the shares as they are."""
    gap_h = HALF_LIFE_H / (models * math.log(2)) if launches else 0.0
    found = Popularity(weights=zipf(models, exponent), launch_gap_h=gap_h, random=random)
    if launches:
        found._schedule()
    return found
