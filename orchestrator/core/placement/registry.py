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
_CONCURRENT: Final = [index for index, term in enumerate(TERMS) if term.concurrent]
_MONEY: Final = TERM_NAMES.index(money.NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Per row: `terms` (one line per name of TERM_NAMES), their sum `total`, and `delay`, the total without money."""

    terms: Ints
    total: Ints
    delay: Ints


def costs(rows: Rows) -> Costs:
    """All terms of all rows, and their sum; microseconds."""
    terms = np.empty((len(TERM_NAMES), len(rows.wait_us)), dtype=np.int64)
    for index, term in enumerate(TERMS):
        terms[index] = term.cost_us(rows)
    concurrent = terms[_CONCURRENT]
    terms[-1] = concurrent.max(axis=0) - concurrent.sum(axis=0)
    total = terms.sum(axis=0)
    return Costs(terms=terms, total=total, delay=total - terms[_MONEY])
