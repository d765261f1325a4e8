"""The corrections of one component: hierarchical, multiplicative, each level shrunk toward those above it.

Decides how an observation is shared out among the levels (all > GPU type > site > model x GPU type > model x site: each learns what the
others leave over, the less certain the more), what is published to the estimates, and when. Two modes, as loads have, are taken out
before the levels learn: what a site teaches is how far it is from the middle of its mode, not which mode it happened to meet. Must not
know phases or jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import isqrt
from typing import Final

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component, LearnedCell, LearnedComponent, Level, SpreadFigures
from orchestrator.core.learning import cells as cell_of
from orchestrator.core.learning import sketch
from orchestrator.core.learning.cells import RESIDUAL_MAX, SHRINK, Cell, CellKey
from orchestrator.core.learning.changepoints import WATCH_FROM, Watch, standard_deviation
from orchestrator.core.learning.logs import ONE, log2
from orchestrator.core.learning.sketch import FIRST_GUESS, RECENT_MAX, Sketch

# [1/4, 4] in all: what is further off than that is no calibration error, and the next who learns should not have to undo it.
CORRECTION_MAX: Final = 2 * ONE
# A cell is published anew when its effect moved by more than 2 % (log2(1.02) in 2^-16): estimates are kept until then.
STEP: Final = 1_872
# Cells with news that one refresh takes up, of each level: 2,048 of all are 10 ms. The rest wait for the next, the longest unseen first.
_CHANGED_MAX: Final = 512
# Cells without news whose ageing is looked at in one refresh, and how often each is: 12 times in a half-life of idleness at least.
_LOOKS: Final = 64
_LOOK_EACH_US: Final = 60_000_000
# At most 11 MB for each component (610 bytes a cell with its key and its place in the tables, measured). Beyond it the cell goes that was
# not observed or looked at for the longest: the levels above keep what they learned of it.
CELLS_MAX: Final = {
    Level.ALL: 1,
    Level.GPU_TYPE: 512,
    Level.SITE: 4_096,
    Level.MODEL_GPU_TYPE: 4_096,
    Level.MODEL_SITE: 8_192,
}
# Expected times are above the middle of the logs by this spread's share only once there is one.
_MEAN_FROM: Final = 8
# Times that a site must have met a mode again before two are believed in, and how many of them are remembered.
_PAIRS_MIN: Final = 32
_PAIRS_MAX: Final = 512
LEVELS: Final = tuple(Level)
_OF_MODELS: Final = frozenset({Level.MODEL_GPU_TYPE, Level.MODEL_SITE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whom an estimate is about."""

    model_id: ModelId
    gpu_type: GpuTypeId
    site_id: SiteId


def keys_of(place: Place) -> tuple[CellKey, ...]:
    """The names of a place's cells, by level."""
    model_id, gpu_type, site_id = place.model_id, place.gpu_type, place.site_id
    return ("", ""), (gpu_type, ""), (site_id, ""), (model_id, gpu_type), (model_id, site_id)


def clipped(log: int) -> int:
    """A correction within its bounds."""
    return min(max(log, -CORRECTION_MAX), CORRECTION_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured duration: the log of actual over prior, and of the factor with which it was predicted.

    `at_least`: it was cut off there, and would have taken longer.
    """

    place: Place
    ratio_log: int
    factor_log: int
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a refresh published: something that concerns many models, or cells of some."""

    shared: bool
    models: frozenset[ModelId]


class Corrections:
    """One component. `tables` are the cells by level and name, each in the order in which they were last observed or looked at."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.tables: dict[Level, dict[CellKey, Cell]] = {level: {} for level in Level}
        self.spread = Sketch(FIRST_GUESS, most=RECENT_MAX)
        self.figures = SpreadFigures()
        self.mean_log = 0
        self.gate = Sketch()
        self.refreshed_us = 0
        self.observations = 0
        self.shifts = 0
        self.two_modes = False
        self.pairs = 0  # times a site met a mode again, and of them those when it was the other one
        self.mixed = 0
        # By level, in the order of the tables, so that a restored one takes them up in the same order.
        self._changed: dict[Level, dict[CellKey, None]] = {level: {} for level in Level}
        self._own: dict[tuple[Level, str], dict[CellKey, None]] = {}  # by model, at the levels of single ones

    # --- asking --------------------------------------------------------------------------------------------------------------

    def published_log(self, place: Place) -> int:
        """The correction in force for a place, without the share of the spread."""
        total = 0
        for table, key in zip(self.tables.values(), keys_of(place), strict=True):
            cell = table.get(key)
            if cell is not None:
                total += cell.published_log
        return clipped(total)

    def factor_log(self, place: Place) -> int:
        """What an expected time is multiplied by, as a log."""
        return clipped(self.published_log(place) + self.mean_log)

    def own_of(self, level: Level, model_id: ModelId) -> list[tuple[str, int]]:
        """What a model's own cells of a level have published, by the GPU types or sites that they are of."""
        table, own = self.tables[level], self._own.get((level, model_id), ())
        return [(key[1], published) for key in own if (published := table[key].published_log)]

    def widened_log(self, site_id: SiteId) -> int:
        """By how much the P90 of a site is wider while a change of it is young."""
        cell = self.tables[Level.SITE].get((site_id, ""))
        return cell.watch.widened_log if cell is not None and cell.watch is not None else 0

    @property
    def stale(self) -> bool:
        """Whether something was observed since the last refresh."""
        return any(self._changed.values())

    # --- learning ------------------------------------------------------------------------------------------------------------

    def observe(self, sample: Sample, now_us: int) -> tuple[int, int] | None:
        """Learn from one duration. A change point answers the site's own effect before and after, as logs."""
        place = sample.place
        keys = keys_of(place)
        row = [self._cell(level, key, now_us) for level, key in zip(LEVELS, keys, strict=True)]
        effects = [cell.aged_effect() for cell in row]
        # As far as the levels have come, beyond the bounds too: what lies there all the time is no news each time.
        located = sum(effects)
        ratio = min(max(sample.ratio_log, -RESIDUAL_MAX), RESIDUAL_MAX)
        rest = ratio - located
        # What was really predicted, with what was published then: its being late or rounded is part of how far predictions are off.
        off = ratio - (sample.factor_log - self.mean_log)
        if sample.at_least:
            self.spread.add_at_least(off)
            if rest <= self.figures.p50_log:
                return None  # cut off before it was due: that says nothing
            # Tobit in one step: it counts as the mean of what is known to lie beyond.
            rest = self.spread.mean_above(rest)
        else:
            self.spread.add(off)
        self.observations += 1
        error, within = self._judge(off, sample.at_least, place)
        offset = self._mode(rest)
        self._mix(rest, row[2])
        shift = self._watch(row[2], row[4], rest - offset)
        figures = self.figures
        # The spread of two points around their mean.
        apart = isqrt(max(-figures.low_log * figures.high_log, 0)) if self.two_modes else 0
        for level, key, cell, effect, share in zip(LEVELS, keys, row, effects, _shares(row), strict=True):
            left = effect + ((rest - offset) * share >> 16)
            cell.add(left + cell.excess(apart) if apart else left, offset, error, within)
            self._changed[level].pop(key, None)
            self._changed[level][key] = None
        if not shift:
            return None
        self.shifts += 1
        site = row[2]
        before = site.aged_effect()
        site.jump(shift)
        return before, site.aged_effect()

    def _judge(self, off: int, at_least: bool, place: Place) -> tuple[int, bool]:
        """How far the predicted median was off, and whether the P90 held; noted for the gate, unless the actual is not known."""
        error = min(max(off - self.figures.p50_log, -RESIDUAL_MAX), RESIDUAL_MAX)
        within = off <= self.figures.p90_log + self.widened_log(place.site_id)
        if not at_least:
            self.gate.add(error)
            self.gate.cover(within)
        return error, within

    def _mode(self, rest: int) -> int:
        """The middle of the mode that a residual belongs to, from the mean of all."""
        if not self.two_modes:
            return 0
        return self.figures.low_log if rest < self.figures.cut_log else self.figures.high_log

    def _mix(self, rest: int, site: Cell) -> None:
        """Note whether a site met the other mode than the last time, if there may be two."""
        figures = self.figures
        if figures.low_log == figures.high_log:
            return
        side = -1 if rest < figures.cut_log else 1
        if site.side:
            self.pairs += 1
            self.mixed += site.side != side
            if self.pairs >= _PAIRS_MAX:
                self.pairs >>= 1
                self.mixed >>= 1
        site.side = side

    def _has_two_modes(self) -> bool:
        """Whether sites meet both modes by turns, at least half as often as chance would have it. Else it is the sites that differ."""
        figures = self.figures
        apart = figures.high_log - figures.low_log
        if not apart or self.pairs < _PAIRS_MIN:
            return False
        # Twice the product of both shares, which lie as far from the mean as the other is heavy.
        return self.mixed * apart * apart >= -figures.low_log * figures.high_log * self.pairs

    def _watch(self, site: Cell, leaf: Cell, residual: int) -> int:
        if site.weight < WATCH_FROM:
            return 0
        if site.watch is None:
            site.watch = Watch()
        # What the site's shrinkage still leaves over is no news, but for what the model's own cell has taken of it.
        leftover = site.log_sum * ONE // site.weight - site.aged_effect()
        expected = leftover * SHRINK * ONE // (leaf.weight + SHRINK * ONE)
        figures = self.figures
        variance = figures.variance if self.two_modes else figures.variance + _between(figures)
        return site.watch.see(residual - expected, standard_deviation(variance, (site.weight, leaf.weight), leftover, SHRINK))

    def _cell(self, level: Level, key: CellKey, now_us: int) -> Cell:
        """The cell as of now, the last of its table."""
        table = self.tables[level]
        cell = table.pop(key, None)
        if cell is None:
            cell = Cell(level=level, seen_us=now_us)
            self._index(level, key)
        cell.age(now_us)
        cell.looked_us = now_us
        table[key] = cell
        return cell

    def _index(self, level: Level, key: CellKey) -> None:
        if level in _OF_MODELS:
            self._own.setdefault((level, key[0]), {})[key] = None

    def _drop(self, level: Level, key: CellKey) -> Cell:
        """Take a cell out of its table and of what refers to it."""
        cell = self.tables[level].pop(key)
        self._changed[level].pop(key, None)
        own = self._own.get((level, key[0]))
        if own is not None:
            del own[key]
            if not own:
                del self._own[level, key[0]]
        return cell

    def trim(self) -> list[tuple[Level, CellKey, Cell]]:
        """Drop what is beyond the bounds; the cells that went."""
        gone: list[tuple[Level, CellKey, Cell]] = []
        for level, table in self.tables.items():
            while len(table) > CELLS_MAX[level]:
                key = next(iter(table))
                gone.append((level, key, self._drop(level, key)))
        return gone

    # --- publishing ----------------------------------------------------------------------------------------------------------

    def refresh(self, now_us: int) -> Moved:
        """Publish what moved by more than a step: of what was observed since, and of some that were not."""
        self.refreshed_us = now_us
        self.figures = self.spread.figures()
        self.two_modes = self._has_two_modes()
        shared = False
        if self.observations >= _MEAN_FROM and abs(self.figures.mean_log - self.mean_log) > STEP:
            self.mean_log = self.figures.mean_log
            shared = True
        models: set[ModelId] = set()
        for level, key in self._due(now_us):
            cell = self.tables[level][key]
            cell.changed = False
            self._changed[level].pop(key, None)
            effect = cell.effect(now_us)
            forgotten = cell.forgotten(now_us)
            if forgotten:
                self._drop(level, key)
                effect = 0
            if abs(effect - cell.published_log) > STEP or (forgotten and cell.published_log):
                cell.published_log = effect
                if level in _OF_MODELS:
                    models.add(ModelId(key[0]))
                else:
                    shared = True
        return Moved(shared=shared, models=frozenset(models))

    def _due(self, now_us: int) -> list[tuple[Level, CellKey]]:
        """The cells that a refresh takes up, each once."""
        news = [(level, key) for level, keys in self._changed.items() for key in islice(keys, _CHANGED_MAX)]
        return list(dict.fromkeys((*news, *self._looked_at(now_us))))

    def _looked_at(self, now_us: int) -> list[tuple[Level, CellKey]]:
        """Cells that nobody observed for a while, oldest first: time alone changes their effect."""
        found: list[tuple[Level, CellKey]] = []
        for level, table in self.tables.items():
            due: list[CellKey] = []
            for key, cell in table.items():
                if len(due) >= _LOOKS or cell.looked_us + _LOOK_EACH_US > now_us:
                    break
                due.append(key)
            for key in due:
                cell = table.pop(key)
                cell.looked_us = now_us
                table[key] = cell
                found.append((level, key))
        return found

    def forget_site(self, site_id: SiteId) -> None:
        """Forget what is about one site."""
        for level, name_at in ((Level.SITE, 0), (Level.MODEL_SITE, 1)):
            for key in [key for key in self.tables[level] if key[name_at] == site_id]:
                self._drop(level, key)

    # --- keeping -------------------------------------------------------------------------------------------------------------

    def take(self, leaves_max: int | None = None) -> LearnedComponent:
        """As a frozen value; of the two lowest levels at most the `leaves_max` that were last observed or looked at."""
        taken: list[LearnedCell] = []
        for level, table in self.tables.items():
            items = list(table.items())
            if leaves_max is not None and level in _OF_MODELS:
                items = items[max(len(items) - leaves_max, 0) :]
            taken.extend(cell.take(key) for key, cell in items)
        return LearnedComponent(
            component=self.component,
            cells=tuple(taken),
            spread=self.spread.take(),
            figures=self.figures,
            published_mean_log=self.mean_log,
            gate=self.gate.take(),
            refreshed_us=self.refreshed_us,
            observations=self.observations,
            shifts=self.shifts,
            two_modes=self.two_modes,
            pairs=self.pairs,
            mixed=self.mixed,
        )


def restored(told: LearnedComponent) -> Corrections:
    """Corrections that go on where the value was taken."""
    corrections = Corrections(told.component)
    for one in told.cells:
        key = (one.name, one.other)
        corrections.tables[one.level][key] = cell_of.restored(one)
        corrections._index(one.level, key)
        if one.changed:
            corrections._changed[one.level][key] = None
    corrections.spread = sketch.restored(told.spread, most=RECENT_MAX)
    corrections.figures = told.figures
    corrections.mean_log = told.published_mean_log
    corrections.gate = sketch.restored(told.gate)
    corrections.refreshed_us = told.refreshed_us
    corrections.observations = told.observations
    corrections.shifts = told.shifts
    corrections.two_modes, corrections.pairs, corrections.mixed = told.two_modes, told.pairs, told.mixed
    return corrections


def _between(figures: SpreadFigures) -> int:
    """The variance that two modes make beside that within them, in 2^-16 square octaves."""
    return max(-figures.low_log * figures.high_log, 0) >> 16


def _shares(row: list[Cell]) -> list[int]:
    """How much of an error each level takes for its own residual (2^-16), given what all the others say.

    A level with n observations is uncertain by 1 / (n + 8), and they share an error in proportion: the gain of a Kalman filter that keeps
    no covariances. Alone, a level would have the mean x n / (n + 8), as it should. Were each level to learn what those above it leave
    over at that time, it would be wrong whenever they move on: all of them would take the first errors, one after the other.
    """
    uncertain = [ONE * ONE // (cell.weight + SHRINK * ONE) for cell in row]
    whole = ONE + sum(uncertain)
    return [(ONE + one) * ONE // whole for one in uncertain]


def factor_log_of(factor_milli: int) -> int:
    """The log of a factor in thousandths."""
    return log2(max(factor_milli, 1)) - log2(1_000)
