"""The inner loop of a decision: every row of a class costed, the best that can be bound and the best worth waiting for found.

Decides the composition of the cost: waiting, fetch and input go on at the same time, the rest one after the other, prices on top.
Integers only, so that numba's machine code and `vectors` (numpy, where numba is missing) give exactly the same; tests hold them together.
Must not know jobs, sites or models: only tables (see `rows`).

    delay = max(wait, fetch, input) + serial - what host memory saves
    total = delay + money + net + evict + churn + fragmentation + link + risk + tardy
"""

from __future__ import annotations

from typing import Final, Protocol

from orchestrator.core.placement import vectors
from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm
from orchestrator.core.placement.machine_code import COMPILED, jit
from orchestrator.core.placement.rows import (
    BARE,
    COLD,
    EVICT_MAX_US,
    FETCH_MAX_US,
    FORBIDDEN_US,
    HELD_MAX_US,
    LINK_MAX_US,
    MONEY_MAX_US,
    MS_PER_HOUR,
    NO_DEADLINE,
    OVERDUE_US,
    TIED_MAX_US,
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
    Spot,
    State,
)

# numba sees plain integers: an IntEnum's members cost it a lookup each.
_COLD, _BARE = int(COLD), int(BARE)
_F_FEASIBLE, _F_SERIAL, _F_INPUT, _F_NET = int(Fix.FEASIBLE), int(Fix.SERIAL), int(Fix.INPUT), int(Fix.NET)
_F_HAZARD, _F_FAIL, _F_OCCUPANCY, _F_FETCH = int(Fix.HAZARD), int(Fix.FAIL_PPM), int(Fix.OCCUPANCY), int(Fix.FETCH)
_F_PAY, _F_BUDGET, _O_PAID, _O_MONEY = int(Fix.PAY), int(Fix.BUDGET), int(Out.PAID), int(Out.MONEY)
_R_MONEY, _R_WEIGHT = int(Rate.MONEY), int(Rate.WEIGHT_MILLI)
_F_RELOAD, _F_SAVING, _F_USD, _F_HASH = int(Fix.RELOAD), int(Fix.HOST_SAVING), int(Fix.USD), int(Fix.HASH)
_F_NEAR = int(Fix.NEAR_SAVING)
_D_ACCEPTING, _D_FREE, _D_SOONEST, _D_FLOWS = int(Dyn.ACCEPTING), int(Dyn.FREE), int(Dyn.SOONEST), int(Dyn.FLOWS)
_ROOM_FREE, _MOST, _LEAST, _VICTIM = int(Room.FREE), int(Room.MOST), int(Room.LEAST), int(Room.VICTIM)
_KEPT_LEAST, _KEPT_VICTIM = int(Room.KEPT_LEAST), int(Room.KEPT_VICTIM)
_S_POOL, _S_NODE, _S_SOURCE, _S_SOURCE_US = int(Spot.POOL), int(Spot.NODE), int(Spot.SOURCE), int(Spot.SOURCE_US)
_F_COPY, _F_CROWD, _F_LEAVING, _R_LINK = int(Fix.COPY), int(Fix.CROWD), int(Fix.LEAVING), int(Rate.LINK_MILLI)
_O_LINK, _O_SOURCE, _O_NODE = int(Out.LINK), int(Out.SOURCE), int(Out.NODE)
_P_POOL, _P_READY, _P_READY_UNTIL = int(Pres.POOL), int(Pres.READY), int(Pres.READY_UNTIL)
_P_BARE, _P_BARE_UNTIL, _P_SOURCE, _P_SOURCE_US = int(Pres.BARE), int(Pres.BARE_UNTIL), int(Pres.SOURCE), int(Pres.SOURCE_US)
_P_NEAR = int(Pres.BARE_NEAR)
_O_STATE, _O_WAIT, _O_FETCH, _O_SAVING, _O_EVICT = int(Out.STATE), int(Out.WAIT), int(Out.FETCH), int(Out.SAVING), int(Out.EVICT)
_O_BYTES, _O_CHURN, _O_RISK, _O_TARDY = int(Out.EVICTED_BYTES), int(Out.CHURN), int(Out.RISK), int(Out.TARDY)
_O_DELAY, _O_TOTAL, _O_FRAGMENT = int(Out.DELAY), int(Out.TOTAL), int(Out.FRAGMENT)
_D_WHOLE, _D_COPIES, _R_FRAGMENT = int(Dyn.WHOLE), int(Dyn.COPIES), int(Rate.FRAGMENT_MILLI)
_R_NOW, _R_NEED, _R_EVICT, _R_CHURN = int(Rate.NOW), int(Rate.NEED), int(Rate.EVICT_MILLI), int(Rate.CHURN)
_R_SLACK, _R_SPREAD, _R_TARDY = int(Rate.SLACK), int(Rate.SPREAD_MILLI), int(Rate.TARDY_MILLI)
_R_TIE_US, _R_TIE_MILLI = int(Rate.TIE_US), int(Rate.TIE_MILLI)
_FULL, _OPEN, _FREE = int(Slots.FULL), int(Slots.OPEN), int(Slots.FREE)
_FETCHING, _SITE_FETCHING = int(Source.FETCHING), int(Source.SITE_FETCHING)
_SITE, _DISK, _HOST = int(Source.SITE), int(Source.DISK), int(Source.HOST)
_IMPOSSIBLE, _WAITS, _BINDABLE = int(State.IMPOSSIBLE), int(State.WAITS), int(State.BINDABLE)


_within_ppm = jit(within_ppm)


class Decide(Protocol):
    """Fills `out` and answers (row to bind, row worth waiting for); -1: there is none. `mask` names kinds x P rows that count."""

    def __call__(
        self, fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, spots: Ints, rates: Ints, mask: Bools, out: Ints
    ) -> tuple[int, int]: ...


@jit
def _clearing(rooms: Ints, line: int, least: int, victim: int, need: int) -> tuple[int, int]:
    """(price, bytes) of making room in one slot: its victims leave in their order until it fits."""
    short = need - rooms[line, least]
    price, gone = 0, 0
    for number in range(VICTIMS):
        if short <= 0:
            break
        size = rooms[line, victim + 2 * number]
        price += rooms[line, victim + 2 * number + 1]
        gone += size
        short -= size
    if short > 0:
        return FORBIDDEN_US, gone
    return min(price, FORBIDDEN_US), gone


@jit
def _room(rooms: Ints, line: int, need: int) -> tuple[int, int]:
    """(price, bytes) of making room among the free slots of a line: the cheapest of the three that it tells of."""
    if need <= rooms[line, _MOST]:
        return 0, 0
    price, gone = _clearing(rooms, line, _LEAST, _VICTIM, need)
    kept, kept_gone = _clearing(rooms, line, _KEPT_LEAST, _KEPT_VICTIM, need)
    if kept < price:
        return kept, kept_gone
    return price, gone


@jit
def _slot_row(out: Ints, row: int, slots: int, until: int, now: int) -> None:
    """The state of a row that runs by a resident replica."""
    if slots == _FREE:
        out[row, _O_STATE], out[row, _O_WAIT] = _BINDABLE, 0
    elif slots in (_OPEN, _FULL):
        wait = max(until - now, OVERDUE_US)
        out[row, _O_WAIT] = wait
        if wait < WAIT_MAX_US:
            out[row, _O_STATE] = _BINDABLE if slots == _OPEN else _WAITS


@jit
def _before(fix: Ints, dyn: Ints, out: Ints, pools: int, row: int, other: int) -> bool:
    """Whether `row` goes before `other` among equals: resident, fewer evicted bytes, cheaper, more free slots, rendezvous hash."""
    mine, theirs = row // pools == _COLD, other // pools == _COLD
    if mine != theirs:
        return not mine
    for column in (_O_FETCH, _O_BYTES):
        if out[row, column] != out[other, column]:
            return bool(out[row, column] < out[other, column])
    if fix[row, _F_USD] != fix[other, _F_USD]:
        return bool(fix[row, _F_USD] < fix[other, _F_USD])
    free, others_free = dyn[row % pools, _D_FREE], dyn[other % pools, _D_FREE]
    if free != others_free:
        return bool(free > others_free)
    if fix[row, _F_HASH] != fix[other, _F_HASH]:
        return bool(fix[row, _F_HASH] < fix[other, _F_HASH])
    return row < other


@jit
def _best(fix: Ints, dyn: Ints, rates: Ints, mask: Bools, out: Ints, pools: int, state: int) -> int:
    """The row of least total in this state, ties resolved; jobs with a deadline take one that is in time before any that is not."""
    least, safe = UNREACHABLE, False
    for row in range(len(out)):
        if out[row, _O_STATE] != state or not mask[row]:
            continue
        in_time = out[row, _O_TARDY] < 0
        if (in_time and not safe) or (in_time == safe and out[row, _O_TOTAL] < least):
            least, safe = out[row, _O_TOTAL], in_time
    if least >= UNREACHABLE:
        return -1
    most = least + max(rates[_R_TIE_US], min(least, TIED_MAX_US) * rates[_R_TIE_MILLI] // 1_000)
    chosen = -1
    for row in range(len(out)):
        if out[row, _O_STATE] != state or not mask[row] or out[row, _O_TOTAL] > most or (out[row, _O_TARDY] < 0) != safe:
            continue
        if chosen < 0 or _before(fix, dyn, out, pools, row, chosen):
            chosen = row
    return chosen


@jit
def _cold_rows(fix: Ints, dyn: Ints, rooms: Ints, rates: Ints, out: Ints) -> None:
    """The cold row of every pool, as the pool is for everybody: any free slot, and the weights from the origin."""
    pools = len(dyn)
    for pool in range(pools):
        row = pools + pool
        if not fix[row, _F_FEASIBLE] or not dyn[pool, _D_ACCEPTING]:
            continue
        wait = 0 if dyn[pool, _D_FREE] > 0 else max(dyn[pool, _D_SOONEST] - rates[_R_NOW], OVERDUE_US)
        out[row, _O_WAIT] = wait
        out[row, _O_FETCH] = min(fix[row, _F_FETCH] * (dyn[pool, _D_FLOWS] + 1), FETCH_MAX_US)
        price, gone = _room(rooms, pool, rates[_R_NEED])
        if wait == 0:
            out[row, _O_EVICT], out[row, _O_BYTES] = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000, gone
            out[row, _O_STATE] = _BINDABLE if price < FORBIDDEN_US else _IMPOSSIBLE
        elif wait < WAIT_MAX_US:
            out[row, _O_STATE] = _WAITS
            if price < FORBIDDEN_US:  # else another slot may be free first: the one that is looked at holds what must stay
                out[row, _O_EVICT], out[row, _O_BYTES] = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000, gone


@jit
def _cold_line(fix: Ints, dyn: Ints, pres: Ints, rates: Ints, out: Ints, line: int, row: int) -> None:
    """The cold row of a pool whose site has something of the model."""
    now, source, until = rates[_R_NOW], pres[line, _P_SOURCE], pres[line, _P_SOURCE_US]
    copy = fix[row, _F_COPY] * (dyn[pres[line, _P_POOL], _D_COPIES] + 1)
    if source == _SITE_FETCHING and until > now:
        # One flight per model and site: others wait for it, unless it should have ended by now, and copy from where it landed.
        out[row, _O_SOURCE], out[row, _O_FETCH] = source, min(until - now + copy, FETCH_MAX_US)
        if out[row, _O_STATE] == _BINDABLE:
            out[row, _O_STATE], out[row, _O_WAIT] = _WAITS, until - now
    elif source == _SITE:
        if copy < out[row, _O_FETCH]:
            out[row, _O_SOURCE], out[row, _O_FETCH] = source, copy
    elif source in (_FETCHING, _DISK, _HOST):
        out[row, _O_SOURCE] = source
        out[row, _O_FETCH] = max(until - now, 0) if source == _FETCHING else 0
        out[row, _O_SAVING] = fix[row, _F_SAVING] if source == _HOST else 0


@jit
def _spots(fix: Ints, dyn: Ints, nodes: Ints, spots: Ints, rates: Ints, out: Ints) -> None:
    """Nodes with the weights, each against what the cold row of its pool means so far: what can begin goes before what waits, then the
    sooner and cheaper, then what has less to fetch (behind a wait a fetch takes no time, but a slot), then the one that was looked at
    first. One loop: a call for each node took longer than the look at it."""
    pools, now, done = len(dyn), rates[_R_NOW], -1
    for line in range(len(spots)):
        pool = spots[line, _S_POOL]
        if pool == done:
            continue
        source, row = spots[line, _S_SOURCE], pools + pool
        if not fix[row, _F_FEASIBLE] or not dyn[pool, _D_ACCEPTING]:
            continue
        fetch = max(spots[line, _S_SOURCE_US] - now, 0) if source == _FETCHING else 0
        saving = fix[row, _F_SAVING] if source == _HOST else 0
        evict, gone = out[row, _O_EVICT], out[row, _O_BYTES]
        theirs = max(out[row, _O_WAIT], out[row, _O_FETCH], fix[row, _F_INPUT]) - out[row, _O_SAVING] + evict
        node, wait, state = spots[line, _S_NODE], 0, _BINDABLE
        if dyn[pool, _D_FREE] > 0:
            # Even if nothing had to leave it would be no better; nor would those that come after it in the pool, whose source is no nearer,
            # only of fetches a later one may end first.
            least = max(fetch, fix[row, _F_INPUT]) - saving
            if out[row, _O_STATE] == _BINDABLE and (least > theirs or (least == theirs and fetch >= out[row, _O_FETCH])):
                done = done if source == _FETCHING else pool
                continue
            if nodes[node, _ROOM_FREE] == 0:
                continue
            price, gone = _room(nodes, node, rates[_R_NEED])
            if price >= FORBIDDEN_US:
                continue
            evict = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000
        elif out[row, _O_STATE] == _IMPOSSIBLE:
            continue
        else:
            wait = out[row, _O_WAIT]
            state = _BINDABLE if wait == 0 else _WAITS
        mine = max(wait, fetch, fix[row, _F_INPUT]) - saving + evict
        nearer = mine < theirs or (mine == theirs and fetch < out[row, _O_FETCH])
        if state > out[row, _O_STATE] or (state == out[row, _O_STATE] and nearer):
            out[row, _O_STATE], out[row, _O_WAIT], out[row, _O_FETCH], out[row, _O_SAVING] = state, wait, fetch, saving
            out[row, _O_EVICT], out[row, _O_BYTES] = evict, gone
            out[row, _O_SOURCE], out[row, _O_NODE] = source, node + 1


@jit
def _held_us(fix: Ints, dyn: Ints, out: Ints, row: int) -> int:
    """For how much of its fetch a cold row holds the slot: all of one that begins when it is bound, what is left of one in flight, and
    where another node of the site fetches, the copy that follows."""
    source, held = out[row, _O_SOURCE], out[row, _O_FETCH]
    if source == _SITE_FETCHING:
        held = min(fix[row, _F_COPY] * (dyn[row - len(dyn), _D_COPIES] + 1), held)
    elif source == _FETCHING:
        held = max(held - out[row, _O_WAIT], 0)
    return int(held)


@jit
def _cold_prices(fix: Ints, dyn: Ints, rates: Ints, out: Ints, row: int, occupied: int) -> None:
    """What a cold row costs others beside evictions: a crowded way to the origin, a broken block."""
    pool = row - len(dyn)
    if rates[_R_FRAGMENT] and dyn[pool, _D_WHOLE] and out[row, _O_WAIT] == 0:
        out[row, _O_FRAGMENT] = occupied // 2 * rates[_R_FRAGMENT] // 1_000
    if out[row, _O_SOURCE] == 0:
        flows = dyn[pool, _D_FLOWS]
        crowd = fix[row, _F_CROWD] * flows // (flows + 1) // 1_000 * rates[_R_LINK]
        out[row, _O_LINK] = min(fix[row, _F_LEAVING] + crowd, LINK_MAX_US)


@jit
def _cost_rows(fix: Ints, dyn: Ints, rates: Ints, out: Ints) -> None:
    pools, slack = len(dyn), rates[_R_SLACK]
    for row in range(len(out)):
        if out[row, _O_STATE] == _IMPOSSIBLE:
            continue
        cold = row // pools == _COLD
        occupied = fix[row, _F_OCCUPANCY] - out[row, _O_SAVING] + (_held_us(fix, dyn, out, row) if cold else 0)
        occupied = min(max(occupied, 0), HELD_MAX_US)
        paid = fix[row, _F_PAY] * (occupied // 1_000) // MS_PER_HOUR
        out[row, _O_PAID] = paid
        if paid > fix[row, _F_BUDGET]:
            out[row, _O_STATE] = _IMPOSSIBLE
            continue
        money = min(paid * rates[_R_MONEY], MONEY_MAX_US) * 1_000 // rates[_R_WEIGHT]
        if cold:
            _cold_prices(fix, dyn, rates, out, row, occupied)
        delay = max(out[row, _O_WAIT], out[row, _O_FETCH], fix[row, _F_INPUT]) + fix[row, _F_SERIAL] - out[row, _O_SAVING]
        total = delay + money + fix[row, _F_NET] + out[row, _O_EVICT] + out[row, _O_FRAGMENT] + out[row, _O_LINK]
        lost = _within_ppm(min(fix[row, _F_HAZARD] * (occupied // 1_000) // MS_PER_HOUR, X_PPM_MAX))
        # In milliseconds: parts per million of a year in microseconds would overflow.
        risk = lost * ((occupied // 2 + delay) // 1_000) // 1_000 + fix[row, _F_FAIL] * (delay // 1_000) // 1_000
        tardy = 0
        if slack != NO_DEADLINE:
            if delay // 1_000 * rates[_R_SPREAD] <= slack:
                tardy = -delay  # in time for sure: the delay costs nothing
            else:
                tardy = rates[_R_TARDY] * (max(delay - slack, 0) // 1_000)
        out[row, _O_DELAY], out[row, _O_RISK], out[row, _O_TARDY] = delay, risk, tardy
        out[row, _O_MONEY], out[row, _O_TOTAL] = money, total + risk + tardy


@jit
def _guard(fix: Ints, dyn: Ints, out: Ints) -> None:
    """One more copy than is wanted: a load that does not beat the best copy there is by more than half of what loading takes is handicapped
    by that half. Of two that both are in time, or both are not, the cheaper is the better one."""
    pools, least, safe = len(dyn), UNREACHABLE, False
    for row in range(len(out)):
        if out[row, _O_STATE] == _IMPOSSIBLE or row // pools == _COLD:
            continue
        in_time = out[row, _O_TARDY] < 0
        if (in_time and not safe) or (in_time == safe and out[row, _O_TOTAL] < least):
            least, safe = out[row, _O_TOTAL], in_time
    if least >= UNREACHABLE:
        return
    for row in range(pools, 2 * pools):
        if out[row, _O_STATE] == _IMPOSSIBLE:
            continue
        half = (fix[row, _F_RELOAD] + out[row, _O_FETCH] - out[row, _O_SAVING]) // 2
        in_time = out[row, _O_TARDY] < 0
        beats = in_time if in_time != safe else out[row, _O_TOTAL] + half < least
        if not beats:
            out[row, _O_CHURN] = half
            out[row, _O_TOTAL] += half


@jit
def decide_rows(
    fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, spots: Ints, rates: Ints, mask: Bools, out: Ints
) -> tuple[int, int]:
    """See `Decide`. Runs as plain Python too, some hundred times slower."""
    pools, now = len(dyn), rates[_R_NOW]
    out[:, :] = 0
    _cold_rows(fix, dyn, rooms, rates, out)
    for line in range(len(pres)):
        pool = pres[line, _P_POOL]
        if not dyn[pool, _D_ACCEPTING]:
            continue
        if fix[pool, _F_FEASIBLE]:
            _slot_row(out, pool, pres[line, _P_READY], pres[line, _P_READY_UNTIL], now)
        bare = _BARE * pools + pool
        if len(out) > _BARE * pools and fix[bare, _F_FEASIBLE]:
            _slot_row(out, bare, pres[line, _P_BARE], pres[line, _P_BARE_UNTIL], now)
            out[bare, _O_SAVING] = fix[bare, _F_NEAR] if pres[line, _P_NEAR] else 0
        if fix[pools + pool, _F_FEASIBLE]:
            _cold_line(fix, dyn, pres, rates, out, line, pools + pool)
    _spots(fix, dyn, nodes, spots, rates, out)
    _cost_rows(fix, dyn, rates, out)
    if rates[_R_CHURN]:
        _guard(fix, dyn, out)
    bound = _best(fix, dyn, rates, mask, out, pools, _BINDABLE)
    return bound, _best(fix, dyn, rates, mask, out, pools, _WAITS)


def cost_rows(fix: Ints, dyn: Ints, rates: Ints, out: Ints) -> None:
    """The costs of rows whose state, wait, fetch and evictions are in `out` already, each for itself."""
    (_cost_rows if COMPILED else vectors.cost)(fix, dyn, rates, out)


# The one that decisions use.
decide: Final[Decide] = decide_rows if COMPILED else vectors.decide
