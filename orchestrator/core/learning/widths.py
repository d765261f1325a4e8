"""How far off predictions are, as decisions with a deadline need it: P50 and P95 of a part over what was predicted of it.

Decides three levels. A **start** (warm, or loading from host memory, from disk, from a peer, from the origin store) of what is made has
histograms of its own of both parts, drawn by n / (n + 8) toward those of all cold or all warm starts (`quotes`), and those toward the
policy's `late_spread`. A **pool** has a scale: how many widths its own errors measure, whatever started there, drawn by n / (n + 8) toward
one and believed from eight observations on. So a site whose disk is shared with others is wide, while its neighbour with the same mean is
not. A pool's scale is a standard deviation and not a quantile: of a few observations nothing else can be had, and it takes four integers.

What is in force stands still between two refreshes; `version` grows when it moves. Must not know what a deadline is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Final

from atoll.model.ids import PoolId, SiteId
from atoll.model.learned import LearnedPool, LearnedStart, QuotePart, Start
from atoll.model.modelspec import Modality
from orchestrator.core.learning import sketch
from orchestrator.core.learning.cells import SHRINK
from orchestrator.core.learning.logs import ONE, log_ratio, milli
from orchestrator.core.learning.quotes import Completion, Error, Quotes, drawn, errors
from orchestrator.core.learning.sketch import UNIT, Sketch

# Both parts of a time; what they leave over together is the business of quotes.
PARTS: Final = (QuotePart.BEFORE, QuotePart.EXECUTION)
# The mean square of errors that are normal, in widths of P95 less P50, times 2^16: 1 / 1.645^2.
_SQUARE: Final = 24_219
# Errors beyond four widths are hangs, and say nothing of how wide the others are.
_ERROR_MAX: Final = 4 * ONE
# A width of less than 2 % is the histogram's resolution.
_WIDTH_LEAST: Final = ONE // 32
# Observations until a pool's own is believed at all, and until what it holds is halved: a site changes within a day's work.
_POOL_FROM: Final = 8 * UNIT
_POOL_KEPT: Final = 128 * UNIT
# A quarter of everybody's width to four times: beyond it few observations exaggerate.
SCALES_MILLI: Final = (250, 4_000)
# What moved by less than 2 % is not told: estimates stand for as long.
_STEP_MILLI: Final = 20
# Pools remembered, the oldest going first: more than the largest fleet has.
POOLS_MAX: Final = 16_384

PoolKey = tuple[SiteId, PoolId]
_StartKey = tuple[Start, Modality, QuotePart]
# (middle, width) of both parts, thousandths of what is predicted of them.
Widths4 = tuple[int, int, int, int]


@dataclass(slots=True, kw_only=True)
class _Drawn:
    """One part of one start: its histogram, and the quantiles in force."""

    spread: Sketch
    p50_log: int
    p95_log: int

    @property
    def width_log(self) -> int:
        """How far P95 lies above P50."""
        return max(self.p95_log - self.p50_log, _WIDTH_LEAST)


@dataclass(slots=True, kw_only=True)
class _Pool:
    """One part at one pool: observations, the sum of squares of errors in widths (2^-16), and the scale in force."""

    weight: int = 0
    square_sum: int = 0
    scale_milli: int = 1_000

    def add(self, error: int, weight: int) -> None:
        """An error in widths."""
        error = min(max(error, -_ERROR_MAX), _ERROR_MAX)
        self.weight += weight
        self.square_sum += (error * error >> 16) * weight
        if self.weight >= _POOL_KEPT:
            self.weight >>= 1
            self.square_sum >>= 1

    def read(self) -> int:
        """The scale as of now."""
        if self.weight < _POOL_FROM:
            return 1_000
        square = (self.square_sum + SHRINK * UNIT * _SQUARE) // (self.weight + SHRINK * UNIT)
        return min(max(isqrt(square * 1_000_000 // _SQUARE), SCALES_MILLI[0]), SCALES_MILLI[1])


class Widths:
    """See the module. `spread_milli`: what 95 of 100 take at most of what was predicted, before anything was seen."""

    __slots__ = ("_moved", "_pools", "_starts", "prior_log", "version")

    def __init__(self, spread_milli: int, version: int = 0) -> None:
        self.version = version
        self.prior_log = log_ratio(spread_milli, 1_000)
        self._starts: dict[_StartKey, _Drawn] = {
            (start, modality, part): _Drawn(spread=Sketch(), p50_log=0, p95_log=self.prior_log)
            for start in Start
            for modality in Modality
            for part in PARTS
        }
        self._pools: dict[PoolKey, dict[QuotePart, _Pool]] = {}
        self._moved: dict[PoolKey, None] = {}

    # --- what decisions ask ------------------------------------------------------------------------------------------------------

    def of(self, modality: Modality) -> tuple[int, ...]:
        """(middle, width) of what comes before execution and of execution, start after start: thousandths of what is predicted."""
        told: list[int] = []
        for start in Start:
            for part in PARTS:
                one = self._starts[start, modality, part]
                middle = milli(one.p50_log)
                told += (middle, max(milli(one.p95_log) - middle, 0))
        return tuple(told)

    def scales(self) -> dict[PoolKey, tuple[int, int]]:
        """What the widths of both parts are multiplied by at a pool, thousandths; elsewhere by one."""
        return {key: (parts[PARTS[0]].scale_milli, parts[PARTS[1]].scale_milli) for key, parts in self._pools.items()}

    # --- what settled attempts say -------------------------------------------------------------------------------------------------

    def observe(self, seen: Completion, weight: int) -> None:
        """Learn from a decision that was carried out, or cut off."""
        for error in errors(seen):
            share = weight * error.share_milli // 1_000
            if share > 0:
                self._observe(seen, error, share)

    def _observe(self, seen: Completion, error: Error, weight: int) -> None:
        one = self._starts[seen.start, seen.modality, error.part]
        off = error.log - one.p50_log
        if seen.pool is not None and not (error.at_least and off <= 0):
            self._pool(seen.pool)[error.part].add(off * ONE // one.width_log, weight)
        if error.at_least:
            one.spread.add_at_least(error.log, weight)
        else:
            one.spread.add(error.log, weight)

    def _pool(self, key: PoolKey) -> dict[QuotePart, _Pool]:
        """The pool, the last of them all."""
        found = self._pools.pop(key, None)
        if found is None:
            while len(self._pools) >= POOLS_MAX:
                oldest = next(iter(self._pools))
                del self._pools[oldest]
                self._moved.pop(oldest, None)
            found = {part: _Pool() for part in PARTS}
        self._pools[key] = found
        self._moved[key] = None
        return found

    def refresh(self, quotes: Quotes) -> None:
        """Read what is in force anew, with the quotes as the level above."""
        news = False
        for (start, modality, part), one in self._starts.items():
            above = quotes.part_of(start is not Start.WARM, modality, part)
            p50_log, p95_log = above.p50_log, above.p95_log
            held = one.spread.held
            if held:
                p50_log = drawn(one.spread.quantile(500), p50_log, held)
                p95_log = drawn(one.spread.quantile(950), p95_log, held)
            p95_log = max(p95_log, p50_log)
            news = news or (one.p50_log, one.p95_log) != (p50_log, p95_log)
            one.p50_log, one.p95_log = p50_log, p95_log
        for key in self._moved:
            for pool in self._pools[key].values():
                scale_milli = pool.read()
                if abs(scale_milli - pool.scale_milli) * 1_000 > _STEP_MILLI * pool.scale_milli:
                    pool.scale_milli, news = scale_milli, True
        self._moved.clear()
        self.version += news

    def forget_site(self, site_id: SiteId) -> None:
        """Forget what is about one site."""
        for key in [key for key in self._pools if key[0] == site_id]:
            del self._pools[key]
            self._moved.pop(key, None)
        self.version += 1

    # --- keeping -----------------------------------------------------------------------------------------------------------------

    def take(self, pools_max: int | None = None) -> tuple[tuple[LearnedStart, ...], tuple[LearnedPool, ...]]:
        """As frozen values; of pools at most the `pools_max` that were seen last."""
        starts = tuple(
            LearnedStart(
                start=start, modality=modality, part=part, spread=one.spread.take(), p50_log=one.p50_log, p95_log=one.p95_log
            )
            for (start, modality, part), one in self._starts.items()
            if one.spread.held or (one.p50_log, one.p95_log) != (0, self.prior_log)
        )  # fmt: skip
        known = list(self._pools.items())
        if pools_max is not None:
            known = known[max(len(known) - pools_max, 0) :]
        pools = tuple(
            LearnedPool(
                site_id=site_id, pool_id=pool_id, part=part, weight=one.weight, square_sum=one.square_sum, scale_milli=one.scale_milli,
                moved=(site_id, pool_id) in self._moved,
            )
            for (site_id, pool_id), parts in known
            for part, one in parts.items()
        )  # fmt: skip
        return starts, pools


def restored(starts: tuple[LearnedStart, ...], pools: tuple[LearnedPool, ...], spread_milli: int) -> Widths:
    """Widths that go on where the values were taken."""
    widths = Widths(spread_milli)
    for told in starts:
        one = widths._starts.get((told.start, told.modality, told.part))
        if one is not None:
            one.spread, one.p50_log, one.p95_log = sketch.restored(told.spread), told.p50_log, told.p95_log
    for pool in pools:
        key = (pool.site_id, pool.pool_id)
        if pool.part in PARTS:
            of_part = widths._pools.setdefault(key, {part: _Pool() for part in PARTS})
            of_part[pool.part] = _Pool(weight=pool.weight, square_sum=pool.square_sum, scale_milli=pool.scale_milli)
        if pool.moved:
            widths._moved[key] = None
    return widths
