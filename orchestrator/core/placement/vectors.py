"""What `kernel` computes, in numpy: the same integers where numba is not installed.

Decides nothing of its own: where the two differ, one of them is wrong, and a test says so. Must not know jobs, sites or models.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm
from orchestrator.core.placement.landing import landings
from orchestrator.core.placement.lateness import outlooks
from orchestrator.core.placement.rows import (
    BARE,
    COLD,
    EVICT_MAX_US,
    FETCH_MAX_US,
    FORBIDDEN_US,
    HELD_MAX_US,
    LEAD,
    LINK_MAX_US,
    MONEY_MAX_US,
    MS_PER_HOUR,
    OVERDUE_US,
    TIED_MAX_US,
    UNREACHABLE,
    VICTIMS,
    WAIT_MAX_US,
    Bools,
    Dyn,
    Fix,
    Ints,
    Layout,
    Out,
    Pres,
    Rate,
    Room,
    Slots,
    Source,
    Spot,
    State,
)

# What stands for the best copy where there is none, or no guard.
NO_COPY: Final = (UNREACHABLE, False)


def decide(fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, spots: Ints, rates: Ints, mask: Bools, out: Ints) -> tuple[int, int]:
    """See `kernel.Decide`."""
    pools, now = len(dyn), int(rates[Rate.NOW])
    out[:, :] = 0
    accepting = dyn[:, Dyn.ACCEPTING] != 0
    open_pools = (fix[pools : 2 * pools, Fix.FEASIBLE] != 0) & accepting
    lines = pres[accepting[pres[:, Pres.POOL]]] if len(pres) else pres
    where = lines[:, Pres.POOL]
    if len(lines):
        _slot_rows(fix, out, where, lines[:, Pres.READY], lines[:, Pres.READY_UNTIL], now)
        if len(out) > BARE * pools:
            bare = BARE * pools + where
            _slot_rows(fix, out, bare, lines[:, Pres.BARE], lines[:, Pres.BARE_UNTIL], now)
            _adapted(fix, out, where, lines[:, Pres.READY_ADAPT])
            _adapted(fix, out, bare, lines[:, Pres.BARE_ADAPT])
            _first(fix, out, bare, lines[:, Pres.BARE_FIRST])
        _first(fix, out, where, lines[:, Pres.READY_FIRST])
    _cost(fix, dyn, rates, out, slice(0, pools), NO_COPY)
    _cost(fix, dyn, rates, out, slice(2 * pools, len(out)), NO_COPY)
    copy = _best_copy(pools, out) if rates[Rate.CHURN] else NO_COPY
    _cold_rows(fix, dyn, rooms, rates, open_pools, out[pools : 2 * pools])
    if len(lines):
        lines = lines[open_pools[where]]
        _sources(fix, dyn, rates, lines, out, pools + lines[:, Pres.POOL], copy)
    if len(spots):
        _spots(fix, dyn, nodes, spots[open_pools[spots[:, Spot.POOL]]], rates, out, copy)
    _cost(fix, dyn, rates, out, slice(pools, 2 * pools), copy)
    bound = _best(fix, dyn, rates, mask, out, State.BINDABLE)
    return bound, _best(fix, dyn, rates, mask, out, State.WAITS)


def cost(fix: Ints, dyn: Ints, rates: Ints, out: Ints) -> None:
    """See `kernel.cost_rows`."""
    _cost(fix, dyn, rates, out, slice(0, len(out)), NO_COPY)


def _cost(fix: Ints, dyn: Ints, rates: Ints, out: Ints, rows: slice, copy: tuple[int, bool]) -> None:
    """The costs of some rows; `copy`: the best copy, against which loads are guarded."""
    here, line = np.arange(len(out))[rows], out[rows]
    told = _Ways(line[:, Out.WAIT], line[:, Out.FETCH], line[:, Out.SAVING], line[:, Out.EVICT], line[:, Out.SOURCE])
    figures = _figures(fix, dyn, rates, here, told)
    possible = line[:, Out.STATE] != State.IMPOSSIBLE
    vain = possible & (line[:, Out.EVICTED_BYTES] > 0) & (figures.short > 0)
    possible = possible & ~vain
    line[:, Out.PAID] = np.where(possible, figures.paid, 0)
    possible = possible & (line[:, Out.PAID] <= fix[rows, Fix.BUDGET])
    line[~possible, Out.STATE] = State.IMPOSSIBLE
    cold = here // max(len(dyn), 1) == COLD
    churn = np.where(cold, _handicap(fix[here], told, figures, copy), 0)
    for column, values in (
        (Out.FRAGMENT, figures.fragment), (Out.LINK, figures.link), (Out.CHURN, churn), (Out.DELAY, figures.delay),
        (Out.RISK, figures.risk), (Out.TARDY, figures.tardy), (Out.MONEY, figures.money), (Out.TOTAL, figures.total + churn),
    ):  # fmt: skip
        line[:, column] = np.where(possible, values, 0)
    line[:, Out.SHORT] = np.where(possible | vain, figures.short, 0)


def _clearing(rooms: Ints, least: int, victim: int, need: int) -> tuple[Ints, Ints]:
    """(price, bytes) of making room in one slot, a line each."""
    short = need - rooms[:, least]
    price, gone = np.zeros(len(rooms), dtype=np.int64), np.zeros(len(rooms), dtype=np.int64)
    for number in range(VICTIMS):
        size, cost = rooms[:, victim + 2 * number], rooms[:, victim + 2 * number + 1]
        leaves = short > 0
        price += np.where(leaves, cost, 0)
        gone += np.where(leaves, size, 0)
        short = short - np.where(leaves, size, 0)
    return np.where(short > 0, FORBIDDEN_US, np.minimum(price, FORBIDDEN_US)), gone


def room(rooms: Ints, need: int) -> tuple[Ints, Ints, Ints]:
    """(price, bytes) of making room, and 1 where the process has generated nothing yet, a line each."""
    price, gone = _clearing(rooms, Room.LEAST, Room.VICTIM, need)
    kept, kept_gone = _clearing(rooms, Room.KEPT_LEAST, Room.KEPT_VICTIM, need)
    fits, cheaper = need <= rooms[:, Room.MOST], kept < price
    first = rooms[:, Room.FRESH] >> np.where(fits, 0, np.where(cheaper, 2, 1)) & 1
    return np.where(fits, 0, np.where(cheaper, kept, price)), np.where(fits, 0, np.where(cheaper, kept_gone, gone)), first


def _cold_rows(fix: Ints, dyn: Ints, rooms: Ints, rates: Ints, open_pools: Bools, cold: Ints) -> None:
    pools, now = len(dyn), rates[Rate.NOW]
    wait = np.where(dyn[:, Dyn.FREE] > 0, 0, np.maximum(dyn[:, Dyn.SOONEST] - now, OVERDUE_US))
    price, gone, first = room(rooms, int(rates[Rate.NEED]))
    cold[:, Out.FIRST] = np.where(open_pools, fix[pools : 2 * pools, Fix.FIRST] * first, 0)
    cold[:, Out.SAVING] = -cold[:, Out.FIRST]
    free = wait == 0
    state = np.where(
        free,
        np.where(price < FORBIDDEN_US, State.BINDABLE, State.IMPOSSIBLE),
        np.where(wait < WAIT_MAX_US, State.WAITS, State.IMPOSSIBLE),
    )
    cold[:, Out.STATE] = np.where(open_pools, state, State.IMPOSSIBLE)
    cold[:, Out.WAIT] = np.where(open_pools, wait, 0)
    fetch = np.minimum(fix[pools : 2 * pools, Fix.FETCH] * (dyn[:, Dyn.FLOWS] + 1), FETCH_MAX_US)
    cold[:, Out.FETCH] = np.where(open_pools, fetch, 0)
    priced = open_pools & (free | ((wait < WAIT_MAX_US) & (price < FORBIDDEN_US)))
    cold[:, Out.EVICT] = np.where(priced, np.minimum(price, EVICT_MAX_US) * rates[Rate.EVICT_MILLI] // 1_000, 0)
    cold[:, Out.EVICTED_BYTES] = np.where(priced, gone, 0)


def _slot_rows(fix: Ints, out: Ints, rows: Ints, slots: Ints, until: Ints, now: int) -> None:
    wait = np.where(slots == Slots.FREE, 0, np.maximum(until - now, OVERDUE_US))
    busy = (slots == Slots.OPEN) | (slots == Slots.FULL)
    state = np.where(slots == Slots.OPEN, State.BINDABLE, State.WAITS)
    state = np.where(busy & (wait < WAIT_MAX_US), state, State.IMPOSSIBLE)
    feasible = fix[rows, Fix.FEASIBLE] != 0
    out[rows, Out.STATE] = np.where(feasible, np.where(slots == Slots.FREE, State.BINDABLE, state), State.IMPOSSIBLE)
    out[rows, Out.WAIT] = np.where(feasible & (slots != Slots.NONE), wait, 0)


def _adapted(fix: Ints, out: Ints, rows: Ints, lacking: Ints) -> None:
    out[rows, Out.SAVING] = np.maximum(fix[rows, Fix.SAVING] - lacking * fix[rows, Fix.ADAPT_MILLI] // 1_000, 0)


def _first(fix: Ints, out: Ints, rows: Ints, first: Ints) -> None:
    out[rows, Out.FIRST] = fix[rows, Fix.FIRST] * first
    out[rows, Out.SAVING] -= out[rows, Out.FIRST]


def _sources(fix: Ints, dyn: Ints, rates: Ints, lines: Ints, out: Ints, rows: Ints, best_copy: tuple[int, bool]) -> None:
    """Cold rows of pools whose site has something of the model."""
    now, told = rates[Rate.NOW], out[rows]
    state, wait, fetch = told[:, Out.STATE], told[:, Out.WAIT], told[:, Out.FETCH]
    source, until = lines[:, Pres.SOURCE], lines[:, Pres.SOURCE_US]
    copy, landed = landings(fix[rows], dyn[lines[:, Pres.POOL]])
    beside = (source == Source.SITE_FETCHING) & (until > now)
    mine = _Ways(wait, copy, told[:, Out.SAVING], told[:, Out.EVICT], np.full(len(lines), Source.SITE))
    ranks = _ranks(fix, dyn, rates, rows, state, mine, told[:, Out.EVICTED_BYTES], best_copy)
    there = (source == Source.SITE) & _lower(ranks, _ranks_of(fix, dyn, rates, rows, told, best_copy))
    local = (source == Source.FETCHING) | (source == Source.DISK) | (source == Source.HOST)
    fetch = np.where(beside, np.minimum(until - now + landed, FETCH_MAX_US), np.where(there, copy, fetch))
    fetch = np.where(local, np.where(source == Source.FETCHING, np.maximum(until - now, 0), 0), fetch)
    joins = beside & (state == State.BINDABLE)
    out[rows, Out.STATE], out[rows, Out.FETCH] = np.where(joins, State.WAITS, state), fetch
    out[rows, Out.WAIT] = np.where(joins, until - now, wait)
    out[rows, Out.SOURCE] = np.where(beside | there | local, source, out[rows, Out.SOURCE])
    out[rows, Out.SAVING] += np.where(source == Source.HOST, fix[rows, Fix.SAVING], 0)


def _spots(fix: Ints, dyn: Ints, nodes: Ints, spots: Ints, rates: Ints, out: Ints, copy: tuple[int, bool]) -> None:
    """Nodes with the weights: of each pool the best, if it is better than what the cold row means so far."""
    pools, now = len(dyn), rates[Rate.NOW]
    pool, source = spots[:, Spot.POOL], spots[:, Spot.SOURCE]
    row = pools + pool
    fetch = np.where(source == Source.FETCHING, np.maximum(spots[:, Spot.SOURCE_US] - now, 0), 0)
    free = dyn[pool, Dyn.FREE] > 0
    price, gone, first = room(nodes[spots[:, Spot.NODE]], int(rates[Rate.NEED]))
    first = np.where(free, fix[row, Fix.FIRST] * first, out[row, Out.FIRST])
    saving = np.where(source == Source.HOST, fix[row, Fix.SAVING], 0) - first
    able = np.where(
        free,
        (nodes[spots[:, Spot.NODE], Room.FREE] != 0) & (price < FORBIDDEN_US),
        out[row, Out.STATE] != State.IMPOSSIBLE,
    )
    evict = np.where(free, np.minimum(price, EVICT_MAX_US) * rates[Rate.EVICT_MILLI] // 1_000, out[row, Out.EVICT])
    gone = np.where(free, gone, out[row, Out.EVICTED_BYTES])
    wait = np.where(free, 0, out[row, Out.WAIT])
    state = np.where(able, np.where(wait == 0, State.BINDABLE, State.WAITS), State.IMPOSSIBLE)
    mine = _ranks(fix, dyn, rates, row, state, _Ways(wait, fetch, saving, evict, source), gone, copy)
    order = np.lexsort((np.arange(len(spots)), *reversed(mine), ~able, pool))
    _, heads = np.unique(pool[order], return_index=True)
    best = order[heads]
    better = _lower([part[best] for part in mine], _ranks_of(fix, dyn, rates, row[best], out[row[best]], copy))
    best = best[better & able[best]]
    into = row[best]
    for column, figures in (
        (Out.STATE, state), (Out.WAIT, wait), (Out.FETCH, fetch), (Out.SAVING, saving), (Out.EVICT, evict),
        (Out.EVICTED_BYTES, gone), (Out.SOURCE, source), (Out.NODE, spots[:, Spot.NODE] + 1), (Out.FIRST, first),
    ):  # fmt: skip
        out[into, column] = figures[best]


class _Ways(NamedTuple):
    """How rows begin, a line each."""

    wait: Ints
    fetch: Ints
    saving: Ints
    evict: Ints
    source: Ints


class _Figures(NamedTuple):
    """What that comes to, as in `kernel._figures`."""

    paid: Ints
    money: Ints
    fragment: Ints
    link: Ints
    delay: Ints
    risk: Ints
    tardy: Ints
    short: Ints
    total: Ints


def _figures(fix: Ints, dyn: Ints, rates: Ints, rows: Ints, way: _Ways) -> _Figures:
    """See `kernel._figures`."""
    pools = max(len(dyn), 1)
    cold, pool, fix = rows // pools == COLD, rows % pools, fix[rows]
    _, landed = landings(fix, dyn[pool])
    held = np.where(way.source == Source.FETCHING, np.maximum(way.fetch - way.wait, 0), way.fetch)
    held = np.where(way.source == Source.SITE_FETCHING, np.minimum(landed, way.fetch), held)
    occupied = np.clip(fix[:, Fix.OCCUPANCY] - way.saving + np.where(cold, held, 0), 0, HELD_MAX_US)
    paid = fix[:, Fix.PAY] * (occupied // 1_000) // MS_PER_HOUR
    money = np.minimum(paid * rates[Rate.MONEY], MONEY_MAX_US) * 1_000 // rates[Rate.WEIGHT_MILLI]
    breaks = cold & (dyn[pool, Dyn.WHOLE] != 0) & (way.wait == 0)
    fragment = np.where(breaks, occupied // 2 * rates[Rate.FRAGMENT_MILLI] // 1_000, 0)
    flows = dyn[pool, Dyn.FLOWS]
    used = flows * 1_000 > (flows + 1) * rates[Rate.LINK_USED_MILLI]
    crowd = np.where(used, fix[:, Fix.CROWD] * flows // (flows + 1) // 1_000 * rates[Rate.LINK_MILLI], 0)
    link = np.where(cold & (way.source == Source.ORIGIN), np.minimum(fix[:, Fix.LEAVING] + crowd, LINK_MAX_US), 0)
    concurrent = np.maximum(np.maximum(way.wait, way.fetch), fix[:, Fix.INPUT])
    delay = np.maximum(concurrent + fix[:, Fix.SERIAL] - way.saving, 1)
    lost = within_ppm(np.minimum(fix[:, Fix.HAZARD] * (occupied // 1_000) // MS_PER_HOUR, X_PPM_MAX))
    risk = lost * ((occupied // 2 + delay) // 1_000) // 1_000
    risk = risk + fix[:, Fix.FAIL_PPM] * (delay // 1_000) // 1_000
    tardy, short = outlooks(fix, dyn, rates, rows, delay, way.source)
    total = delay + money + fix[:, Fix.NET] + way.evict + fragment + link + risk + tardy
    return _Figures(paid, money, fragment, link, delay, risk, tardy, short, total)


def _handicap(fix: Ints, way: _Ways, figures: _Figures, copy: tuple[int, bool]) -> Ints:
    """See `kernel._handicap`."""
    least, safe = copy
    if least >= UNREACHABLE:
        return np.zeros(len(fix), dtype=np.int64)
    half, in_time = (fix[:, Fix.RELOAD] + way.fetch - way.saving) // 2, figures.tardy < 0
    return np.where(np.where(in_time != safe, in_time, figures.total + half < least), 0, half)


def _ranks(fix: Ints, dyn: Ints, rates: Ints, rows: Ints, state: Ints, way: _Ways, gone: Ints, copy: tuple[int, bool]) -> list[Ints]:
    """See `kernel._rank`."""
    figures, possible = _figures(fix, dyn, rates, rows, way), state != State.IMPOSSIBLE
    vain = (gone > 0) & (figures.short > 0)
    return [
        np.where(possible & ~vain & (figures.paid <= fix[rows, Fix.BUDGET]), -state, State.IMPOSSIBLE),
        np.where(possible & (figures.tardy < 0), 0, 1),
        np.where(possible, figures.total + _handicap(fix[rows], way, figures, copy), 2 * UNREACHABLE),
        way.fetch,
        gone,
    ]


def _ranks_of(fix: Ints, dyn: Ints, rates: Ints, rows: Ints, told: Ints, copy: tuple[int, bool]) -> list[Ints]:
    """See `kernel._rank_of`."""
    way = _Ways(told[:, Out.WAIT], told[:, Out.FETCH], told[:, Out.SAVING], told[:, Out.EVICT], told[:, Out.SOURCE])
    return _ranks(fix, dyn, rates, rows, told[:, Out.STATE], way, told[:, Out.EVICTED_BYTES], copy)


def _lower(mine: list[Ints], theirs: list[Ints]) -> Bools:
    """Whether one goes before the other, by the first part in which they differ."""
    lower, equal = np.zeros(len(mine[0]), dtype=np.bool_), np.ones(len(mine[0]), dtype=np.bool_)
    for here, there in zip(mine, theirs, strict=True):
        lower, equal = lower | (equal & (here < there)), equal & (here == there)
    return lower


def _best_copy(pools: int, out: Ints) -> tuple[int, bool]:
    """See `kernel._best_copy`."""
    existing = out[:, Out.STATE] != State.IMPOSSIBLE
    existing[pools : 2 * pools] = False
    in_time = out[:, Out.TARDY] < 0
    safe = bool((existing & in_time).any())
    total = out[existing & in_time if safe else existing, Out.TOTAL]
    return (int(total.min()), safe) if len(total) else NO_COPY


def _best(fix: Ints, dyn: Ints, rates: Ints, mask: Bools, out: Ints, state: int) -> int:
    open_rows = (out[:, Out.STATE] == state) & mask
    in_time = open_rows & (out[:, Out.TARDY] < 0)
    if in_time.any():
        open_rows = in_time
    total = np.where(open_rows, out[:, Out.TOTAL], UNREACHABLE)
    least = int(total.min()) if len(total) else UNREACHABLE
    if least >= UNREACHABLE:
        return -1
    most = least + max(int(rates[Rate.TIE_US]), min(least, TIED_MAX_US) * int(rates[Rate.TIE_MILLI]) // 1_000)
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
    """See `listing.nearest_rows`."""
    possible = out[:, Out.STATE] != State.IMPOSSIBLE
    possible[chosen] = False
    (known,) = np.nonzero(possible)
    ranked = known[np.argsort(out[known, Out.TOTAL], kind="stable")][: len(rows)]
    rows[: len(ranked)] = ranked
    return len(ranked)


def alike(out: Ints, chosen: int, pools: int, total: int, delay: int, rows: Ints) -> int:
    """See `listing.alike_rows`."""
    first = chosen - chosen % pools
    kind = out[first : first + pools]
    serving = (kind[:, Out.STATE] != State.IMPOSSIBLE) & (kind[:, Out.DELAY] <= delay) & (kind[:, Out.TOTAL] <= total)
    serving[chosen - first] = False
    (known,) = np.nonzero(serving)
    ranked = known[np.argsort(kind[known, Out.DELAY], kind="stable")][: len(rows)]
    rows[: len(ranked)] = first + ranked
    return len(known)


def tell(out: Ints, still: Ints, pools: int, rows: Ints, layout: Ints, figures: Ints) -> int:
    """See `listing.tell_rows`."""
    found = 1 + (nearest(out, int(rows[0]), rows[1:]) if len(rows) > 1 else 0)
    told, kinds = rows[:found], rows[:found] // pools
    lines, terms = figures[:found], figures[:found, LEAD:]
    lines[:, 0], lines[:, 2], lines[:, 3] = out[told, Out.TOTAL], kinds == COLD, 0
    lines[:, 1] = np.where(out[told, Out.STATE] == State.BINDABLE, 0, out[told, Out.WAIT])
    terms[:] = still[told]
    moving = layout[Layout.MOVING] >= 0
    terms[:, layout[Layout.MOVING, moving]] = out[told[:, np.newaxis], layout[Layout.COLUMN, moving]]
    terms[np.arange(found), layout[Layout.SAVED_BY, kinds]] -= out[told, Out.SAVING] + out[told, Out.FIRST]
    terms[:, layout[Layout.FIRST, 0]] += out[told, Out.FIRST]
    concurrent = terms[:, layout[Layout.CONCURRENT, layout[Layout.CONCURRENT] >= 0]]
    terms[:, -1] = concurrent.max(axis=1) - concurrent.sum(axis=1)
    return found


def count(codes: Ints, reasons: Ints, dyn: Ints, out: Ints, told: tuple[int, int, int, int], counts: Ints) -> None:
    """See `listing.count_reasons`."""
    pools = len(codes)
    counts += np.bincount(codes[codes != 0], minlength=len(counts))
    taken, held, dear, late = told
    states = out[:, Out.STATE].reshape(-1, max(pools, 1))
    bindable, possible = (states == State.BINDABLE).any(axis=0), (states != State.IMPOSSIBLE).any(axis=0)
    priced_out = ((states == State.IMPOSSIBLE) & (out[:, Out.PAID].reshape(states.shape) > 0)).any(axis=0) & ~possible
    cold = out[pools : 2 * pools]
    full = (reasons == taken) & (dyn[:, Dyn.FREE] > 0) & (cold[:, Out.STATE] == State.IMPOSSIBLE) & (cold[:, Out.PAID] == 0)
    vain = (cold[:, Out.STATE] == State.IMPOSSIBLE) & (cold[:, Out.SHORT] > 0)
    why = np.where(vain, late, np.where(priced_out, dear, np.where(full, held, reasons)))
    counts += np.bincount(why[(codes == 0) & ~bindable], minlength=len(counts))
