"""Decisions reckoned with Python's integers, which have no end, and tables of the largest figures that may meet in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from atoll.model import limits
from orchestrator.core.learning.widths import SCALES_MILLI
from orchestrator.core.placement import clearing, kernel, landing, lateness, leasts
from orchestrator.core.placement.policy import BOUNDS, PRIORITY_WEIGHT_MILLI, Policy
from orchestrator.core.placement.rows import (
    FLOWS_MAX,
    FORBIDDEN_US,
    LOSSES_MAX,
    NO_BUDGET,
    NO_DEADLINE,
    PAY_MAX,
    RATES,
    ROOM_WIDTH,
    STARTS,
    VICTIMS,
    WAIT_MAX_US,
    WIDTHS_EACH,
    Dyn,
    Fix,
    Ints,
    Pres,
    Rate,
    Room,
    Source,
    Spot,
)

# The most that an estimate says, by column; what is not here are flags, names and micro-dollars that are only compared.
YEAR = limits.PREDICTED_US_MAX
FIX_MOST: dict[Fix, int] = {
    Fix.SERIAL: 6 * YEAR, Fix.INPUT: YEAR, Fix.NET: 10**17, Fix.HAZARD: 8 * (LOSSES_MAX + 10**6), Fix.FAIL_PPM: 10**6,
    Fix.OCCUPANCY: 5 * YEAR, Fix.FETCH: YEAR, Fix.RELOAD: 2 * YEAR, Fix.SAVING: YEAR, Fix.ADAPT_MILLI: 4_000, Fix.COPY: YEAR,
    Fix.CROWD: 100 * YEAR, Fix.LEAVING: 10**17, Fix.PAY: PAY_MAX, Fix.EXECUTION: 2 * YEAR, Fix.PEERS: 1,
    Fix.FIRST: 6_000_000,
}  # fmt: skip


def exactly(*tables: Any) -> tuple[tuple[int, ...], Any]:
    """What a decision comes to by Python's integers, which have no end: the rows, and the table that it writes."""
    *figures, mask, out = tables
    compiled = [
        (module, name, found)
        for module in (clearing, kernel, landing, lateness, leasts)
        for name, found in vars(module).items()
        if hasattr(found, "py_func")
    ]
    exact = np.zeros(out.shape, dtype=object)
    with pytest.MonkeyPatch.context() as plain:
        for module, name, found in compiled:
            plain.setattr(module, name, found.py_func)
        chosen = kernel.decide_rows(*[*(table.astype(object) for table in figures), mask, exact])
    return tuple(map(int, chosen)), exact


@contextmanager
def reckoned_exactly(seen: list[Ints]) -> Iterator[None]:
    """Each decision is computed with Python's integers too, and what was decided is collected."""
    decide = kernel.decide

    def both(*tables: Any) -> tuple[int, int]:
        fix, out = tables[0], tables[-1]
        for column, most in FIX_MOST.items():
            assert fix[:, column].min() >= 0 and fix[:, column].max() <= most, column.name
        chosen = decide(*tables)
        again, exact = exactly(*tables)
        assert tuple(map(int, chosen)) == again
        assert np.array_equal(out.astype(object), exact)
        seen.append(out.copy())
        return chosen

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernel, "decide", both)
        yield


@st.composite
def worst_tables(draw: st.DrawFn) -> tuple[Any, ...]:
    """Tables of the largest figures that can meet, beside none and small ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def some(most: int, *shape: int) -> Ints:
        return rng.choice(np.array([0, 1, most // 2, most], dtype=np.int64), shape, p=[0.2, 0.1, 0.2, 0.5])

    pools, kinds, now = draw(st.integers(1, 4)), 3, 10**16
    rows, nodes = kinds * pools, 2 * pools
    fix = np.zeros((rows, len(Fix)), dtype=np.int64)
    fix[:, Fix.FEASIBLE], fix[:, Fix.BUDGET] = 1, NO_BUDGET
    for column, most in FIX_MOST.items():
        fix[:, column] = some(most, rows)
    dyn = some(FLOWS_MAX, pools, len(Dyn))
    dyn[:, Dyn.ACCEPTING] = 1
    dyn[:, Dyn.SOONEST] = now + some(WAIT_MAX_US - 1, pools)
    rooms, node_rooms = some(limits.NEEDED_BYTES_MAX, pools, ROOM_WIDTH), some(limits.NEEDED_BYTES_MAX, nodes, ROOM_WIDTH)
    for table in (rooms, node_rooms):
        for victim in (Room.VICTIM, Room.KEPT_VICTIM):
            table[:, victim : victim + 2 * VICTIMS : 2] = some(limits.BYTES_MAX, len(table), VICTIMS)
            table[:, victim + 1 : victim + 2 * VICTIMS : 2] = some(FORBIDDEN_US // 2, len(table), VICTIMS)
        table[:, [Room.LEAST, Room.KEPT_LEAST]] = some(limits.BYTES_MAX, len(table), 2) - some(limits.NEEDED_BYTES_MAX, len(table), 2)
    pres = np.zeros((pools, len(Pres)), dtype=np.int64)
    pres[:, Pres.POOL] = np.arange(pools)
    pres[:, [Pres.READY, Pres.BARE]] = rng.integers(0, 4, (pools, 2))
    pres[:, [Pres.READY_UNTIL, Pres.BARE_UNTIL, Pres.SOURCE_US]] = now + some(8 * YEAR, pools, 3)
    pres[:, [Pres.READY_ADAPT, Pres.BARE_ADAPT]] = some(YEAR, pools, 2)
    pres[:, [Pres.READY_FIRST, Pres.BARE_FIRST]] = rng.integers(0, 2, (pools, 2))
    pres[:, Pres.SOURCE] = rng.integers(0, 6, pools)
    spots = now + some(YEAR, draw(st.integers(0, 3)), len(Spot))
    spots[:, Spot.POOL] = np.sort(rng.integers(0, pools, len(spots)))
    spots[:, Spot.NODE] = rng.integers(0, nodes, len(spots))
    spots[:, Spot.SOURCE] = rng.choice([Source.FETCHING, Source.DISK, Source.HOST], len(spots))
    spots = spots[np.lexsort((-spots[:, Spot.SOURCE], spots[:, Spot.POOL]))]  # the nearest first
    rates = np.zeros(RATES, dtype=np.int64)
    rates[Rate.NOW], rates[Rate.NEED] = now, draw(st.sampled_from((1, limits.NEEDED_BYTES_MAX)))
    weight = draw(st.sampled_from(PRIORITY_WEIGHT_MILLI))
    rates[Rate.WEIGHT_MILLI], rates[Rate.CHURN] = weight, draw(st.integers(0, 1))
    rates[Rate.SLACK] = draw(st.sampled_from((NO_DEADLINE, 0, 1_000 * limits.DEADLINE_MS_MAX)))
    rates[Rate.DONE_WITHIN] = rates[Rate.SLACK]
    rates[Rate.BEGUN_WITHIN] = draw(st.sampled_from((NO_DEADLINE, 0, 1_000 * limits.DEADLINE_MS_MAX)))
    for rate, name, unit in (
        (Rate.EVICT_MILLI, "k_e_milli", 1_000), (Rate.FRAGMENT_MILLI, "fragmentation_milli", 1_000), (Rate.MONEY, "seconds_per_dollar", 0),
        (Rate.LINK_MILLI, "link_milli", 0), (Rate.LINK_USED_MILLI, "link_used_milli", 0), (Rate.TARDY_MILLI, "tardy_milli", 0),
        (Rate.TIE_US, "tie_us", 0), (Rate.TIE_MILLI, "tie_milli", 0),
    ):  # fmt: skip
        figure = draw(st.sampled_from((getattr(Policy(), name), *BOUNDS[name])))
        rates[rate] = figure * unit // weight if unit else figure
    # Errors of three octaves, and scales of four: the most that is learned.
    widths = some(8_000, len(STARTS), WIDTHS_EACH)
    rates[Rate.WIDTHS :] = (np.sort(widths, axis=0) if draw(st.booleans()) else widths).ravel()
    dyn[:, [Dyn.WIDE_BEFORE, Dyn.WIDE_EXECUTION]] = some(SCALES_MILLI[1], pools, 2)
    return fix, dyn, rooms, node_rooms, pres, spots, rates, np.ones(rows, dtype=np.bool_)
