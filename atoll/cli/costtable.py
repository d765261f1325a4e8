"""Costs as tables: places with what makes them up, what could not be had, what made room, predicted against actual by term.

Decides columns and their order: time that passes first, then prices, which pass no time but count as if they did.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from atoll.cli.figures import change, count, duration, in_seconds, shares, size, unit_us
from atoll.cli.output import say, table
from atoll.cli.reasons import advice, meaning
from atoll.model.attempt import Attempt, AttemptState
from atoll.model.learned import Component
from atoll.model.placement import PRICE_TERMS, Awaits, Candidate, Evicted, Explanation, FetchFrom, Reason, Rejection, Stopped, TooSmall
from atoll.model.quote import Quote

_LEGEND_CHARS: Final = 110
_WHOLE: Final = 1_000
_NAMED_MAX: Final = 2
# A correction of less is shown as x1.00.
_SHOWN_MILLI: Final = 5
# What each term of the cost stands for, for the legend under the table.
_TERMS: Final = {
    "queue": "work ahead there, loads and fetches included",
    "fetch": "weights from the origin store, peer sites or both, or what is left of a fetch that goes on",
    "input": "the job's own files",
    "stage": "weights from disk or host memory into the GPU",
    "init": "start of the pipeline",
    "adapt": "adapters that the replica lacks, fetched and put on it",
    "compile": "making the denoiser's code, or reading it",
    "execution": "the diffusion itself",
    "output": "the result's way back",
    "money": "price of the GPU, at the policy's seconds per dollar",
    "net": "what the site's owner charges for the result to leave",
    "evict": "what others lose by the models that give way",
    "churn": "handicap of one more copy than the model needs",
    "link": "what others lose on a crowded way to the weights, and what peer sites' owners charge for them to leave",
    "fragmentation": "what breaking the last whole block costs gangs",
    "risk": "the GPU may be lost, or the load fail",
    "deadline": "in time, the delay costs nothing; late, it costs more",
    "overlap": "saved because some of it goes on at the same time",
}
# Row, the terms that predict it, the field of `PhaseTimes` that measures it, the component whose correction it has.
_PHASES: Final[tuple[tuple[str, tuple[str, ...], str, Component | None], ...]] = (
    ("waiting in the slot", ("queue",), "waiting_us", None),
    ("fetch", ("fetch",), "fetch_us", Component.FETCH),
    ("load (stage, init)", ("stage", "init"), "load_us", Component.LOAD),
    ("adapt", ("adapt",), "adapt_us", Component.ADAPT),
    ("compile", ("compile",), "compile_us", Component.COMPILE),
    ("run (execution)", ("execution",), "run_us", Component.EXECUTION),
    ("upload (output)", ("output",), "upload_us", Component.UPLOAD),
)
_OVERLAP: Final = "at the same time"
_COMPONENTS: Final = tuple(Component)


def term(names: Sequence[str], candidate: Candidate, name: str) -> int:
    """One term of a candidate; 0 where the policy that decided did not know it."""
    index = names.index(name) if name in names else len(candidate.terms_us)
    return candidate.terms_us[index] if index < len(candidate.terms_us) else 0


def time_us(names: Sequence[str], candidate: Candidate) -> int:
    """What passes between the decision and the result, of the terms that the policy counts."""
    return sum(us for name, us in zip(names, candidate.terms_us, strict=False) if name not in PRICE_TERMS)


def place(candidate: Candidate) -> str:
    """ "site/pool"."""
    return f"{candidate.site_id}/{candidate.pool_id}"


def sources(fetch_from: FetchFrom) -> str:
    """ "a", "a and the origin store", "a, b and c"."""
    names = [*fetch_from.sites, *(["the origin store"] if fetch_from.origin_too else [])]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def few(adapters: Sequence[str]) -> str:
    """ "a", "a and b", "7 adapters": a table has room for two names."""
    return " and ".join(adapters) if len(adapters) <= _NAMED_MAX else f"{len(adapters)} adapters"


def weights(names: Sequence[str], candidate: Candidate) -> str:
    """Where the model is as that place sees it, and when the place is free."""
    state = "loading already" if candidate.awaits is Awaits.LOAD else "warm"
    if candidate.cold:
        state = "cold, to be fetched" if term(names, candidate, "fetch") else "cold, on its disk"
        if candidate.fetch_from is not None:
            state += f" from {sources(candidate.fetch_from)}"
    if candidate.awaits is Awaits.FETCH:
        return f"cold, fetched by another node there, at hand in {duration(candidate.wait_us)}"
    if candidate.lacks and not candidate.cold:
        state += f", lacks {few(candidate.lacks)}"
    kept = ", kept for a gang" if candidate.awaits is Awaits.GANG else ""
    return state + kept + (f", free in {duration(candidate.wait_us)}" if candidate.wait_us else "")


@dataclass(slots=True)
class Legend:
    """What the tables of one command have been explained by already: each says once how it is read, and with `full` what a term is."""

    full: bool = False
    said: set[str] = field(default_factory=set)

    def say(self, used: Sequence[str], *, prices: bool) -> None:
        """Explain what the table above uses."""
        told = []
        if not self.said:
            whole = "in seconds of delay: COST = TIME from the decision to the result"
            told.append(whole + (" + PRICES, which pass no time but count as if they did" if prices else ""))
        if self.full:
            told += [f"{name}: {_TERMS[name]}" for name in used if name in _TERMS and name not in self.said]
        elif not self.said:
            told.append("-o wide says what each column is")
        self.said.update(used)
        for line in textwrap.wrap(f"({'; '.join(told)})" if told else "", _LEGEND_CHARS):
            say(f"    {line}")


def candidates(names: Sequence[str], found: Sequence[Candidate], legend: Legend, *, marked: bool = True) -> None:
    """A table in seconds of expected delay, the first line marked. Terms that are 0 everywhere are left out. Each line adds up as it is
    printed."""
    used = [name for name in names if any(term(names, one, name) for one in found)]
    times = [name for name in used if name not in PRICE_TERMS]
    prices = [name for name in used if name in PRICE_TERMS]
    titles = ["", "PLACE", "COST", "=", "TIME", *[f"{name.upper()}" for name in times]]
    titles += ["+", "PRICES", *[name.upper() for name in prices]] if prices else []
    rows = []
    for number, one in enumerate(found):
        row = [">" if marked and number == 0 else " ", place(one), *_summed(names, one, times, prices)]
        rows.append([*row, weights(names, one)])
    table([*titles, "WEIGHTS"], rows, frozenset(range(2, len(titles))), indent="    ")
    legend.say(used, prices=bool(prices))


def _summed(names: Sequence[str], one: Candidate, times: Sequence[str], prices: Sequence[str]) -> list[str]:
    """COST = TIME by its terms + PRICES by theirs, rounded so that what is printed adds up. TIME is rounded by itself: it is told elsewhere
    too, and the same there."""
    passes_us = time_us(names, one)
    parts_us = (passes_us, one.total_us - passes_us)
    unit = unit_us(max(abs(one.total_us), abs(passes_us)))
    whole = (one.total_us + unit // 2) // unit
    passes = (passes_us + unit // 2) // unit
    both = (passes, whole - passes) if prices else (whole, 0)
    cells = [in_seconds(whole, unit, nothing=not one.total_us), "="]
    for sign, terms, part_us, part in (("", times, parts_us[0], both[0]), ("+", prices, parts_us[1], both[1])):
        if sign and not terms:
            break
        us = [term(names, one, name) for name in terms]
        each = shares(us, part * unit, unit)
        cells += [sign] if sign else []
        cells.append(in_seconds(part, unit, nothing=not part_us))
        cells += [in_seconds(value, unit, nothing=not exact) for value, exact in zip(each, us, strict=True)]
    return cells


def before_it(names: Sequence[str], chosen: Candidate, turn_us: int, ahead: int) -> None:
    """What a job waits for besides what the line of its place says: its turn."""
    passes_us = time_us(names, chosen)
    unit = unit_us(passes_us + turn_us)
    passes, both = ((us + unit // 2) // unit for us in (passes_us, passes_us + turn_us))
    turn, whole = both - passes, in_seconds(both, unit)
    jobs = f"the {ahead} jobs" if ahead > 1 else "the job"
    say(f"    To its TIME of {in_seconds(passes, unit)} come {in_seconds(turn, unit)} for {jobs} before it: {whole} in all.")


def brought(names: Sequence[str], chosen: Candidate) -> None:
    """Which adapters the place that was chosen lacked, all by name, and what bringing them was predicted to take."""
    if chosen.lacks:
        say(f"  Adapters to bring: {', '.join(chosen.lacks)}, in {duration(term(names, chosen, 'adapt'))} (adapt)")


def made_room(evicted: Sequence[Evicted], verb: str) -> None:
    """Which replicas give way, with their price."""
    for one in evicted:
        price = f"others are expected to wait {duration(one.price_us)} longer for it" if one.price_us else "nobody is expected to miss it"
        say(f"  {verb} {one.model_id}, {size(one.memory_bytes)}: {price}")


def stopped(found: Sequence[Stopped]) -> None:
    """Whose work was stopped for a job, the costliest by name, and how much of it is to be done again."""
    if not found:
        return
    ordered = sorted(found, key=lambda one: one.lost_us, reverse=True)
    named = [f"{one.job_id} at {one.site_id}/{one.pool_id}{_again(one)}" for one in ordered]
    more = [f"and {count(len(ordered) - _STOPPED_NAMED, 'other')}"] if len(ordered) > _STOPPED_NAMED else []
    say(f"  Stopped for it: {'; '.join([*named[:_STOPPED_NAMED], *more])}")


def _again(one: Stopped) -> str:
    return f", {duration(one.lost_us)} of its work to do again" if one.lost_us else ""


# Jobs of a lower priority that were stopped for one, by name: for one GPU it is one or two.
_STOPPED_NAMED: Final = 3
# Why a pool cannot be bound though it is a place to wait for: its slots have all their work, or what is in their memory may not go.
_WAITED_FOR: Final = (Reason.NO_SLOT, Reason.NO_BLOCK, Reason.MEMORY_BUSY)


def rejections(
    found: Sequence[Rejection], title: str, listed: Sequence[Candidate], quote: Quote | None = None, too_small: TooSmall | None = None
) -> None:
    """What was left out and why. Places that are `listed` to be waited for are possible: they are in the table above. With the figures of
    a quote, or those that a decision kept."""
    at_once = {place(one) for one in listed if not one.wait_us}
    waited_for = len({place(one) for one in listed} - at_once)
    left = []
    for one in sorted(found, key=lambda rejection: _WAITED_FOR.index(rejection.reason) if rejection.reason in _WAITED_FOR else -1):
        known = min(one.pools, waited_for) if one.reason in _WAITED_FOR else 0
        waited_for -= known
        if one.pools > known:
            left.append(replace(one, pools=one.pools - known))
    if not left:
        return
    say(f"  {title}")
    ordered = sorted(left, key=lambda rejection: (-rejection.pools, rejection.reason.value))
    rows = [[count(one.pools, "pool"), meaning(one.reason), advice(one.reason, quote, too_small)] for one in ordered]
    table(["HOW MANY", "WHY", "WHAT WOULD HAVE TO CHANGE"], rows, indent="    ")


def phases(attempt: Attempt, explanation: Explanation) -> None:
    """Predicted against actual, a line per phase. What goes on while the attempt waits is counted once: a line takes it off. The last but
    one holds what has no measure of its own, so that the lines add up."""
    took_us = attempt.ended_us - attempt.leased_us
    corrected = any(factor and abs(factor - _WHOLE) >= _SHOWN_MILLI for factor in attempt.factors_milli)
    lines = phases_of(attempt, explanation)
    whole = Phase(title="all of it", predicted_us=attempt.predicted_us, actual_us=took_us, compared=True)
    ended = "" if attempt.state is AttemptState.SUCCEEDED else f", until it {_ENDS.get(attempt.state, attempt.state.value)}"
    say(f"  Predicted against actual, in seconds{ended}:")
    titles = ["PHASE", "PREDICTED", "ACTUAL", "OFF", "CORRECTED"]
    width = len(titles) if corrected else len(titles) - 1
    table(titles[:width], [row[:width] for row in _phase_rows(lines, whole)], frozenset(range(1, width)), indent="    ")
    more = "; corrected: by what earlier attempts had taught" if corrected else ""
    once = "at the same time: what is fetched while it waits, counted once; " if any(line.title == _OVERLAP for line in lines) else ""
    say(f"    ({once}the rest: messages and the job's own files{more})")


def phases_of(attempt: Attempt, explanation: Explanation) -> list[Phase]:
    """The lines of `phases`, which add up to what was predicted and to what it took."""
    names, chosen = explanation.term_names, explanation.chosen
    lines: list[Phase] = []
    for title, terms, field_, component in _PHASES:
        predicted_us = sum(term(names, chosen, name) for name in terms)
        actual_us: int = getattr(attempt.times, field_)
        if predicted_us or actual_us > 0:
            factor = _factor(attempt, _corrected_as(component, chosen))
            lines.append(Phase(title=title, predicted_us=predicted_us, actual_us=actual_us, factor=factor, compared=True))
    # A fetch begins when the attempt is queued at the site, whoever else waits for it.
    at_once_us = -min(max(attempt.times.waiting_us, 0), max(attempt.times.fetch_us, 0))
    overlap_us = term(names, chosen, "overlap")
    if overlap_us or at_once_us:
        lines.append(Phase(title=_OVERLAP, predicted_us=overlap_us, actual_us=at_once_us))
    rest_us = attempt.predicted_us - sum(line.predicted_us for line in lines)
    left_us = attempt.ended_us - attempt.leased_us - sum(line.passed_us for line in lines)
    lines.append(Phase(title="the rest", predicted_us=rest_us, actual_us=left_us))
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A line of predicted against actual; `actual_us` of what has no beginning or end is negative where it never came to it."""

    title: str
    predicted_us: int
    actual_us: int
    factor: str = ""
    compared: bool = False

    @property
    def happened(self) -> bool:
        """Whether it came to it, or is no phase of its own."""
        return not self.compared or self.actual_us >= 0

    @property
    def passed_us(self) -> int:
        """What it took; 0 where it never came to it."""
        return self.actual_us if self.happened else 0


def _phase_rows(lines: Sequence[Phase], whole: Phase) -> list[list[str]]:
    """Cells of the lines and of their sum, rounded so that what is printed adds up."""
    unit = unit_us(max(whole.predicted_us, whole.actual_us))
    predicted = shares([line.predicted_us for line in lines], whole.predicted_us, unit)
    actual = shares([line.passed_us for line in lines], whole.actual_us, unit)
    sums = ((whole.predicted_us + unit // 2) // unit, (whole.actual_us + unit // 2) // unit)
    rows = []
    for line, before, after in zip((*lines, whole), (*predicted, sums[0]), (*actual, sums[1]), strict=True):
        happened = in_seconds(after, unit, nothing=not line.actual_us) if line.happened else "-"
        off = change(line.predicted_us, line.actual_us) if line.compared and line.happened and line.predicted_us > 0 else ""
        rows.append([line.title, in_seconds(before, unit, nothing=not line.predicted_us), happened, off, line.factor])
    return rows


_ENDS: Final = {AttemptState.FAILED: "failed", AttemptState.LOST: "was lost", AttemptState.REFUSED: "was refused"}


def _corrected_as(component: Component | None, chosen: Candidate) -> Component | None:
    return Component.PEER if component is Component.FETCH and chosen.fetch_from is not None and chosen.fetch_from.sites else component


def _factor(attempt: Attempt, component: Component | None) -> str:
    if component is None:
        return ""
    index = _COMPONENTS.index(component)
    factor = attempt.factors_milli[index] if index < len(attempt.factors_milli) else 0
    return f"x{factor / _WHOLE:.2f}" if factor else ""
