"""Which terms there are, in which order they are printed, and how they make one cost.

Decides the composition as it is shown; `kernel` computes the same sum. Transfer, fetch and waiting go on at the same time, the rest one
after the other, prices on top. A term that the policy leaves out costs nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints, Layout, Out
from orchestrator.core.placement.terms import (
    adapt,
    churn,
    deadline,
    evict,
    execution,
    fetch,
    fragmentation,
    init,
    link,
    money,
    net,
    output,
    queue,
    risk,
    stage,
)
from orchestrator.core.placement.terms import compile as compile_term
from orchestrator.core.placement.terms import input as input_term


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A term: its name, and its function of what stands still (`still`) or the column that a decision writes it to (`moving`)."""

    name: str
    still: Callable[[Inputs], Ints] | None = None
    moving: Out | None = None
    concurrent: bool = False  # goes on beside the other concurrent ones
    price: bool = False  # not time that passes, but what something is worth


TERMS: Final = (
    Term(name=queue.NAME, moving=queue.COLUMN, concurrent=True),
    Term(name=fetch.NAME, moving=fetch.COLUMN, concurrent=True),
    Term(name=input_term.NAME, still=input_term.cost_us, concurrent=True),
    Term(name=stage.NAME, still=stage.cost_us),
    Term(name=init.NAME, still=init.cost_us),
    Term(name=adapt.NAME, still=adapt.cost_us),
    Term(name=compile_term.NAME, still=compile_term.cost_us),
    Term(name=execution.NAME, still=execution.cost_us),
    Term(name=output.NAME, still=output.cost_us),
    Term(name=money.NAME, moving=money.COLUMN, price=True),
    Term(name=net.NAME, still=net.cost_us, price=True),
    Term(name=link.NAME, moving=link.COLUMN, price=True),
    Term(name=evict.NAME, moving=evict.COLUMN, price=True),
    Term(name=churn.NAME, moving=churn.COLUMN, price=True),
    Term(name=fragmentation.NAME, moving=fragmentation.COLUMN, price=True),
    Term(name=risk.NAME, moving=risk.COLUMN, price=True),
    Term(name=deadline.NAME, moving=deadline.COLUMN, price=True),
)
# What concurrency saves, never positive: with it the printed terms add up to the total exactly.
OVERLAP: Final = "overlap"
TERM_NAMES: Final = (*(term.name for term in TERMS), OVERLAP)
QUEUE: Final = TERM_NAMES.index(queue.NAME)
FETCH: Final = TERM_NAMES.index(fetch.NAME)
STAGE: Final = TERM_NAMES.index(stage.NAME)
INIT: Final = TERM_NAMES.index(init.NAME)
ADAPT: Final = TERM_NAMES.index(adapt.NAME)
EXECUTION: Final = TERM_NAMES.index(execution.NAME)
OUTPUT: Final = TERM_NAMES.index(output.NAME)
_INPUT: Final = TERM_NAMES.index(input_term.NAME)
# What `listing.tell` has to know of the terms.
_LAYOUT: Final[dict[Layout, list[int]]] = {
    Layout.MOVING: [index for index, term in enumerate(TERMS) if term.moving is not None],
    Layout.COLUMN: [int(term.moving) for term in TERMS if term.moving is not None],
    Layout.CONCURRENT: [index for index, term in enumerate(TERMS) if term.concurrent],
    Layout.SAVED_BY: [ADAPT, STAGE, ADAPT],
    Layout.FIRST: [INIT],
}
LAYOUT: Final[Ints] = np.array([_LAYOUT[line] + [-1] * (len(TERM_NAMES) - len(_LAYOUT[line])) for line in Layout], dtype=np.int64)
_SERIAL: Final = [index for index, term in enumerate(TERMS) if term.still is not None and not term.concurrent and not term.price]
_STILL_PRICES: Final = [index for index, term in enumerate(TERMS) if term.still is not None and term.price]


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """The terms of a class that stand still, rows x names of TERM_NAMES (0 where they move), and their sums per row."""

    terms: Ints
    serial_us: Ints
    input_us: Ints
    price_us: Ints


def still(inputs: Inputs, enabled: frozenset[str]) -> Still:
    """Compute the terms that stand still; those not `enabled` are 0."""
    terms = np.zeros((len(TERM_NAMES), len(inputs.cold)), dtype=np.int64)
    for index, term in enumerate(TERMS):
        if term.still is not None and term.name in enabled:
            terms[index] = term.still(inputs)
    return Still(
        terms=np.ascontiguousarray(terms.T),  # a row's together: an explanation shows a few rows of them
        serial_us=terms[_SERIAL].sum(axis=0),
        input_us=terms[_INPUT].copy(),
        price_us=terms[_STILL_PRICES].sum(axis=0),
    )
