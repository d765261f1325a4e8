"""What `kernel` computes, in numpy: the same integers where numba is not installed.

Decides nothing of its own: where the two differ, one of them is wrong, and a test says so. Must not know jobs, sites or models.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.rows import (
    BARE,
    COLD,
    FORBIDDEN_US,
    NO_DEADLINE,
    OVERDUE_US,
    UNREACHABLE,
    VICTIMS,
    WAIT_MAX_US,
    Bools,
    Dyn,
    Fix,
    Ints,
    Out,
    Pres,
    Rate,
    Room,
    Slots,
    Source,
    State,
)


def decide(
    fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, rates: Ints, mask: Bools, out: Ints
) -> tuple[int, int]:
    """See `kernel.Decide`."""
    pools, now = len(dyn), int(rates[Rate.NOW])
    out[:, :] = 0
    open_pools = (fix[pools : 2 * pools, Fix.FEASIBLE] != 0) & (dyn[:, Dyn.ACCEPTING] != 0)
    _cold_rows(fix, dyn, rooms, rates, open_pools, out[pools : 2 * pools])
    lines = pres[open_pools[pres[:, Pres.POOL]]] if len(pres) else pres
    if len(lines):
        where = lines[:, Pres.POOL]
        _slot_rows(out, where, lines[:, Pres.READY], lines[:, Pres.READY_UNTIL], now)
        if len(out) > BARE * pools:
            bare = BARE * pools + where
            _slot_rows(out, bare, lines[:, Pres.BARE], lines[:, Pres.BARE_UNTIL], now)
            out[bare, Out.SAVING] = np.where(lines[:, Pres.BARE_NEAR] != 0, fix[bare, Fix.NEAR_SAVING], 0)
        _sources(fix, nodes, rates, lines, out, pools + where)
    possible = out[:, Out.STATE] != State.IMPOSSIBLE
    if rates[Rate.CHURN]:
        cold = slice(COLD * pools, (COLD + 1) * pools)
        churn = (fix[cold, Fix.RELOAD] + out[cold, Out.FETCH] - out[cold, Out.SAVING]) // 2
        out[cold, Out.CHURN] = np.where(possible[cold], churn, 0)
    if rates[Rate.FRAGMENT_MILLI]:
        cold = slice(COLD * pools, (COLD + 1) * pools)
        breaks = possible[cold] & (dyn[:, Dyn.WHOLE] != 0) & (out[cold, Out.WAIT] == 0)
        price = fix[cold, Fix.HALF_OCCUPANCY] * rates[Rate.FRAGMENT_MILLI] // 1_000
        out[cold, Out.FRAGMENT] = np.where(breaks, price, 0)
    _costs(fix, rates, out, possible)
    bound = _best(fix, dyn, rates, mask, out, State.BINDABLE)
    return bound, _best(fix, dyn, rates, mask, out, State.WAITS)


def _room(rooms: Ints, need: int) -> tuple[Ints, Ints]:
    """(price, bytes) of making room, a line each."""
    short = need - rooms[:, Room.LEAST]
    price, gone = np.zeros(len(rooms), dtype=np.int64), np.zeros(len(rooms), dtype=np.int64)
    for number in range(VICTIMS):
        size, cost = rooms[:, Room.VICTIM + 2 * number], rooms[:, Room.VICTIM + 2 * number + 1]
        leaves = short > 0
        price += np.where(leaves, cost, 0)
        gone += np.where(leaves, size, 0)
        short = short - np.where(leaves, size, 0)
    fits = need <= rooms[:, Room.MOST]
    price = np.where(fits, 0, np.where(short > 0, FORBIDDEN_US, price))
    return price, np.where(fits, 0, gone)


def _cold_rows(fix: Ints, dyn: Ints, rooms: Ints, rates: Ints, open_pools: Bools, cold: Ints) -> None:
    pools, now = len(dyn), rates[Rate.NOW]
    wait = np.where(dyn[:, Dyn.FREE] > 0, 0, np.maximum(dyn[:, Dyn.SOONEST] - now, OVERDUE_US))
    price, gone = _room(rooms, int(rates[Rate.NEED]))
    free = wait == 0
    state = np.where(
        free,
        np.where(price < FORBIDDEN_US, State.BINDABLE, State.IMPOSSIBLE),
        np.where(wait < WAIT_MAX_US, State.WAITS, State.IMPOSSIBLE),
    )
    cold[:, Out.STATE] = np.where(open_pools, state, State.IMPOSSIBLE)
    cold[:, Out.WAIT] = np.where(open_pools, wait, 0)
    cold[:, Out.FETCH] = np.where(open_pools, fix[pools : 2 * pools, Fix.FETCH] * (dyn[:, Dyn.FLOWS] + 1), 0)
    priced = open_pools & (free | ((wait < WAIT_MAX_US) & (price < FORBIDDEN_US)))
    cold[:, Out.EVICT] = np.where(priced, price * rates[Rate.EVICT_MILLI] // 1_000, 0)
    cold[:, Out.EVICTED_BYTES] = np.where(priced, gone, 0)


def _slot_rows(out: Ints, rows: Ints, slots: Ints, until: Ints, now: int) -> None:
    wait = np.where(slots == Slots.FREE, 0, np.maximum(until - now, OVERDUE_US))
    busy = (slots == Slots.OPEN) | (slots == Slots.FULL)
    state = np.where(slots == Slots.OPEN, State.BINDABLE, State.WAITS)
    state = np.where(busy & (wait < WAIT_MAX_US), state, State.IMPOSSIBLE)
    out[rows, Out.STATE] = np.where(slots == Slots.FREE, State.BINDABLE, state)
    out[rows, Out.WAIT] = np.where(slots == Slots.NONE, 0, wait)


def _sources(fix: Ints, nodes: Ints, rates: Ints, lines: Ints, out: Ints, rows: Ints) -> None:
    """Cold rows of pools that have something of the model."""
    now = rates[Rate.NOW]
    state, wait, fetch = out[rows, Out.STATE], out[rows, Out.WAIT], out[rows, Out.FETCH]
    told = lines[:, Pres.COLD] >= 0
    state = np.where(told, lines[:, Pres.COLD], state)
    told_wait = np.where(lines[:, Pres.COLD] == State.BINDABLE, 0, np.maximum(lines[:, Pres.COLD_UNTIL] - now, OVERDUE_US))
    wait = np.where(told, told_wait, wait)
    source = lines[:, Pres.SOURCE]
    beside = (source == Source.SITE_FETCHING) & (lines[:, Pres.SOURCE_US] > now)
    flying = (source == Source.FETCHING) | beside
    local = (source == Source.DISK) | (source == Source.HOST)
    fetch = np.where(flying, np.maximum(lines[:, Pres.SOURCE_US] - now, 0), np.where(local, 0, fetch))
    joins = beside & (state == State.BINDABLE)
    state = np.where(joins, State.WAITS, state)
    wait = np.where(joins, fetch, wait)
    told_price = lines[:, Pres.COLD_PRICE] * rates[Rate.EVICT_MILLI] // 1_000
    out[rows, Out.EVICT] = np.where(told, told_price, out[rows, Out.EVICT])
    out[rows, Out.EVICTED_BYTES] = np.where(told, lines[:, Pres.COLD_BYTES], out[rows, Out.EVICTED_BYTES])
    here = (local | (source == Source.FETCHING)) & (wait == 0) & ~told
    price, gone = _room(nodes[np.where(here, lines[:, Pres.NODE], 0)], int(rates[Rate.NEED]))
    state = np.where(here, np.where(price < FORBIDDEN_US, State.BINDABLE, State.IMPOSSIBLE), state)
    out[rows, Out.EVICT] = np.where(here, price * rates[Rate.EVICT_MILLI] // 1_000, out[rows, Out.EVICT])
    out[rows, Out.EVICTED_BYTES] = np.where(here, gone, out[rows, Out.EVICTED_BYTES])
    out[rows, Out.STATE], out[rows, Out.WAIT], out[rows, Out.FETCH] = state, wait, fetch
    out[rows, Out.SAVING] = np.where(source == Source.HOST, fix[rows, Fix.HOST_SAVING], 0)


def _costs(fix: Ints, rates: Ints, out: Ints, possible: Bools) -> None:
    concurrent = np.maximum(np.maximum(out[:, Out.WAIT], out[:, Out.FETCH]), fix[:, Fix.INPUT])
    delay = concurrent + fix[:, Fix.SERIAL] - out[:, Out.SAVING]
    risk = fix[:, Fix.RISK_PPM] * ((fix[:, Fix.HALF_OCCUPANCY] + delay) // 1_000) // 1_000
    risk = risk + fix[:, Fix.FAIL_PPM] * (delay // 1_000) // 1_000
    slack = rates[Rate.SLACK]
    tardy = np.zeros(len(out), dtype=np.int64)
    if slack != NO_DEADLINE:
        late = rates[Rate.TARDY_MILLI] * np.maximum(delay - slack, 0) // 1_000
        tardy = np.where(delay * rates[Rate.SPREAD_MILLI] <= slack * 1_000, -delay, late)
    total = delay + fix[:, Fix.PRICE] + out[:, Out.EVICT] + out[:, Out.CHURN] + out[:, Out.FRAGMENT] + risk + tardy
    for column, values in ((Out.DELAY, delay), (Out.RISK, risk), (Out.TARDY, tardy), (Out.TOTAL, total)):
        out[:, column] = np.where(possible, values, 0)


def _best(fix: Ints, dyn: Ints, rates: Ints, mask: Bools, out: Ints, state: int) -> int:
    open_rows = (out[:, Out.STATE] == state) & mask
    in_time = open_rows & (out[:, Out.TARDY] < 0)
    if in_time.any():
        open_rows = in_time
    total = np.where(open_rows, out[:, Out.TOTAL], UNREACHABLE)
    least = int(total.min()) if len(total) else UNREACHABLE
    if least >= UNREACHABLE:
        return -1
    most = least + max(int(rates[Rate.TIE_US]), least * int(rates[Rate.TIE_MILLI]) // 1_000)
    (tied,) = np.nonzero(open_rows & (total <= most))
    if len(tied) == 1:
        return int(tied[0])
    pools = len(dyn)
    order = np.lexsort(
        (
            tied,
            fix[tied, Fix.HASH],
            -dyn[tied % pools, Dyn.FREE],
            fix[tied, Fix.USD],
            out[tied, Out.EVICTED_BYTES],
            out[tied, Out.FETCH],
            tied // pools == COLD,
        )
    )
    return int(tied[order[0]])


def nearest(out: Ints, chosen: int, rows: Ints) -> int:
    """See `kernel.nearest_rows`."""
    possible = out[:, Out.STATE] != State.IMPOSSIBLE
    possible[chosen] = False
    (known,) = np.nonzero(possible)
    ranked = known[np.argsort(out[known, Out.TOTAL], kind="stable")][: len(rows)]
    rows[: len(ranked)] = ranked
    return len(ranked)


def count(codes: Ints, reasons: Ints, out: Ints, counts: Ints) -> None:
    """See `kernel.count_reasons`."""
    counts += np.bincount(codes[codes != 0], minlength=len(counts))
    bindable = (out[:, Out.STATE] == State.BINDABLE).reshape(-1, max(len(codes), 1)).any(axis=0)
    counts += np.bincount(reasons[(codes == 0) & ~bindable], minlength=len(counts))
