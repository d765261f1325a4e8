"""What is promised to people: P50 and P90 of a completion, from how completions of chosen decisions came out.

Decides the quantiles of actual over predicted, apart from the corrections that rank places. The place that is chosen is the best of noisy
estimates, so its estimate is too good on average; only decisions that were carried out know by how much. Three things are argued here:

**Two parts.** What comes `before` execution (waiting, fetching, loading) and the `execution` with its result go wrong for different
reasons: the first because others came in between or shared a way, the second because a GPU is slower than its figures. One ratio of the
whole, learned where a burst queues, would multiply half an hour of execution too. So each part has quantiles of its ratio, and speaks with
the weight of its share of what was predicted: the ratio of a wait of milliseconds says nothing. The middles of the parts add up; their
margins (P90 less P50) add up as those of independent errors do, by the root of the sum of squares. Errors that go together, or lately
went wrong faster than is learned, are not independent: so a third histogram, `whole`, keeps how many margins actual totals lay from the
middle, and nine tenths of it is by what the margin is multiplied, at least a half and at most two. It moves no middle: a middle moved in
margins would again let waiting stretch what executes.

**Kinds.** By cold or warm start and by what is made, each drawn by n / (n + 8) toward its nearest kind: of execution the other start of
the same modality, as the same pipeline executes; of what comes before the same start of other modalities, as all wait and load alike.
Another kind's error is not this one's, and more observations of that kind do not change it: they tell that kind's error better, not how
alike the two are. So a neighbour counts as eight observations at most, is believed at most half, and the rest is the prior: as predicted.
Nothing is learned for videos from how pictures execute.

**Bursts.** Jobs of one model decided within seconds saw the same fleet, and share its error. m of them are worth m / (1 + (m - 1) r)
independent ones (Kish's design effect, r their correlation), so each weighs as much less. The cluster is taken where they are decided, not
where they end: by then its size is known, all of it weighs the same, and those that end first, the lucky ones, do not count for more.
The gate is not weighted: it judges what each was told.

Must not know how a prediction was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

from atoll.model.ids import ModelId, PoolId, SiteId
from atoll.model.learned import LearnedCrowd, LearnedQuote, LearnedSpread, QuotePart, Start
from atoll.model.modelspec import Modality
from orchestrator.core.learning import sketch
from orchestrator.core.learning.cells import RESIDUAL_MAX, SHRINK
from orchestrator.core.learning.logs import ONE, log_ratio, milli, times
from orchestrator.core.learning.observation import LEAST_US
from orchestrator.core.learning.sketch import FIRST_GUESS, UNIT, Sketch

COLD: Final = "cold"
WARM: Final = "warm"
REFRESH_US: Final = 5_000_000
# Decided within so long of one another, jobs of a model see the same fleet: reports come each second, loads take some ten.
CROWD_US: Final = 10_000_000
# The correlation of their errors is one to this. A quarter: however many, they are worth four, and one burst alone is believed a third.
_CROWD_PARTS: Final = 4
# Clusters remembered, the oldest going first. With 20 models in each ten seconds that is half an hour, as long as most jobs take; what is
# forgotten weighs as if it had come alone.
_CROWDS_MAX: Final = 4_096
# A margin of less than a hundredth is rounding.
_MARGIN_LEAST: Final = 100
# What a margin is multiplied by: between a half and two. Beyond that the parts are wrong, and are about to learn it.
_MARGINS: Final = (ONE // 2, 2 * ONE)

# (start, modality).
QuoteKey = tuple[str, str]
_KINDS: Final[tuple[QuoteKey, ...]] = tuple((start, modality.value) for start in (COLD, WARM) for modality in Modality)
_FINE_BITS: Final = 20
_FINE: Final = 1 << _FINE_BITS
_PARTS: Final[dict[str, QuotePart]] = {part.value: part for part in QuotePart}
_Crowd = tuple[ModelId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long a completion takes from its decision on: half and nine tenths of such are begun, and done, that fast."""

    begin_p50_us: int
    begin_p90_us: int
    p50_us: int
    p90_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A decision that was carried out, or cut off (`at_least`): what was predicted of both parts, and what they took.

    `actual_before_us`: until it executed; -1: it was cut off before that, or nobody measured it.
    """

    start: Start
    modality: Modality
    model_id: ModelId
    decided_us: int
    before_us: int
    execution_us: int
    actual_us: int
    actual_before_us: int = -1
    at_least: bool = False
    pool: tuple[SiteId, PoolId] | None = None

    @property
    def cold(self) -> bool:
        """Whether it had to load."""
        return self.start is not Start.WARM


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """The log of what a part took over what was predicted of it, and its share of the whole prediction, by which it counts."""

    part: QuotePart
    log: int
    share_milli: int
    at_least: bool


def key_of(cold: bool, modality: Modality) -> QuoteKey:
    """The kind that a decision belongs to."""
    return (COLD if cold else WARM), modality.value


def _guess(part: QuotePart) -> tuple[int, ...]:
    """What is thought before anything was seen: parts as far off as a calibration error of 35 % makes them, the whole as stated."""
    if part is not QuotePart.WHOLE:
        return FIRST_GUESS
    return tuple(log * ONE // FIRST_GUESS[-1] for log in FIRST_GUESS)


def _nearest(key: QuoteKey, part: QuotePart) -> tuple[QuoteKey, ...]:
    """The kinds that say most of this one, itself left out."""
    if part is QuotePart.WHOLE:
        return ()
    of = 1 if part is QuotePart.EXECUTION else 0
    return tuple(other for other in _KINDS if other != key and other[of] == key[of])


class Part:
    """One part of one kind: its histogram, and the quantiles in force. P95 is of decisions (`widths`), told to nobody, and not kept: it is
    read again with the others before it is asked for."""

    __slots__ = ("guess", "p50_fine", "p50_log", "p90_fine", "p90_log", "p95_log", "spread")

    def __init__(self, part: QuotePart, late_log: int) -> None:
        self.spread = Sketch()
        guess = Sketch(_guess(part))
        self.guess = guess.quantile(500), guess.quantile(900), late_log
        self.p50_log, self.p90_log, self.p95_log = self.guess
        self.hold()

    def hold(self) -> None:
        """Keep the quantiles as what a prediction is multiplied by: it is asked for at each decision."""
        self.p50_fine, self.p90_fine = times(_FINE, self.p50_log), times(_FINE, self.p90_log)

    def read(self, near: Sequence[int]) -> None:
        """The quantiles of its histogram, drawn toward those of its neighbours' and of the prior."""
        held, own = min(sum(near), SHRINK * UNIT), self.spread
        self.p50_log, p90_log, p95_log = (
            drawn(own.quantile(share), drawn(sketch.quantile(near, share), guess, held), own.held)
            for share, guess in zip((500, 900, 950), self.guess, strict=True)
        )
        self.p90_log, self.p95_log = max(p90_log, self.p50_log), max(p95_log, self.p50_log)
        self.hold()


class Quotes:
    """The calibration of quoted times. `spread_milli`: what 95 of 100 take at most of what was predicted, before anything was seen."""

    def __init__(self, spread_milli: int) -> None:
        self.gate = Sketch()
        self.refreshed_us = 0
        late_log = log_ratio(spread_milli, 1_000)
        self._kinds: dict[QuoteKey, dict[QuotePart, Part]] = {key: {part: Part(part, late_log) for part in QuotePart} for key in _KINDS}
        self._crowds: dict[_Crowd, int] = {}

    # --- what is told ----------------------------------------------------------------------------------------------------------

    def quote(self, before_us: int, execution_us: int, cold: bool, modality: Modality) -> Spread:
        """Of a completion that was predicted to begin to execute after `before_us`, and then to take `execution_us` to its result."""
        # A modality is its own name: the look-up needs no more, and this is asked at each decision.
        kind = self._kinds[(COLD if cold else WARM), modality]
        before, execution = _stretched(before_us, kind[QuotePart.BEFORE]), _stretched(execution_us, kind[QuotePart.EXECUTION])
        margins = _margins(kind[QuotePart.WHOLE])
        p50_us, p90_us = _widened(_added(before, execution), margins)
        begin_p50_us, begin_p90_us = _widened(before, margins)
        return Spread(begin_p50_us=begin_p50_us, begin_p90_us=min(begin_p90_us, p90_us), p50_us=p50_us, p90_us=p90_us)

    def after_wait(self, wait: tuple[int, int], execution_us: int, cold: bool, modality: Modality) -> Spread:
        """Of a completion that waits first, with P50 and P90 of until it executes."""
        kind = self._kinds[(COLD if cold else WARM), modality]
        p50_us, p90_us = _added(wait, _stretched(execution_us, kind[QuotePart.EXECUTION]))
        return Spread(begin_p50_us=wait[0], begin_p90_us=min(wait[1], p90_us), p50_us=p50_us, p90_us=p90_us)

    # --- what is learned -------------------------------------------------------------------------------------------------------

    def decided(self, model_id: ModelId, now_us: int) -> None:
        """A job of this model was bound: it belongs to those decided about now."""
        crowd = model_id, now_us // CROWD_US
        if crowd not in self._crowds and len(self._crowds) >= _CROWDS_MAX:
            del self._crowds[next(iter(self._crowds))]
        self._crowds[crowd] = self._crowds.get(crowd, 0) + 1

    def part_of(self, cold: bool, modality: Modality, part: QuotePart) -> Part:
        """What is in force of a part of a kind."""
        return self._kinds[(COLD if cold else WARM), modality][part]

    def weight_of(self, model_id: ModelId, decided_us: int) -> int:
        """What one job of its cluster counts, in `UNIT`."""
        others = max(self._crowds.get((model_id, decided_us // CROWD_US), 1) - 1, 0)
        return UNIT * _CROWD_PARTS // (_CROWD_PARTS + others)

    def observe(self, seen: Completion) -> None:
        """Judge what would be stated of it now, then learn from it."""
        kind = self._kinds[key_of(seen.cold, seen.modality)]
        stated = self.quote(seen.before_us, seen.execution_us, seen.cold, seen.modality)
        if not seen.at_least:
            self.gate.add(_bounded(log_ratio(max(seen.actual_us, 1), max(stated.p50_us, 1))))
            self.gate.cover(seen.actual_us <= stated.p90_us)
        weight = self.weight_of(seen.model_id, seen.decided_us)
        before, execution = _stretched(seen.before_us, kind[QuotePart.BEFORE]), _stretched(seen.execution_us, kind[QuotePart.EXECUTION])
        middle_us, outer_us = _added(before, execution)
        margin_us = max(outer_us - middle_us, middle_us // _MARGIN_LEAST, 1)
        _add(kind[QuotePart.WHOLE], _bounded((seen.actual_us - middle_us) * ONE // margin_us), weight, at_least=seen.at_least)
        for error in errors(seen):
            _add(kind[error.part], error.log, weight * error.share_milli // 1_000, at_least=error.at_least)

    def refresh(self, now_us: int) -> None:
        """Read the quantiles anew."""
        self.refreshed_us = now_us
        for key, parts in self._kinds.items():
            for part, one in parts.items():
                near = [self._kinds[other][part].spread.bins for other in _nearest(key, part)]
                one.read(list(map(sum, zip(*near, strict=True))))

    def kinds(self) -> tuple[tuple[QuoteKey, QuotePart, int, int, int], ...]:
        """(kind, part, evidence in thousandths of observations, P50 and P90), of kinds that were seen. The last two are in thousandths: of
        what is predicted of a part, of the margin of the whole."""
        return tuple(
            (key, part, one.spread.held * 1_000 // UNIT, *_told(part, one))
            for key, parts in self._kinds.items()
            if any(one.spread.held for one in parts.values())
            for part, one in parts.items()
        )

    # --- keeping ---------------------------------------------------------------------------------------------------------------

    def take(self, *, crowds: bool) -> tuple[tuple[LearnedQuote, ...], LearnedSpread, tuple[LearnedCrowd, ...]]:
        """As a frozen value: the kinds, the gate, and the clusters if they are wanted."""
        kinds = tuple(
            LearnedQuote(start=key[0], modality=key[1], part=part.value, spread=one.spread.take(), p50_log=one.p50_log, p90_log=one.p90_log)
            for key, parts in self._kinds.items()
            for part, one in parts.items()
            if one.spread.held or (one.p50_log, one.p90_log) != one.guess[:2]
        )
        known = self._crowds.items() if crowds else ()
        together = tuple(LearnedCrowd(model_id=model_id, window=window, jobs=jobs) for (model_id, window), jobs in known)
        return kinds, self.gate.take(), together


def restored(
    kinds: tuple[LearnedQuote, ...], gate: LearnedSpread | None, crowds: tuple[LearnedCrowd, ...], refreshed_us: int, spread_milli: int
) -> Quotes:
    """Quotes that go on where the value was taken. What it holds of parts that are not known here is learned again."""
    quotes = Quotes(spread_milli)
    quotes.refreshed_us = refreshed_us
    if gate is not None:
        quotes.gate = sketch.restored(gate)
    for told in kinds:
        parts = quotes._kinds.get((told.start, told.modality))
        part = _PARTS.get(told.part)
        if parts is not None and part is not None:
            one = parts[part]
            one.spread = sketch.restored(told.spread)
            one.p50_log, one.p90_log = told.p50_log, told.p90_log
            one.hold()
    quotes._crowds = {(one.model_id, one.window): one.jobs for one in crowds}
    return quotes


def errors(seen: Completion) -> Iterator[Error]:
    """What a completion says of each part."""
    predicted_us = max(seen.before_us + seen.execution_us, 1)
    waits, begun = seen.before_us >= LEAST_US, seen.actual_before_us >= 0
    if waits and (begun or seen.at_least):
        actual_us = seen.actual_before_us if begun else seen.actual_us
        log = _bounded(log_ratio(max(actual_us, 1), seen.before_us))
        yield Error(part=QuotePart.BEFORE, log=log, share_milli=seen.before_us * 1_000 // predicted_us, at_least=not begun)
    if seen.execution_us >= LEAST_US and (begun or not waits):
        # Where no wait was predicted all of it is the execution's: messages, an agent that takes its time.
        actual_us = seen.actual_us - seen.actual_before_us if waits else seen.actual_us
        log = _bounded(log_ratio(max(actual_us, 1), seen.execution_us))
        yield Error(part=QuotePart.EXECUTION, log=log, share_milli=seen.execution_us * 1_000 // predicted_us, at_least=seen.at_least)


def _bounded(log: int) -> int:
    return min(max(log, -RESIDUAL_MAX), RESIDUAL_MAX)


def _add(one: Part, log: int, weight: int, *, at_least: bool) -> None:
    if weight <= 0:
        return
    if at_least:
        one.spread.add_at_least(log, weight)
    else:
        one.spread.add(log, weight)


def drawn(own: int, toward: int, held: int) -> int:
    """A quantile drawn toward another by n / (n + 8)."""
    return (own * held + toward * SHRINK * UNIT) // (held + SHRINK * UNIT)


def _stretched(predicted_us: int, one: Part) -> tuple[int, int]:
    """(P50, P90) of a part."""
    predicted_us = max(predicted_us, 0)
    return predicted_us * one.p50_fine >> _FINE_BITS, predicted_us * one.p90_fine >> _FINE_BITS


def _added(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """(P50, P90) of a sum: middles add up, margins of errors that know nothing of one another by their squares."""
    middle_us = first[0] + second[0]
    return middle_us, middle_us + isqrt((first[1] - first[0]) ** 2 + (second[1] - second[0]) ** 2)


def _widened(parts: tuple[int, int], margins: int) -> tuple[int, int]:
    """(P50, P90) with so many margins between them."""
    middle_us, outer_us = parts
    return middle_us, middle_us + ((outer_us - middle_us) * margins >> 16)


def _margins(whole: Part) -> int:
    """How many margins nine tenths of totals lie above the middle, within bounds."""
    return min(max(whole.p90_log, _MARGINS[0]), _MARGINS[1])


def _told(part: QuotePart, one: Part) -> tuple[int, int]:
    if part is QuotePart.WHOLE:
        return one.p50_log * 1_000 // ONE, _margins(one) * 1_000 // ONE
    return milli(one.p50_log), milli(one.p90_log)
