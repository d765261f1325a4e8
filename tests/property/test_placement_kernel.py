"""The inner loop of a decision: compiled, as plain Python and in numpy it gives the same integers, and what it chooses is the least."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.placement import kernel, listing, vectors
from orchestrator.core.placement.registry import LAYOUT, TERM_NAMES
from orchestrator.core.placement.rows import (
    LEAD,
    NO_BUDGET,
    NO_DEADLINE,
    RATES,
    ROOM_WIDTH,
    STARTS,
    WIDTHS_EACH,
    Bools,
    Dyn,
    Fix,
    Ints,
    Out,
    Pres,
    Rate,
    Room,
    Source,
    Spot,
    State,
)

_FIX_MOST = {
    Fix.SERIAL: 10**8, Fix.INPUT: 10**6, Fix.NET: 10**7, Fix.HAZARD: 10**7, Fix.FAIL_PPM: 10**5, Fix.OCCUPANCY: 10**8,
    Fix.FETCH: 2**45, Fix.RELOAD: 10**8, Fix.SAVING: 10**4, Fix.USD: 3, Fix.HASH: 2**32, Fix.COPY: 10**9, Fix.CROWD: 2**45,
    Fix.ADAPT_MILLI: 4_000, Fix.LEAVING: 10**7, Fix.PAY: 2**32, Fix.EXECUTION: 10**8,
    Fix.PEERS: 2, Fix.FIRST: 10**5,
}  # fmt: skip


Fleet = tuple[Ints, Ints, Ints, Ints, Ints, Ints, Ints, Bools]


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """All arguments of a decision but the table it writes, drawn from one seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pools, kinds = draw(st.integers(1, 30)), draw(st.integers(2, 3))
    lines = draw(st.integers(0, pools))
    fix = np.zeros((kinds * pools, len(Fix)), dtype=np.int64)
    fix[:, Fix.FEASIBLE] = rng.integers(0, 5, kinds * pools) > 0
    for column, most in _FIX_MOST.items():
        fix[:, column] = rng.integers(0, most, kinds * pools)
    fix[:, Fix.BUDGET] = np.where(rng.integers(0, 2, kinds * pools) > 0, NO_BUDGET, rng.integers(0, 10**8, kinds * pools))
    dyn = rng.integers(0, 3, (pools, len(Dyn)))
    dyn[:, Dyn.SOONEST] = rng.integers(0, 10**9, pools)
    nodes = 2 * pools
    pres = rng.integers(0, 10**9, (lines, len(Pres)))
    pres[:, Pres.POOL] = rng.choice(pools, lines, replace=False)
    for kind in (Pres.READY, Pres.BARE):
        pres[:, kind] = rng.integers(0, 4, lines)
    pres[:, [Pres.READY_ADAPT, Pres.BARE_ADAPT]] = rng.integers(0, 10**4, (lines, 2))
    pres[:, [Pres.READY_FIRST, Pres.BARE_FIRST]] = rng.integers(0, 2, (lines, 2))
    pres[:, Pres.SOURCE] = rng.integers(0, 6, lines)
    rates = np.zeros(RATES, dtype=np.int64)
    rates[Rate.NOW], rates[Rate.NEED] = rng.integers(0, 10**9), rng.integers(0, 200)
    rates[Rate.EVICT_MILLI], rates[Rate.CHURN] = rng.choice([0, 1_000, 5_000]), rng.integers(0, 2)
    rates[Rate.FRAGMENT_MILLI] = rng.choice([0, 1_000])
    rates[Rate.MONEY], rates[Rate.WEIGHT_MILLI] = rng.choice([0, 60, 100_000]), rng.choice([200, 1_000, 5_000])
    rates[Rate.SLACK] = draw(st.sampled_from([NO_DEADLINE, -5, 10**6, 10**8, 10**12]))
    # A policy that knows no deadlines has jobs with them all the same.
    rates[Rate.DONE_WITHIN] = draw(st.sampled_from([NO_DEADLINE, 10**8])) if rates[Rate.SLACK] == NO_DEADLINE else rates[Rate.SLACK]
    rates[Rate.BEGUN_WITHIN] = draw(st.sampled_from([NO_DEADLINE, -5, 10**7, 10**10]))
    widths = rng.integers(0, 3_000, (len(STARTS), WIDTHS_EACH))
    widths = np.sort(widths, axis=0) if draw(st.booleans()) else widths  # nearer sources are surer, or anything goes
    rates[Rate.TARDY_MILLI], rates[Rate.WIDTHS :] = 3_000, widths.ravel()
    dyn[:, [Dyn.WIDE_BEFORE, Dyn.WIDE_EXECUTION]] = rng.integers(250, 4_000, (pools, 2))
    rates[Rate.TIE_US], rates[Rate.TIE_MILLI] = draw(st.sampled_from([0, 50_000, 10**8])), 20
    rooms, node_rooms = rng.integers(0, 60, (pools, ROOM_WIDTH)), rng.integers(0, 60, (nodes, ROOM_WIDTH))
    # What leaves costs nothing, or as much as a fetch.
    node_rooms[:, Room.VICTIM + 1 : Room.KEPT_LEAST : 2] *= rng.choice([1, 10**6])
    fix[:, Fix.FETCH] //= rng.choice([1, 2**15])
    fix[:, Fix.PAY] //= rng.choice([1, 2**10])
    rates[Rate.LINK_MILLI], rates[Rate.LINK_USED_MILLI] = rng.choice([0, 100]), rng.choice([0, 500, 700])
    spots = rng.integers(0, 10**9, (draw(st.integers(0, 2 * pools)), len(Spot)))
    spots[:, Spot.POOL] = np.sort(rng.integers(0, pools, len(spots)))
    spots[:, Spot.NODE] = rng.integers(0, nodes, len(spots))
    spots[:, Spot.SOURCE] = rng.choice([Source.FETCHING, Source.DISK, Source.HOST], len(spots))
    spots = spots[np.lexsort((-spots[:, Spot.SOURCE], spots[:, Spot.POOL]))]
    return fix, dyn, rooms, node_rooms, pres, spots, rates, rng.integers(0, 8, kinds * pools) > 0


def _out(fleet: Fleet) -> Ints:
    return np.full((len(fleet[0]), len(Out)), -1, dtype=np.int64)


@settings(deadline=None)
@given(fleets())
def test_machine_code_and_numpy_give_the_same(fleet: Fleet) -> None:
    here, there = _out(fleet), _out(fleet)
    assert tuple(kernel.decide_rows(*fleet, here)) == tuple(vectors.decide(*fleet, there))
    assert np.array_equal(here, there)
    for keep in (1, 8):
        rows, others = np.zeros(keep, dtype=np.int64), np.zeros(keep, dtype=np.int64)
        found = listing.nearest_rows(here, 0, rows)
        assert found == vectors.nearest(here, 0, others) and np.array_equal(rows[:found], others[:found])
    for chosen in range(len(here)):
        limits = (chosen, len(fleet[1]), int(here[chosen, Out.TOTAL]), 2 * int(here[chosen, Out.DELAY]))
        ours, theirs = (np.full(3, -1, dtype=np.int64) for _ in range(2))
        assert listing.alike_rows(here, *limits, ours) == vectors.alike(here, *limits, theirs) and np.array_equal(ours, theirs)
    still = np.random.default_rng(len(here)).integers(0, 10**9, (len(here), len(TERM_NAMES)))
    for keep in (0, 1, 8):
        told = [(np.zeros(1 + keep, dtype=np.int64), np.full((1 + keep, LEAD + len(TERM_NAMES)), -1, dtype=np.int64)) for _ in range(2)]
        chosen = next((row for row in range(len(here)) if here[row, Out.STATE] != State.IMPOSSIBLE), 0)
        told[0][0][0] = told[1][0][0] = chosen
        found = listing.tell_rows(here, still, len(fleet[1]), told[0][0], LAYOUT, told[0][1])
        assert found == vectors.tell(here, still, len(fleet[1]), told[1][0], LAYOUT, told[1][1])
        assert all(np.array_equal(ours[:found], theirs[:found]) for ours, theirs in zip(*told, strict=True))
    codes, reasons = 1 - fleet[0][: len(fleet[1]), Fix.FEASIBLE], 2 + np.arange(len(fleet[1]), dtype=np.int64) % 2
    counts, same = np.zeros(6, dtype=np.int64), np.zeros(6, dtype=np.int64)
    listing.count_reasons(codes, reasons, fleet[1], here, (2, 4, 5, 1), counts)
    vectors.count(codes, reasons, fleet[1], there, (2, 4, 5, 1), same)
    assert np.array_equal(counts, same) and counts.sum() <= len(codes)


@settings(deadline=None)
@given(fleets())
def test_plain_python_gives_the_same(fleet: Fleet) -> None:
    plain = getattr(kernel.decide_rows, "py_func", kernel.decide_rows)  # without numba it is plain already
    here, there = _out(fleet), _out(fleet)
    assert tuple(kernel.decide_rows(*fleet, here)) == tuple(plain(*fleet, there))
    assert np.array_equal(here, there)


@settings(deadline=None)
@given(fleets())
def test_the_chosen_row_is_among_the_least_and_parts_add_up(fleet: Fleet) -> None:
    fix, rates, mask, out = fleet[0], fleet[6], fleet[7], _out(fleet)
    chosen = kernel.decide(*fleet, out)
    for row, state in zip(chosen, (State.BINDABLE, State.WAITS), strict=True):
        open_rows = (out[:, Out.STATE] == state) & mask
        in_time = open_rows & (out[:, Out.TARDY] < 0)
        open_rows = in_time if in_time.any() else open_rows
        if row < 0:
            assert not open_rows.any()
            continue
        least = int(out[open_rows, Out.TOTAL].min())
        assert open_rows[row]
        assert out[row, Out.TOTAL] <= least + max(rates[Rate.TIE_US], least * rates[Rate.TIE_MILLI] // 1_000)
    possible = out[:, Out.STATE] != State.IMPOSSIBLE
    priced = (Out.MONEY, Out.EVICT, Out.CHURN, Out.FRAGMENT, Out.LINK, Out.RISK, Out.TARDY)
    prices = fix[:, Fix.NET] + out[:, priced].sum(axis=1)
    assert np.array_equal(out[possible, Out.TOTAL], (out[:, Out.DELAY] + prices)[possible])


@settings(max_examples=300, deadline=None)
@given(fleets(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_nearer_weights_never_make_a_load_dearer(fleet: Fleet, chance: Random, farther: int) -> None:
    """Where weights come from is chosen by all that it costs, prices and deadline included: with more nodes that have them, and a nearer
    origin, no load costs more."""
    fix, spots, pools = fleet[0], fleet[5], len(fleet[1])
    fewer, far, near = fix.copy(), _out(fleet), _out(fleet)
    fewer[:, Fix.FETCH] *= farther
    kernel.decide(fewer, *fleet[1:5], spots[[chance.random() < 0.7 for _ in range(len(spots))]], *fleet[6:], far)
    kernel.decide(*fleet, near)
    for before, after in zip(far[pools : 2 * pools], near[pools : 2 * pools], strict=True):
        assert _goes_before(after) <= _goes_before(before)


def _goes_before(row: Ints) -> tuple[int, bool, int]:
    """What can begin before what waits, what is in time before what is not, then the cheaper; what is impossible last."""
    state = int(row[Out.STATE])
    return -state, bool(row[Out.TARDY] >= 0), int(row[Out.TOTAL]) if state != State.IMPOSSIBLE else 2**62
