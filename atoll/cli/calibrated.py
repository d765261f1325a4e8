"""How what is told of a job's times differs from what the terms of its place add up to, and why.

Decides the words, and from when on a difference is worth them. Terms are what places are chosen by; what is told is by how such
predictions came out of late. Must not know how that is learned.
"""

from __future__ import annotations

from typing import Final

from atoll.cli.costtable import term
from atoll.cli.figures import duration
from atoll.model.placement import Explanation
from atoll.model.quote import Quote, Verdict

# A time that differs from its terms by less than this part of them differs in the third figure, where they are rounded.
_ROUNDED_PARTS: Final = 100
# Of short jobs a hundredth is less than anybody sees.
_ROUNDED_US: Final = 50_000


def told_us(quote: Quote, waited_us: int) -> int:
    """A part of a wait as the job's beginning is told: by what waits came to of late, so that no place is free after the job begins."""
    if quote.eta is None:
        return waited_us
    predicted_us, told_us = _until_executing_us(quote), quote.eta.begin_p50_us - quote.at_us
    if predicted_us <= 0 or _is_rounding(predicted_us, told_us):
        return min(waited_us, max(told_us, 0))
    return waited_us * max(told_us, 0) // predicted_us


def corrected(quote: Quote) -> list[str]:
    """Why what is told is not what the terms add up to, where that is so: all of it, or only until the job begins."""
    added_us, eta = quote.predicted_us + quote.turn_us, quote.eta
    if eta is None or added_us <= 0 or quote.chosen is None:
        return []
    told_us, waits = eta.end_p50_us - quote.at_us, quote.verdict is Verdict.WAITS
    begins_us, begun_us = _until_executing_us(quote), eta.begin_p50_us - quote.at_us
    whole, wait = not _is_rounding(added_us, told_us), waits and begins_us > 0 and not _is_rounding(begins_us, begun_us)
    terms = f"The terms below{' and the jobs before it' if quote.turn_us else ''} add up to"
    if whole and wait:
        both = f"took {_times(added_us, told_us)} times as long as predicted of late, their waits {_times(begins_us, begun_us)} times"
        return [f"{terms} {duration(added_us)}, {duration(begins_us)} of it until it begins: jobs like this {both}."]
    if wait:
        return [f"{terms} {duration(begins_us)} until it begins: waits like this took {_late(begins_us, begun_us)}."]
    return [f"{terms} {duration(added_us)}: jobs like this took {_late(added_us, told_us)}."] if whole else []


def recorrected(told: Explanation, predicted_us: int) -> list[str]:
    """As `corrected`, of a decision that was carried out: what was told of it is not what its terms add up to."""
    if not told.p50_us or predicted_us <= 0 or _is_rounding(predicted_us, told.p50_us):
        return []
    terms = f"the terms below add up to {duration(predicted_us)}"
    return [f"When it was decided {duration(told.p50_us)} was told; {terms}: jobs like this had taken {_late(predicted_us, told.p50_us)}."]


def _until_executing_us(quote: Quote) -> int:
    """What the terms of the place and those before it come to until the job executes."""
    assert quote.chosen is not None, "what has terms is a place"
    executing_us = sum(term(quote.term_names, quote.chosen, name) for name in ("execution", "output"))
    return quote.turn_us + quote.predicted_us - executing_us


def _is_rounding(predicted_us: int, told_us: int) -> bool:
    return abs(told_us - predicted_us) * _ROUNDED_PARTS < predicted_us or abs(told_us - predicted_us) < _ROUNDED_US


def _late(predicted_us: int, told_us: int) -> str:
    return f"{_times(predicted_us, told_us)} times as long as predicted of late"


def _times(predicted_us: int, told_us: int) -> str:
    return f"{told_us / predicted_us:.2f}".rstrip("0").rstrip(".")
