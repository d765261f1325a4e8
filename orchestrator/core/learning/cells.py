"""One cell: the evidence of one component for one name at one level, and the effect that follows from it.

Decides how evidence ages: with every observation of the cell (half-lives below) and with time in which none comes. An effect is
`sum / (n + 8)`: the mean, shrunk by n / (n + 8) toward 0, which is what the levels above say. Must not know how levels are put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Final

from atoll.model.learned import LearnedCell, Level, WatchState
from orchestrator.core.learning.changepoints import Watch
from orchestrator.core.learning.logs import ONE

# How much evidence a cell must have before it outweighs what the levels above say.
SHRINK: Final = 8
# Observations in which the weight of an older one halves. The levels above see many sites: slow, so that one site's trouble is not theirs.
# A site gets slower within a day's work: 128 jobs; a change that is faster is the change point's business. A model at a site is the
# last to be asked and the first to be wrong.
HALF_LIVES: Final = {Level.ALL: 4_096, Level.GPU_TYPE: 1_024, Level.SITE: 128, Level.MODEL_GPU_TYPE: 256, Level.MODEL_SITE: 64}
# Evidence also halves with this much fleet time without an observation. A site that was slow once is chosen no more, so nothing new is
# learned of it: it comes back toward its parents, and is tried again, within hours (4.5 half-lives from the most evidence to n = 8).
# What concerns everybody, or a GPU type, does not go stale that way.
_IDLE_HALF_US: Final = {
    Level.ALL: 24 * 3_600 * 1_000_000,
    Level.GPU_TYPE: 24 * 3_600 * 1_000_000,
    Level.SITE: 1_800 * 1_000_000,
    Level.MODEL_GPU_TYPE: 24 * 3_600 * 1_000_000,
    Level.MODEL_SITE: 1_800 * 1_000_000,
}
# 2^(-1 / half-life), in 2^-16.
_KEEP: Final = {level: ONE - (45_426 + half // 2) // half for level, half in HALF_LIVES.items()}
# Beyond this no residual moves a cell further: a hang is no calibration error.
RESIDUAL_MAX: Final = 3 * ONE
# Less evidence than this is none.
_FORGOTTEN: Final = ONE // 16
_HALVINGS_MAX: Final = 40
# Standard errors up to which one-sidedness is chance.
_BY_CHANCE: Final = 3

CellKey = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Cell:
    """See `LearnedCell` for the fields. Sums are of logs (2^-16 octaves), `weight` in 2^-16 observations."""

    level: Level
    weight: int = 0
    log_sum: int = 0
    offset_sum: int = 0
    error_sum: int = 0
    error_square_sum: int = 0
    covered: int = 0
    seen_us: int = 0
    looked_us: int = 0
    published_log: int = 0
    side: int = 0
    changed: bool = False
    watch: Watch | None = None

    def effect(self, now_us: int) -> int:
        """This level's correction as a log: the shrunk mean of what the levels above left over, as of now."""
        keep = self._kept(now_us)
        if keep == ONE:
            return self.log_sum * ONE // (self.weight + SHRINK * ONE)
        return self.log_sum * keep // ((self.weight * keep >> 16) + SHRINK * ONE)

    def evidence(self, now_us: int) -> int:
        """Observations times 2^16, as of now."""
        return self.weight * self._kept(now_us) >> 16

    def forgotten(self, now_us: int) -> bool:
        """Whether nothing is left of what was seen."""
        return self.evidence(now_us) < _FORGOTTEN

    def age(self, now_us: int) -> None:
        """Time went by without an observation; from now on it is as fresh as the next one."""
        keep = self._kept(now_us)
        self.seen_us = now_us
        if keep < ONE:
            self._scale(keep)

    def aged_effect(self) -> int:
        """`effect` of a cell that has just been aged."""
        return self.log_sum * ONE // (self.weight + SHRINK * ONE)

    def excess(self, deviation: int) -> int:
        """By how much the modes met here are one-sided beyond chance: three standard errors of the middle of modes with this spread.

        Modes are subtracted as if everybody met both. Who always meets the same one is slow or fast, and that is to be learned.
        """
        observations = self.weight // ONE
        if not deviation or not observations:
            return 0
        mean = self.offset_sum * ONE // self.weight
        chance = _BY_CHANCE * deviation // max(isqrt(observations), 1)
        return max(mean - chance, 0) if mean > 0 else min(mean + chance, 0)

    def add(self, residual: int, offset: int, error: int, within: bool) -> None:
        """One observation of a cell that was aged: what the levels above leave over beside the `offset` of its mode, how far the
        prediction was off, and whether it was within its P90.
        """
        keep = _KEEP[self.level]
        self.weight = (self.weight * keep >> 16) + ONE
        self.log_sum = (self.log_sum * keep >> 16) + residual
        self.offset_sum = (self.offset_sum * keep >> 16) + offset
        self.error_sum = (self.error_sum * keep >> 16) + error
        self.error_square_sum = (self.error_square_sum * keep >> 16) + (error * error >> 16)
        self.covered = (self.covered * keep >> 16) + (ONE if within else 0)
        self.changed = True

    def jump(self, shift: int) -> None:
        """What it is about has changed by this much: the effect follows at once, and so little evidence is left that the next count."""
        effect = self.aged_effect() + shift
        self._scale(min(SHRINK * ONE * ONE // max(self.weight, 1), ONE))
        self.log_sum = effect * (self.weight + SHRINK * ONE) // ONE
        self.changed = True

    def _kept(self, now_us: int) -> int:
        """2^(-idle time / half-life), in 2^-16; linear between halvings."""
        half_us = _IDLE_HALF_US[self.level]
        idle_us = now_us - self.seen_us
        if idle_us * 64 < half_us:
            return ONE
        halvings, rest_us = divmod(idle_us, half_us)
        if halvings >= _HALVINGS_MAX:
            return 0
        return (ONE - ONE * rest_us // (2 * half_us)) >> halvings

    def _scale(self, keep: int) -> None:
        self.weight = self.weight * keep >> 16
        self.log_sum = self.log_sum * keep >> 16
        self.offset_sum = self.offset_sum * keep >> 16
        self.error_sum = self.error_sum * keep >> 16
        self.error_square_sum = self.error_square_sum * keep >> 16
        self.covered = self.covered * keep >> 16

    def take(self, key: CellKey) -> LearnedCell:
        """As a frozen value."""
        watch = self.watch
        return LearnedCell(
            level=self.level,
            name=key[0],
            other=key[1],
            weight=self.weight,
            log_sum=self.log_sum,
            offset_sum=self.offset_sum,
            error_sum=self.error_sum,
            error_square_sum=self.error_square_sum,
            covered=self.covered,
            seen_us=self.seen_us,
            looked_us=self.looked_us,
            published_log=self.published_log,
            side=self.side,
            changed=self.changed,
            watch=None if watch is None else watch.take(),
        )


def restored(told: LearnedCell) -> Cell:
    """A cell that goes on where the value was taken."""
    watch = None if told.watch is None else restored_watch(told.watch)
    return Cell(
        level=told.level,
        weight=told.weight,
        log_sum=told.log_sum,
        offset_sum=told.offset_sum,
        error_sum=told.error_sum,
        error_square_sum=told.error_square_sum,
        covered=told.covered,
        seen_us=told.seen_us,
        looked_us=told.looked_us,
        published_log=told.published_log,
        side=told.side,
        changed=told.changed,
        watch=watch,
    )


def restored_watch(told: WatchState) -> Watch:
    """A watch that goes on."""
    return Watch(
        up=told.up,
        up_log=told.up_log,
        up_n=told.up_n,
        down=told.down,
        down_log=told.down_log,
        down_n=told.down_n,
        widened_log=told.widened_log,
    )
