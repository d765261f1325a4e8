"""Which terms there are, in which order they are printed, and how they make one cost.

Decides the composition: transfer, fetch and waiting go on at the same time, the rest one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestrator.core.placement.rows import Ints, Rows
from orchestrator.core.placement.terms import execution, fetch, init, money, output, queue, stage
from orchestrator.core.placement.terms import input as input_term


@dataclass(frozen=True, slots=True, kw_only=True)
class TermRule:
    """A term: its name, its function, and whether it runs beside the other concurrent ones."""

    name: str
    cost_us: Callable[[Rows], Ints]
    concurrent: bool = False


TERMS: Final = (
    TermRule(name=queue.NAME, cost_us=queue.cost_us, concurrent=True),
    TermRule(name=fetch.NAME, cost_us=fetch.cost_us, concurrent=True),
    TermRule(name=input_term.NAME, cost_us=input_term.cost_us, concurrent=True),
    TermRule(name=stage.NAME, cost_us=stage.cost_us),
    TermRule(name=init.NAME, cost_us=init.cost_us),
    TermRule(name=execution.NAME, cost_us=execution.cost_us),
    TermRule(name=output.NAME, cost_us=output.cost_us),
    TermRule(name=money.NAME, cost_us=money.cost_us),
)
# What concurrency saves, never positive: with it the printed terms add up to the total exactly.
OVERLAP: Final = "overlap"
TERM_NAMES: Final = (*(term.name for term in TERMS), OVERLAP)
_QUEUE: Final = TERM_NAMES.index(queue.NAME)
_FETCH: Final = TERM_NAMES.index(fetch.NAME)
_INPUT: Final = TERM_NAMES.index(input_term.NAME)
_MONEY: Final = TERM_NAMES.index(money.NAME)
STAGE: Final = TERM_NAMES.index(stage.NAME)
_CONCURRENT: Final = [index for index, term in enumerate(TERMS) if term.concurrent]
_SERIAL: Final = [index for index, term in enumerate(TERMS) if not term.concurrent]


def all_terms(rows: Rows) -> Ints:
    """All terms of all rows in microseconds, one line per name of TERM_NAMES; each column's sum is the row's total."""
    terms = np.empty((len(TERM_NAMES), len(rows.wait_us)), dtype=np.int64)
    for index, term in enumerate(TERMS):
        terms[index] = term.cost_us(rows)
    _set_overlap(terms)
    return terms


def _set_overlap(terms: Ints) -> None:
    concurrent = terms[_CONCURRENT]
    terms[-1] = concurrent.max(axis=0) - concurrent.sum(axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What does not change between decisions of a class: `terms` as of no waiting and no fetch, and the sum of the serial ones."""

    terms: Ints
    serial_us: Ints
    input_us: Ints
    money_us: Ints


def fixed(rows: Rows) -> Fixed:
    """The terms of a class whose waiting and fetching are not known yet (zero in `rows`)."""
    terms = all_terms(rows)
    return Fixed(terms=terms, serial_us=terms[_SERIAL].sum(axis=0), input_us=terms[_INPUT].copy(), money_us=terms[_MONEY].copy())


def totals(known: Fixed, wait_us: Ints, fetch_us: Ints) -> Ints:
    """Total per row once waiting and fetching are known: the same sum as of `all_terms`, without building the terms."""
    return np.maximum(np.maximum(wait_us, fetch_us), known.input_us) + known.serial_us


def terms_of(known: Fixed, rows: Ints, wait_us: Ints, fetch_us: Ints) -> Ints:
    """The terms of a few rows, by index, for an explanation: columns in the order of `rows`."""
    terms = np.asarray(known.terms[:, rows])
    terms[_QUEUE] = wait_us[rows]
    terms[_FETCH] = fetch_us[rows]
    _set_overlap(terms)
    return terms
