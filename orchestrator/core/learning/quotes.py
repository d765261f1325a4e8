"""What is promised to people: P50 and P90 of a completion, from how completions of chosen decisions came out.

Decides the quantiles of actual over predicted total, apart from the corrections that rank places. The place that is chosen is the best
of noisy estimates, so its estimate is too good on average; only totals of decisions that were carried out know by how much. By kind of
start and of result, each shrunk toward all of them by n / (n + 8). Must not know how a prediction was made.
"""

from __future__ import annotations

from typing import Final

from atoll.model.learned import LearnedQuote, LearnedSpread
from atoll.model.modelspec import Modality
from orchestrator.core.learning import sketch
from orchestrator.core.learning.cells import RESIDUAL_MAX, SHRINK
from orchestrator.core.learning.logs import log_ratio, milli, times
from orchestrator.core.learning.sketch import FIRST_GUESS, UNIT, Sketch, quantile

COLD: Final = "cold"
WARM: Final = "warm"
# No kind: everything.
_ALL: Final = ("", "")
REFRESH_US: Final = 5_000_000

QuoteKey = tuple[str, str]


def key_of(cold: bool, modality: Modality) -> QuoteKey:
    """The kind that a decision belongs to."""
    return (COLD if cold else WARM), modality.value


class _Kind:
    """One kind's histogram, and the quantiles that are in force. `first`: it may begin with a guess."""

    __slots__ = ("p50_log", "p90_log", "spread")

    def __init__(self, first: bool) -> None:
        self.spread = Sketch(FIRST_GUESS if first else ())
        self.p50_log = self.spread.quantile(500)
        self.p90_log = self.spread.quantile(900)


class Quotes:
    """The calibration of totals."""

    def __init__(self) -> None:
        self.gate = Sketch()
        self.refreshed_us = 0
        self._kinds: dict[QuoteKey, _Kind] = {_ALL: _Kind(first=True)}

    def quote(self, predicted_us: int, cold: bool, modality: Modality) -> tuple[int, int]:
        """(P50, P90) of a completion that was predicted to take this long, from decision to result."""
        kind = self._kinds.get(key_of(cold, modality), self._kinds[_ALL])
        return times(max(predicted_us, 0), kind.p50_log), times(max(predicted_us, 0), kind.p90_log)

    def observe(self, key: QuoteKey, predicted_us: int, actual_us: int, *, at_least: bool) -> None:
        """A chosen decision was carried out, or cut off here."""
        error = min(max(log_ratio(max(actual_us, 1), max(predicted_us, 1)), -RESIDUAL_MAX), RESIDUAL_MAX)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(first=False)
            kind.p50_log, kind.p90_log = self._kinds[_ALL].p50_log, self._kinds[_ALL].p90_log
        if at_least:
            kind.spread.add_at_least(error)
            self._kinds[_ALL].spread.add_at_least(error)
            return
        self.gate.add(error - kind.p50_log)
        self.gate.cover(error <= kind.p90_log)
        kind.spread.add(error)
        self._kinds[_ALL].spread.add(error)

    def refresh(self, now_us: int) -> None:
        """Read the quantiles anew."""
        self.refreshed_us = now_us
        parent = self._kinds[_ALL].spread
        for key, kind in self._kinds.items():
            bins = kind.spread.bins
            if key != _ALL:
                # Eight observations that are like everybody's.
                bins = [own * parent.held + all_ * SHRINK * UNIT for own, all_ in zip(bins, parent.bins, strict=True)]
            kind.p50_log, kind.p90_log = quantile(bins, 500), quantile(bins, 900)

    def kinds(self) -> tuple[tuple[QuoteKey, int, int, int], ...]:
        """(kind, observations, P50 and P90 in thousandths of the prediction), by name."""
        return tuple(
            (key, kind.spread.held // UNIT, milli(kind.p50_log), milli(kind.p90_log)) for key, kind in sorted(self._kinds.items())
        )

    def take(self) -> tuple[tuple[LearnedQuote, ...], LearnedSpread]:
        """As a frozen value: the kinds, and the gate."""
        kinds = tuple(
            LearnedQuote(start=key[0], modality=key[1], spread=kind.spread.take(), p50_log=kind.p50_log, p90_log=kind.p90_log)
            for key, kind in self._kinds.items()
        )
        return kinds, self.gate.take()


def restored(kinds: tuple[LearnedQuote, ...], gate: LearnedSpread | None, refreshed_us: int) -> Quotes:
    """Quotes that go on where the value was taken."""
    quotes = Quotes()
    quotes.refreshed_us = refreshed_us
    if gate is not None:
        quotes.gate = sketch.restored(gate)
    for told in kinds:
        kind = quotes._kinds[told.start, told.modality] = _Kind(first=False)
        kind.spread = sketch.restored(told.spread)
        kind.p50_log, kind.p90_log = told.p50_log, told.p90_log
    return quotes
