"""Figures in words, alike on the page and in the terminal.

Decides digits and units. Must not know where they are shown; nothing here is escaped for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from atoll.model.words import duration
from sims.report.comparison import Metric, Unit
from sims.results.parquet import Metadata
from sims.study.paired import Difference

NOTHING = "–"
MINUS = "−"


def value(metric: Metric, found: float | None) -> str:
    """ "3.41s", "7.2 %", "$0.42"."""
    if found is None:
        return NOTHING
    match metric.unit:
        case Unit.SECONDS:
            return duration(round(found * 1e6))
        case Unit.SHARE:
            return f"{found * 100:.1f} %"
        case Unit.USD:
            return money(found)


def money(usd: float) -> str:
    """Three figures of it, cents where there are dollars."""
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.3g}"


def change(metric: Metric, before: float, after: float) -> str:
    """ "−12.3 %" of what it was; shares, which are per cent already, in points."""
    if metric.unit is Unit.SHARE:
        return f"{_signed((after - before) * 100, 1)} points"
    return f"{_signed((after / before - 1) * 100, 1)} %" if before else NOTHING


def interval(metric: Metric, found: Difference) -> str:
    """Where the change lies with 95 % confidence, in the unit of `change`."""
    if metric.unit is Unit.SHARE:
        scale = 100.0
    elif found.baseline_mean:
        scale = 100 / found.baseline_mean
    else:
        return NOTHING
    return f"{_signed(found.low * scale, 1)} to {_signed(found.high * scale, 1)}"


def chance(found: Difference) -> str:
    """How often chance alone would do as much."""
    if found.p_adjusted < 0.001:
        return "p < 0.001"
    return f"p = {found.p_adjusted:.3f}" if found.p_adjusted < 0.1 else f"p = {found.p_adjusted:.2f}"


def is_better(metric: Metric, found: Difference) -> bool:
    """Whether a change is one that an operator wants."""
    return (found.mean < 0) == metric.lower_is_better


def one_or_many(texts: Iterable[str]) -> str:
    """The text that all share, or each of them."""
    return ", ".join(dict.fromkeys(text for text in texts if text))


def load(metadata: Metadata) -> str:
    return f"load {metadata.load_milli / 1000:.2f}" if metadata.load_milli else "load as traced"


def _signed(number: float, places: int) -> str:
    text = f"{abs(number):.{places}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if number < 0 else '+'}{text}"
