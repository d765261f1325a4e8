"""Costs as tables: places with what makes them up, what could not be had, what made room, predicted against actual by term.

Decides columns and their order: time that passes first, then prices, which pass no time but count as if they did.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from atoll.cli.figures import change, count, duration, seconds, size
from atoll.cli.output import say, table
from atoll.cli.reasons import meaning, remedy
from atoll.model.attempt import Attempt, AttemptState
from atoll.model.learned import Component
from atoll.model.placement import PRICE_TERMS, Awaits, Candidate, Evicted, Explanation, Reason, Rejection

_LEGEND_CHARS: Final = 110
_WHOLE: Final = 1_000
# A correction of less is shown as x1.00.
_SHOWN_MILLI: Final = 5
# What each term of the cost stands for, for the legend under the table.
_TERMS: Final = {
    "queue": "work ahead there, loads and fetches included",
    "fetch": "weights from the origin store or a peer site, or what is left of a fetch that goes on",
    "input": "the job's own files",
    "stage": "weights from disk or host memory into the GPU",
    "init": "start of the pipeline",
    "adapt": "adapters put on it",
    "compile": "making the denoiser's code, or reading it",
    "execution": "the diffusion itself",
    "output": "the result's way back",
    "money": "price of the GPU, at the policy's seconds per dollar",
    "net": "what the site's owner charges for the result to leave",
    "evict": "what others lose by the models that give way",
    "churn": "handicap of one more copy than the model needs",
    "link": "what others lose on a crowded way to the weights, and what a peer site's owner charges for them to leave",
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


def weights(names: Sequence[str], candidate: Candidate) -> str:
    """Where the model is as that place sees it, and when the place is free."""
    state = "loading already" if candidate.awaits is Awaits.LOAD else "warm"
    if candidate.cold:
        state = "cold, to be fetched" if term(names, candidate, "fetch") else "cold, already on its disk"
        if candidate.fetch_from is not None:
            state += f" from {candidate.fetch_from}"
    if candidate.awaits is Awaits.FETCH:
        return f"cold, fetched by another node there, at hand in {duration(candidate.wait_us)}"
    kept = ", kept for a gang" if candidate.awaits is Awaits.GANG else ""
    return state + kept + (f", free in {duration(candidate.wait_us)}" if candidate.wait_us else "")


def candidates(names: Sequence[str], found: Sequence[Candidate], *, marked: bool = True, explained: set[str] | None = None) -> None:
    """A table in seconds of expected delay, the first line marked. Terms that are 0 everywhere are left out; the legend names those of the
    rest that are not `explained` already, and adds them."""
    used = [name for name in names if any(term(names, one, name) for one in found)]
    times = [name for name in used if name not in PRICE_TERMS]
    prices = [name for name in used if name in PRICE_TERMS]
    titles = ["", "PLACE", "COST", "=", "TIME", *[f"{name.upper()}" for name in times]]
    titles += ["+", "PRICES", *[name.upper() for name in prices]] if prices else []
    rows = []
    for number, one in enumerate(found):
        passes_us = time_us(names, one)
        row = [">" if marked and number == 0 else " ", place(one), seconds(one.total_us), "=", seconds(passes_us)]
        row += [seconds(term(names, one, name)) for name in times]
        row += ["+", seconds(one.total_us - passes_us), *[seconds(term(names, one, name)) for name in prices]] if prices else []
        rows.append([*row, weights(names, one)])
    table([*titles, "WEIGHTS"], rows, frozenset(range(2, len(titles))), indent="    ")
    _legend(used, explained if explained is not None else set(), prices=bool(prices))


def _legend(used: Sequence[str], explained: set[str], *, prices: bool) -> None:
    whole = "COST in seconds of delay = TIME from the decision to the result, by its terms"
    if prices:
        whole += " + PRICES, which pass no time but count as if they did"
    told = [] if explained else [whole]
    told += [f"{name}: {_TERMS[name]}" for name in used if name in _TERMS and name not in explained]
    explained.update(used)
    for line in textwrap.wrap(f"({'; '.join(told)})" if told else "", _LEGEND_CHARS):
        say(f"    {line}")


def made_room(evicted: Sequence[Evicted], verb: str) -> None:
    """Which replicas give way, with their price."""
    for one in evicted:
        price = f"others are expected to wait {duration(one.price_us)} longer for it" if one.price_us else "nobody is expected to miss it"
        say(f"  {verb} {one.model_id}, {size(one.memory_bytes)}: {price}")


# Why a pool cannot be bound though it is a place to wait for: its slots have all their work, or what is in their memory may not go.
_WAITED_FOR: Final = (Reason.NO_SLOT, Reason.MEMORY_BUSY)


def rejections(found: Sequence[Rejection], title: str, listed: Sequence[Candidate]) -> None:
    """What was left out and why. Places that are `listed` to be waited for are possible: they are in the table above."""
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
    rows = [[count(one.pools, "pool"), meaning(one.reason), remedy(one.reason)] for one in ordered]
    table(["HOW MANY", "WHY", "WHAT WOULD HAVE TO CHANGE"], rows, indent="    ")


def phases(attempt: Attempt, explanation: Explanation) -> None:
    """Predicted against actual, a line per phase. What goes on while the attempt waits is counted once: a line takes it off. The last but
    one holds what has no measure of its own, so that the lines add up."""
    names, chosen = explanation.term_names, explanation.chosen
    took_us = attempt.ended_us - attempt.leased_us
    corrected = any(factor and abs(factor - _WHOLE) >= _SHOWN_MILLI for factor in attempt.factors_milli)
    rows: list[list[str]] = []
    predicted_rest_us, actual_rest_us = attempt.predicted_us, took_us
    for title, terms, field, component in _PHASES:
        predicted_us = sum(term(names, chosen, name) for name in terms)
        actual_us: int = getattr(attempt.times, field)
        predicted_rest_us -= predicted_us
        actual_rest_us -= max(actual_us, 0)
        if predicted_us or actual_us > 0:
            rows.append([*_line(title, predicted_us, actual_us), _factor(attempt, _corrected_as(component, chosen))])
    # A fetch begins when the attempt is queued at the site, whoever else waits for it.
    at_once_us = -min(max(attempt.times.waiting_us, 0), max(attempt.times.fetch_us, 0))
    overlap_us = term(names, chosen, "overlap")
    predicted_rest_us -= overlap_us
    actual_rest_us -= at_once_us
    if overlap_us or at_once_us:
        rows.append(["at the same time", seconds(overlap_us), seconds(at_once_us), "", ""])
    rows.append(["the rest", seconds(predicted_rest_us), seconds(actual_rest_us), "", ""])
    rows.append([*_line("all of it", attempt.predicted_us, took_us), ""])
    ended = "" if attempt.state is AttemptState.SUCCEEDED else f", until it {_ENDS.get(attempt.state, attempt.state.value)}"
    say(f"  Predicted against actual, in seconds{ended}:")
    titles = ["PHASE", "PREDICTED", "ACTUAL", "OFF", "CORRECTED"]
    width = len(titles) if corrected else len(titles) - 1
    table(titles[:width], [row[:width] for row in rows], frozenset(range(1, width)), indent="    ")
    more = "; corrected: by what earlier attempts had taught" if corrected else ""
    once = "at the same time: what is fetched while it waits, counted once; " if overlap_us or at_once_us else ""
    say(f"    ({once}the rest: messages and the job's own files{more})")


_ENDS: Final = {AttemptState.FAILED: "failed", AttemptState.LOST: "was lost", AttemptState.REFUSED: "was refused"}


def _line(title: str, predicted_us: int, actual_us: int) -> list[str]:
    happened = actual_us >= 0
    off = change(predicted_us, actual_us) if happened and predicted_us > 0 else ""
    return [title, seconds(predicted_us), seconds(actual_us) if happened else "-", off]


def _corrected_as(component: Component | None, chosen: Candidate) -> Component | None:
    return Component.PEER if component is Component.FETCH and chosen.fetch_from is not None else component


def _factor(attempt: Attempt, component: Component | None) -> str:
    if component is None:
        return ""
    index = _COMPONENTS.index(component)
    factor = attempt.factors_milli[index] if index < len(attempt.factors_milli) else 0
    return f"x{factor / _WHOLE:.2f}" if factor else ""
