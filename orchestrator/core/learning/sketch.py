"""A histogram of log ratios that forgets: quantiles, the mean ratio, and whether there are two modes.

Decides the resolution (a 32nd of an octave: 2.2 %, interpolated) and the range (16 times too fast to 16 times too slow; what lies
beyond counts at the edge). Forgetting is by halving all counts, so that everything stays an integer. Must not know what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Final

from atoll.model.learned import LearnedSpread, SpreadFigures
from orchestrator.core.learning.logs import ONE, log2, times

BINS: Final = 256
_WIDTH: Final = ONE // 32
_LEAST: Final = -BINS // 2 * _WIDTH
# One observation. Fine enough that an observation which only says "at least" can be spread over the bins above it.
UNIT: Final = 1 << 10
# Counts are halved when this many observations are held, and twice as many may be held from then on, up to `most`: what was seen while
# the corrections were still being learned is soon outweighed, and in the end the last half of `most` to `most` rule.
_KEPT_FIRST: Final = 128 * UNIT
# Of totals that are promised to people: with fewer a P90, which rests on every tenth, would be off by a good part of its gate's 3 points by
# chance alone: sqrt(0.09 / 750) is 1.1 points.
KEPT_MAX: Final = 1_024 * UNIT
# Of components, whose quantiles are judged and told to nobody. Their errors become smaller for as long as sites are being learned, at 36
# sites for a thousand fetches: with two modes the median lies on the flank of one, and moves by a third meanwhile. A histogram that
# remembers as long is behind it all the time; with twice as many the median of fetches was off by 0.03 to 0.05 in six worlds of six.
RECENT_MAX: Final = 128 * UNIT
# What was within its P90 is counted over twice as many.
_COUNTED_MAX: Final = 2_048 * UNIT
# Before anything was seen: eight observations as far apart as a calibration error of 35 % makes them. Eight, as everywhere: n / (n + 8).
FIRST_GUESS: Final = tuple(octaves * ONE // 100 for octaves in (-65, -35, -15, -3, 3, 15, 35, 65))
# Two modes are told apart when their distance is four times their (pooled) spread. Below two (Ashman's D) a mixture has a single peak; a
# bell that is cut in its middle looks like 2.65, and a small sample of one like 3.
_SEPARATION: Final = 4
# A mode has at least this share, in thousandths, and so many observations: less are outliers, or the first of a change.
_SHARE_MIN_MILLI: Final = 50
_MODE_MIN: Final = 16 * UNIT
# Observations before two modes are looked for.
_MODES_FROM: Final = 64 * UNIT


def _bin_of(log: int) -> int:
    return min(max((log - _LEAST) // _WIDTH, 0), BINS - 1)


def _middle(index: int) -> int:
    return _LEAST + index * _WIDTH + _WIDTH // 2


# Ratios at the middles, in 2^-30.
_FINE: Final = 1 << 30
_RATIOS: Final = tuple(times(_FINE, _middle(index)) for index in range(BINS))


class Sketch:
    """The histogram; `held` is the sum of its counts, at most `kept_max`, which grows to `most`."""

    __slots__ = ("bins", "counted", "covered", "held", "kept_max", "most")

    def __init__(self, guess: Sequence[int] = (), *, most: int = KEPT_MAX) -> None:
        self.bins = [0] * BINS
        self.held = 0
        self.most = most
        self.kept_max = _KEPT_FIRST
        self.covered = 0
        self.counted = 0
        for log in guess:
            self.add(log)

    def add(self, log: int, weight: int = UNIT) -> None:
        """One observation, or a part of one."""
        self.bins[_bin_of(log)] += weight
        self.held += weight
        if self.held >= self.kept_max:
            self._halve()

    def add_at_least(self, log: int, weight: int = UNIT) -> None:
        """One observation that was cut off here: its weight goes to the bins above, in proportion (Kaplan and Meier's estimator)."""
        first = _bin_of(log)
        above = sum(self.bins[first:])
        if not above:
            self.add(log, weight)
            return
        given = 0
        for index in range(first, BINS):
            share = weight * self.bins[index] // above
            self.bins[index] += share
            given += share
        self.bins[first] += weight - given
        self.held += weight
        if self.held >= self.kept_max:
            self._halve()

    def cover(self, within: bool) -> None:
        """Note whether an actual was within the P90 that had been stated."""
        self.counted += UNIT
        self.covered += UNIT if within else 0
        if self.counted >= _COUNTED_MAX:
            self.counted >>= 1
            self.covered >>= 1

    def _halve(self) -> None:
        self.bins = [count >> 1 for count in self.bins]
        self.held = sum(self.bins)
        self.kept_max = min(2 * self.kept_max, self.most)

    def mean_above(self, log: int) -> int:
        """The mean of what lies above a log: what an observation that was cut off there would have been, as far as is known."""
        first = _bin_of(log)
        weight = sum(self.bins[first:])
        if not weight:
            return log
        total = sum(self.bins[index] * _middle(index) for index in range(first, BINS))
        return max(total // weight, log)

    def quantile(self, milli: int) -> int:
        """The log below which this share (in thousandths) lies; 0 of an empty histogram."""
        return quantile(self.bins, milli)

    def figures(self) -> SpreadFigures:
        """What others need of it, computed once in a while."""
        held = self.held
        if not held:
            return SpreadFigures()
        mean = sum(count * _middle(index) for index, count in enumerate(self.bins)) // held
        ratio = sum(count * known for count, known in zip(self.bins, _RATIOS, strict=True)) // held
        cut, low, high, variance = self._modes(mean)
        return SpreadFigures(
            p50_log=self.quantile(500),
            p90_log=self.quantile(900),
            mean_log=log2(max(ratio, 1)) - log2(_FINE) - mean,
            variance=variance,
            cut_log=cut,
            low_log=low,
            high_log=high,
        )

    def _modes(self, mean: int) -> tuple[int, int, int, int]:
        """(cut, low, high, variance within a mode): the cut that leaves the least variance on both sides (Otsu), if it tells two modes.

        The two are given as distances from the mean, so that subtracting an observation's own mode moves no mean.
        """
        held = self.held
        weight = first = second = 0
        whole_second = sum(count * (_middle(index) // 256) ** 2 for index, count in enumerate(self.bins))
        whole_first = sum(count * (_middle(index) // 256) for index, count in enumerate(self.bins))
        variance = whole_second // held - (whole_first // held) ** 2
        best, cut = -1, -1
        for index, count in enumerate(self.bins[:-1]):
            weight += count
            first += count * (_middle(index) // 256)
            if not 0 < weight < held:
                continue
            apart = first // weight - (whole_first - first) // (held - weight)
            between = weight * (held - weight) // held * apart * apart
            if between > best:
                best, cut = between, index
        if cut < 0 or held < _MODES_FROM:
            return 0, 0, 0, max(variance, 0)
        weight = sum(self.bins[: cut + 1])
        first = sum(count * (_middle(index) // 256) for index, count in enumerate(self.bins[: cut + 1]))
        second = sum(count * (_middle(index) // 256) ** 2 for index, count in enumerate(self.bins[: cut + 1]))
        low, high = first // weight, (whole_first - first) // (held - weight)
        low_variance = second // weight - low * low
        high_variance = (whole_second - second) // (held - weight) - high * high
        pooled = max((low_variance + high_variance) // 2, 1)
        least = min(weight, held - weight)
        if least < max(_MODE_MIN, held * _SHARE_MIN_MILLI // 1_000) or high - low < _SEPARATION * isqrt(pooled):
            return 0, 0, 0, max(variance, 0)
        within = (low_variance * weight + high_variance * (held - weight)) // held
        return _LEAST + (cut + 1) * _WIDTH, low * 256 - mean, high * 256 - mean, max(within, 0)

    def take(self) -> LearnedSpread:
        """As a frozen value."""
        return LearnedSpread(bins=tuple(self.bins), kept_max=self.kept_max, covered=self.covered, counted=self.counted)


def restored(spread: LearnedSpread, *, most: int = KEPT_MAX) -> Sketch:
    """A histogram that goes on where the value was taken; one of another layout begins anew."""
    sketch = Sketch(most=most)
    if len(spread.bins) == BINS:
        sketch.bins = list(spread.bins)
        sketch.held = sum(spread.bins)
        sketch.kept_max = min(spread.kept_max, most)
        sketch.covered, sketch.counted = spread.covered, spread.counted
    return sketch


def quantile(bins: Sequence[int], milli: int) -> int:
    """As `Sketch.quantile`, of counts alone. The quantile at an empty stretch is its lower end."""
    held = sum(bins)
    if not held:
        return 0
    wanted = held * milli
    below = 0
    for index, count in enumerate(bins):
        upto = below + count * 1_000
        if count and upto >= wanted:
            return _LEAST + index * _WIDTH + _WIDTH * (wanted - below) // (count * 1_000)
        below = upto
    return -_LEAST
