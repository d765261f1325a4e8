"""What is promised of waiting before a place is bound: P50 and P90 of the time until a job executes, from how such promises came out.

Decides the quantiles of (actual + c) over (predicted + c), where c is two seconds: the ratio of a wait of milliseconds says nothing.
What is predicted counts those who rest now; others of a higher priority will come, gangs wait for whole blocks, work ahead is over early
or late. How much that makes of a wait differs by priority, and between one GPU and several, so each such kind has a histogram, drawn by
n / (n + 8) toward that of all waits, and that toward a first guess twice as wide as that of executions. Loads of a fleet come and go: a
kind's histogram follows its last 64 to 128 promises. Must not know how a wait was predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.job import Priority
from atoll.model.learned import LearnedSpread, LearnedWait
from orchestrator.core.learning import sketch
from orchestrator.core.learning.cells import RESIDUAL_MAX
from orchestrator.core.learning.logs import log_ratio, times
from orchestrator.core.learning.quotes import drawn
from orchestrator.core.learning.sketch import FIRST_GUESS, RECENT_MAX, Sketch

BESIDE_US: Final = 2_000_000
# Twice as far apart as errors of executions are: who comes meanwhile is nobody's figure.
_GUESS: Final = tuple(2 * log for log in FIRST_GUESS)

# Priority, and whether it is a gang's.
WaitKey = tuple[Priority, bool]


@dataclass(slots=True, kw_only=True)
class _Kind:
    """The histogram of a kind, and the quantiles in force."""

    spread: Sketch
    p50_log: int
    p90_log: int


class Waits:
    """See the module."""

    __slots__ = ("_all", "_guess", "_kinds", "gate")

    def __init__(self) -> None:
        self.gate = Sketch()
        guess = Sketch(_GUESS)
        self._guess = guess.quantile(500), guess.quantile(900)
        self._all = Sketch(most=RECENT_MAX)
        self._kinds: dict[WaitKey, _Kind] = {
            (priority, gang): _Kind(spread=Sketch(most=RECENT_MAX), p50_log=self._guess[0], p90_log=self._guess[1])
            for priority in Priority
            for gang in (False, True)
        }

    def quote(self, key: WaitKey, predicted_us: int) -> tuple[int, int]:
        """(P50, P90) of a wait that is predicted to be over after this time."""
        kind = self._kinds[key]
        whole_us = max(predicted_us, 0) + BESIDE_US
        return max(times(whole_us, kind.p50_log) - BESIDE_US, 0), max(times(whole_us, kind.p90_log) - BESIDE_US, 0)

    def observe(self, key: WaitKey, predicted_us: int, actual_us: int, *, at_least: bool = False) -> None:
        """Judge what would be promised of it now, then learn from it. `at_least`: it was given up while it waited."""
        kind, whole_us = self._kinds[key], max(predicted_us, 0) + BESIDE_US
        log = log_ratio(max(actual_us, 0) + BESIDE_US, whole_us)
        log = min(max(log, -RESIDUAL_MAX), RESIDUAL_MAX)
        if at_least:
            kind.spread.add_at_least(log)
            self._all.add_at_least(log)
            return
        self.gate.add(log - kind.p50_log)
        self.gate.cover(log <= kind.p90_log)
        kind.spread.add(log)
        self._all.add(log)

    def refresh(self) -> None:
        """Read the quantiles anew."""
        above = [drawn(self._all.quantile(share), guess, self._all.held) for share, guess in zip((500, 900), self._guess, strict=True)]
        for kind in self._kinds.values():
            kind.p50_log, p90_log = (
                drawn(kind.spread.quantile(share), known, kind.spread.held) for share, known in zip((500, 900), above, strict=True)
            )
            kind.p90_log = max(p90_log, kind.p50_log)

    def take(self) -> tuple[tuple[LearnedWait, ...], LearnedSpread, LearnedSpread]:
        """As frozen values: the kinds that say something, all together, and the gate."""
        kinds = tuple(
            LearnedWait(priority=key[0], gang=key[1], spread=kind.spread.take(), p50_log=kind.p50_log, p90_log=kind.p90_log)
            for key, kind in self._kinds.items()
            if kind.spread.held or (kind.p50_log, kind.p90_log) != self._guess
        )
        return kinds, self._all.take(), self.gate.take()


def restored(kinds: tuple[LearnedWait, ...], every: LearnedSpread | None, gate: LearnedSpread | None) -> Waits:
    """Waits that go on where the values were taken."""
    waits = Waits()
    for told in kinds:
        kind = waits._kinds[told.priority, told.gang]
        kind.spread = sketch.restored(told.spread, most=RECENT_MAX)
        kind.p50_log, kind.p90_log = told.p50_log, told.p90_log
    if every is not None:
        waits._all = sketch.restored(every, most=RECENT_MAX)
    if gate is not None:
        waits.gate = sketch.restored(gate)
    return waits
