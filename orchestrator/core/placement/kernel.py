"""The inner loop of a decision: every row of a class costed, the best that can be bound and the best worth waiting for found.

Decides the composition of the cost: waiting, fetch and input go on at the same time, the rest one after the other, prices on top.
Integers only, so that numba's machine code and `vectors` (numpy, where numba is missing) give exactly the same; tests hold them together.
Must not know jobs, sites or models: only tables (see `rows`).

    delay = max(wait, fetch, input) + serial - what host memory saves + what a process's first generation adds
    total = delay + money + net + evict + churn + fragmentation + link + risk + tardy
"""

from __future__ import annotations

from typing import Final, Protocol

from orchestrator.core.placement import vectors
from orchestrator.core.placement.clearing import room
from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm
from orchestrator.core.placement.landing import copy_us, landed_us
from orchestrator.core.placement.lateness import in_order, is_timed, short_us, tardy_us
from orchestrator.core.placement.leasts import best
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
    OVERDUE_US,
    UNREACHABLE,
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
_F_RELOAD, _F_SAVING, _F_ADAPT = int(Fix.RELOAD), int(Fix.SAVING), int(Fix.ADAPT_MILLI)
_D_ACCEPTING, _D_FREE, _D_SOONEST, _D_FLOWS = int(Dyn.ACCEPTING), int(Dyn.FREE), int(Dyn.SOONEST), int(Dyn.FLOWS)
_ROOM_FREE = int(Room.FREE)
_S_POOL, _S_NODE, _S_SOURCE, _S_SOURCE_US = int(Spot.POOL), int(Spot.NODE), int(Spot.SOURCE), int(Spot.SOURCE_US)
_F_COPY, _F_CROWD, _F_LEAVING, _R_LINK = int(Fix.COPY), int(Fix.CROWD), int(Fix.LEAVING), int(Rate.LINK_MILLI)
_R_USED = int(Rate.LINK_USED_MILLI)
_O_LINK, _O_SOURCE, _O_NODE = int(Out.LINK), int(Out.SOURCE), int(Out.NODE)
_P_POOL, _P_READY, _P_READY_UNTIL, _P_READY_ADAPT = int(Pres.POOL), int(Pres.READY), int(Pres.READY_UNTIL), int(Pres.READY_ADAPT)
_P_BARE, _P_BARE_UNTIL, _P_SOURCE, _P_SOURCE_US = int(Pres.BARE), int(Pres.BARE_UNTIL), int(Pres.SOURCE), int(Pres.SOURCE_US)
_O_STATE, _O_WAIT, _O_FETCH, _O_SAVING, _O_EVICT = int(Out.STATE), int(Out.WAIT), int(Out.FETCH), int(Out.SAVING), int(Out.EVICT)
_O_BYTES, _O_CHURN, _O_RISK, _O_TARDY = int(Out.EVICTED_BYTES), int(Out.CHURN), int(Out.RISK), int(Out.TARDY)
_O_DELAY, _O_TOTAL, _O_FRAGMENT, _O_SHORT = int(Out.DELAY), int(Out.TOTAL), int(Out.FRAGMENT), int(Out.SHORT)
_D_WHOLE, _D_COPIES, _R_FRAGMENT, _P_BARE_ADAPT = int(Dyn.WHOLE), int(Dyn.COPIES), int(Rate.FRAGMENT_MILLI), int(Pres.BARE_ADAPT)
_R_NOW, _R_NEED, _R_EVICT, _R_CHURN = int(Rate.NOW), int(Rate.NEED), int(Rate.EVICT_MILLI), int(Rate.CHURN)
_FULL, _OPEN, _FREE = int(Slots.FULL), int(Slots.OPEN), int(Slots.FREE)
_FETCHING, _SITE_FETCHING = int(Source.FETCHING), int(Source.SITE_FETCHING)
_SITE, _DISK, _HOST = int(Source.SITE), int(Source.DISK), int(Source.HOST)
_IMPOSSIBLE, _WAITS, _BINDABLE = int(State.IMPOSSIBLE), int(State.WAITS), int(State.BINDABLE)
_F_FIRST, _O_FIRST, _P_READY_FIRST, _P_BARE_FIRST = int(Fix.FIRST), int(Out.FIRST), int(Pres.READY_FIRST), int(Pres.BARE_FIRST)
_within_ppm = jit(within_ppm)


class Decide(Protocol):
    """Fills `out` and answers (row to bind, row worth waiting for); -1: there is none. `mask` names kinds x P rows that count."""

    def __call__(
        self, fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, spots: Ints, rates: Ints, mask: Bools, out: Ints
    ) -> tuple[int, int]: ...


@jit
def _slot_row(out: Ints, row: int, slots: int, until: int, now: int) -> None:
    """The state of a row that runs by a resident replica."""
    if slots == _FREE:
        out[row, _O_STATE], out[row, _O_WAIT] = _BINDABLE, 0
    elif slots in (_OPEN, _FULL):
        out[row, _O_WAIT] = wait = max(until - now, OVERDUE_US)
        if wait < WAIT_MAX_US:
            out[row, _O_STATE] = _BINDABLE if slots == _OPEN else _WAITS


@jit
def _adapted(fix: Ints, out: Ints, row: int, lacking: int) -> None:
    """What a replica saves of bringing all adapters by those that it has; what it lacks is corrected by what was learned."""
    out[row, _O_SAVING] = max(fix[row, _F_SAVING] - lacking * fix[row, _F_ADAPT] // 1_000, 0)


@jit
def _first(fix: Ints, out: Ints, row: int, first: int) -> None:
    """What is added where the generation is the first of its process: that much less is saved."""
    if first:
        out[row, _O_FIRST] = fix[row, _F_FIRST]
        out[row, _O_SAVING] -= fix[row, _F_FIRST]


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
        price, gone, first = room(rooms, pool, rates[_R_NEED])
        _first(fix, out, row, first)
        if wait == 0:
            out[row, _O_EVICT], out[row, _O_BYTES] = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000, gone
            out[row, _O_STATE] = _BINDABLE if price < FORBIDDEN_US else _IMPOSSIBLE
        elif wait < WAIT_MAX_US:
            out[row, _O_STATE] = _WAITS
            if price < FORBIDDEN_US:  # else another slot may be free first: the one that is looked at holds what must stay
                out[row, _O_EVICT], out[row, _O_BYTES] = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000, gone


@jit
def _delay_us(fix: Ints, row: int, wait: int, fetch: int, saving: int) -> int:
    """What passes until the result. A policy may leave staging out, which is saved all the same: nothing takes less than no time."""
    return int(max(max(wait, fetch, fix[row, _F_INPUT]) + fix[row, _F_SERIAL] - saving, 1))


@jit
def _link_us(fix: Ints, dyn: Ints, rates: Ints, row: int) -> int:
    """What a fetch from the origin, or peers, costs others."""
    flows = dyn[row - len(dyn), _D_FLOWS]
    crowd = 0
    if flows * 1_000 > (flows + 1) * rates[_R_USED]:
        crowd = fix[row, _F_CROWD] * flows // (flows + 1) // 1_000 * rates[_R_LINK]
    return int(min(fix[row, _F_LEAVING] + crowd, LINK_MAX_US))


@jit
def _held_us(fix: Ints, dyn: Ints, row: int, wait: int, fetch: int, source: int) -> int:
    """For how much of its fetch a cold row holds the slot: all of one that begins when it is bound, what is left of one in flight, and
    where another node of the site fetches, what follows that."""
    held = fetch
    if source == _SITE_FETCHING:
        held = min(landed_us(fix, dyn, row), held)
    elif source == _FETCHING:
        held = max(held - wait, 0)
    return int(held)


@jit
def _figures(
    fix: Ints, dyn: Ints, rates: Ints, row: int, wait: int, fetch: int, saving: int, evict: int, source: int
) -> tuple[int, int, int, int, int, int, int, int]:
    """(paid, money, fragment, link, delay, risk, tardy, total) of a row that begins after this wait and fetch; `paid` may be beyond the
    budget. Cold rows hold their slot for a fetch, crowd the way to the origin, and break blocks.

    More wait, fetch or evictions and less saving never make any of it less, nor a row that is late in time, while the source is the same:
    `_spots` rests on it.
    """
    pools = len(dyn)
    cold, pool = row // pools == _COLD, row % pools
    occupied = fix[row, _F_OCCUPANCY] - saving
    if cold:
        occupied += _held_us(fix, dyn, row, wait, fetch, source)
    occupied = min(max(occupied, 0), HELD_MAX_US)
    paid = fix[row, _F_PAY] * (occupied // 1_000) // MS_PER_HOUR
    money = min(paid * rates[_R_MONEY], MONEY_MAX_US) * 1_000 // rates[_R_WEIGHT]
    fragment, link = 0, 0
    if cold and rates[_R_FRAGMENT] and dyn[pool, _D_WHOLE] and wait == 0:
        fragment = occupied // 2 * rates[_R_FRAGMENT] // 1_000
    if cold and source == 0:
        link = _link_us(fix, dyn, rates, row)
    delay = _delay_us(fix, row, wait, fetch, saving)
    lost = _within_ppm(min(fix[row, _F_HAZARD] * (occupied // 1_000) // MS_PER_HOUR, X_PPM_MAX))
    # In milliseconds: parts per million of a year in microseconds would overflow.
    risk = lost * ((occupied // 2 + delay) // 1_000) // 1_000 + fix[row, _F_FAIL] * (delay // 1_000) // 1_000
    tardy = tardy_us(fix, dyn, rates, row, delay, source)
    return paid, money, fragment, link, delay, risk, tardy, delay + money + fix[row, _F_NET] + evict + fragment + link + risk + tardy


@jit
def _handicap(fix: Ints, row: int, fetch: int, saving: int, in_time: bool, total: int, least: int, safe: bool) -> int:
    """One more copy than is wanted: a load that does not beat the best copy there is (`_best_copy`) by more than half of what loading takes
    is handicapped by that half. Of two that both are in time, or both are not, the cheaper is the better one."""
    if least >= UNREACHABLE:
        return 0
    half = (fix[row, _F_RELOAD] + fetch - saving) // 2
    beats = in_time if in_time != safe else total + half < least
    return 0 if beats else int(half)


@jit
def _rank(
    fix: Ints, dyn: Ints, rates: Ints, row: int, state: int, wait: int, fetch: int, saving: int, evict: int, gone: int, source: int,
    least: int, safe: bool,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """What one way to load costs, all of it, so that a lower one goes first: what can begin before what waits, what is in time before what
    is not, then the cheaper; of equals what has less to fetch, then what evicts less. Beyond the price limit it is no way at all, nor with
    an eviction in vain."""
    if state == _IMPOSSIBLE:
        return _IMPOSSIBLE, 1, 2 * UNREACHABLE, fetch, gone
    paid, _, _, _, delay, _, tardy, total = _figures(fix, dyn, rates, row, wait, fetch, saving, evict, source)
    if gone > 0 and is_timed(rates) and short_us(fix, dyn, rates, row, delay, source) > 0:
        state = _IMPOSSIBLE
    total += _handicap(fix, row, fetch, saving, tardy < 0, total, least, safe)
    return -state if paid <= fix[row, _F_BUDGET] else _IMPOSSIBLE, int(tardy >= 0), total, fetch, gone


@jit
def _rank_of(fix: Ints, dyn: Ints, rates: Ints, out: Ints, row: int, least: int, safe: bool) -> tuple[int, int, int, int, int]:
    """`_rank` of what a cold row means so far."""
    return _rank(
        fix, dyn, rates, row, out[row, _O_STATE], out[row, _O_WAIT], out[row, _O_FETCH], out[row, _O_SAVING], out[row, _O_EVICT],
        out[row, _O_BYTES], out[row, _O_SOURCE], least, safe,
    )  # fmt: skip


@jit
def _cold_line(fix: Ints, dyn: Ints, pres: Ints, rates: Ints, out: Ints, line: int, row: int, least: int, safe: bool) -> None:
    """The cold row of a pool whose site has something of the model."""
    now, source, until = rates[_R_NOW], pres[line, _P_SOURCE], pres[line, _P_SOURCE_US]
    if source == _SITE_FETCHING and until > now:
        # One flight per model and site: others wait for it, unless it should have ended by now, and copy from where it landed.
        out[row, _O_SOURCE], out[row, _O_FETCH] = source, min(until - now + landed_us(fix, dyn, row), FETCH_MAX_US)
        if out[row, _O_STATE] == _BINDABLE:
            out[row, _O_STATE], out[row, _O_WAIT] = _WAITS, until - now
    elif source == _SITE:
        wait, fetch, copy = out[row, _O_WAIT], out[row, _O_FETCH], copy_us(fix, dyn, row)
        nearer, link = copy < fetch, _link_us(fix, dyn, rates, row)
        longer = _delay_us(fix, row, wait, copy, out[row, _O_SAVING]) - _delay_us(fix, row, wait, fetch, out[row, _O_SAVING])
        if (not nearer and (longer < link or is_timed(rates))) or not in_order(rates):
            # It takes longer, but crowds no way and costs no peer; and with a deadline it matters how sure either is.
            mine = _rank(
                fix, dyn, rates, row, out[row, _O_STATE], wait, copy, out[row, _O_SAVING], out[row, _O_EVICT], out[row, _O_BYTES], source,
                least, safe,
            )  # fmt: skip
            nearer = mine < _rank_of(fix, dyn, rates, out, row, least, safe)
        if nearer:
            out[row, _O_SOURCE], out[row, _O_FETCH] = source, copy
    elif source in (_FETCHING, _DISK, _HOST):
        out[row, _O_SOURCE] = source
        out[row, _O_FETCH] = max(until - now, 0) if source == _FETCHING else 0
        out[row, _O_SAVING] = (fix[row, _F_SAVING] if source == _HOST else 0) - out[row, _O_FIRST]


@jit
def _spots(fix: Ints, dyn: Ints, nodes: Ints, spots: Ints, rates: Ints, out: Ints, least: int, safe: bool) -> None:
    """Nodes with the weights, each against what the cold row of its pool means so far, by all that it costs (`_rank`); the first that was
    looked at among equals. Whoever is no better, or no worse, in anything is not reckoned: that is so for nearly all, and takes a tenth.
    With a deadline others may be surer, so that holds of the same source, or where those that are nearer are as sure (`in_order`)."""
    pools, now, done, untimed = len(dyn), rates[_R_NOW], -1, not is_timed(rates)
    ordered, finished = in_order(rates), -1
    for line in range(len(spots)):
        pool = spots[line, _S_POOL]
        source, row = spots[line, _S_SOURCE], pools + pool
        if pool == done and (ordered or source == finished):
            continue
        if not fix[row, _F_FEASIBLE] or not dyn[pool, _D_ACCEPTING]:
            continue
        node, free, told = spots[line, _S_NODE], dyn[pool, _D_FREE] > 0, out[row, _O_SOURCE]
        fetch = max(spots[line, _S_SOURCE_US] - now, 0) if source == _FETCHING else 0
        saving, first = fix[row, _F_SAVING] if source == _HOST else 0, out[row, _O_FIRST]  # at most: before what a first generation adds
        wait = 0 if free else out[row, _O_WAIT]
        state = _BINDABLE if wait == 0 else _WAITS
        same, alike = state == out[row, _O_STATE], untimed or source == told
        behind = (
            same
            and (alike or (ordered and source < told))
            and told in (_FETCHING, _DISK, _HOST)
            and fetch >= out[row, _O_FETCH]
            and saving <= out[row, _O_SAVING]
        )
        evict, gone = out[row, _O_EVICT], out[row, _O_BYTES]
        if behind and evict == 0 and gone == 0:
            # Nor are those that come after it in the pool, whose source is no nearer; only of fetches a later one may end first.
            done, finished = (done, finished) if source == _FETCHING else (pool, source)
            continue
        if free:
            if nodes[node, _ROOM_FREE] == 0:
                continue
            price, gone, fresh = room(nodes, node, rates[_R_NEED])
            if price >= FORBIDDEN_US:
                continue
            first = fix[row, _F_FIRST] if fresh else 0
            evict = min(price, EVICT_MAX_US) * rates[_R_EVICT] // 1_000
        elif out[row, _O_STATE] == _IMPOSSIBLE:
            continue
        if behind and evict >= out[row, _O_EVICT] and gone >= out[row, _O_BYTES]:
            continue
        saving -= first
        # All that is not worse is as cheap at least: then it costs less if it takes less time than it evicts more, or evicts less.
        ahead = same and (alike or (ordered and source > told)) and fetch <= out[row, _O_FETCH] and saving >= out[row, _O_SAVING]
        ahead = ahead and not (source == _FETCHING and (told == _SITE_FETCHING or not alike)) and (untimed or gone <= out[row, _O_BYTES])
        dearer, gain = evict - out[row, _O_EVICT], 0
        if ahead and untimed:
            gain = _delay_us(fix, row, wait, out[row, _O_FETCH], out[row, _O_SAVING]) - _delay_us(fix, row, wait, fetch, saving)
        if not (ahead and (gain > dearer or (fetch < out[row, _O_FETCH] and dearer <= 0))):
            mine = _rank(fix, dyn, rates, row, state, wait, fetch, saving, evict, gone, source, least, safe)
            if not mine < _rank_of(fix, dyn, rates, out, row, least, safe):
                continue
        out[row, _O_STATE], out[row, _O_WAIT], out[row, _O_FETCH], out[row, _O_SAVING] = state, wait, fetch, saving
        out[row, _O_EVICT], out[row, _O_BYTES] = evict, gone
        out[row, _O_SOURCE], out[row, _O_NODE], out[row, _O_FIRST] = source, node + 1, first


@jit
def _cost_rows(fix: Ints, dyn: Ints, rates: Ints, out: Ints, first: int, last: int, least: int, safe: bool) -> None:
    """The costs of a range of rows; `least` and `safe`: the best copy, against which loads are guarded."""
    pools, timed = len(dyn), is_timed(rates)
    for row in range(first, last):
        if out[row, _O_STATE] == _IMPOSSIBLE:
            continue
        fetch, saving = out[row, _O_FETCH], out[row, _O_SAVING]
        paid, money, fragment, link, delay, risk, tardy, total = _figures(
            fix, dyn, rates, row, out[row, _O_WAIT], fetch, saving, out[row, _O_EVICT], out[row, _O_SOURCE]
        )
        short = short_us(fix, dyn, rates, row, delay, out[row, _O_SOURCE]) if timed else 0
        if short > 0 and out[row, _O_BYTES] > 0:
            out[row, _O_STATE], out[row, _O_SHORT] = _IMPOSSIBLE, short
            continue
        out[row, _O_PAID] = paid
        if paid > fix[row, _F_BUDGET]:
            out[row, _O_STATE] = _IMPOSSIBLE
            continue
        churn = _handicap(fix, row, fetch, saving, tardy < 0, total, least, safe) if row // pools == _COLD else 0
        out[row, _O_FRAGMENT], out[row, _O_LINK], out[row, _O_CHURN] = fragment, link, churn
        out[row, _O_DELAY], out[row, _O_RISK], out[row, _O_TARDY] = delay, risk, tardy
        out[row, _O_MONEY], out[row, _O_TOTAL], out[row, _O_SHORT] = money, total + churn, short


@jit
def _best_copy(dyn: Ints, out: Ints) -> tuple[int, bool]:
    """(cost, whether it is in time) of the best place with a copy; UNREACHABLE: there is none."""
    pools, least, safe = len(dyn), UNREACHABLE, False
    for row in range(len(out)):
        if out[row, _O_STATE] == _IMPOSSIBLE or row // pools == _COLD:
            continue
        in_time = bool(out[row, _O_TARDY] < 0)
        if (in_time and not safe) or (in_time == safe and out[row, _O_TOTAL] < least):
            least, safe = int(out[row, _O_TOTAL]), in_time
    return least, safe


@jit
def decide_rows(
    fix: Ints, dyn: Ints, rooms: Ints, nodes: Ints, pres: Ints, spots: Ints, rates: Ints, mask: Bools, out: Ints
) -> tuple[int, int]:
    """See `Decide`. Runs as plain Python too, some hundred times slower."""
    pools, now = len(dyn), rates[_R_NOW]
    out[:, :] = 0
    for line in range(len(pres)):
        pool = pres[line, _P_POOL]
        if not dyn[pool, _D_ACCEPTING]:
            continue
        if fix[pool, _F_FEASIBLE]:
            _slot_row(out, pool, pres[line, _P_READY], pres[line, _P_READY_UNTIL], now)
        bare = _BARE * pools + pool
        if len(out) > _BARE * pools:
            _adapted(fix, out, pool, pres[line, _P_READY_ADAPT])
            _adapted(fix, out, bare, pres[line, _P_BARE_ADAPT])
            _first(fix, out, bare, pres[line, _P_BARE_FIRST])
            if fix[bare, _F_FEASIBLE]:
                _slot_row(out, bare, pres[line, _P_BARE], pres[line, _P_BARE_UNTIL], now)
        _first(fix, out, pool, pres[line, _P_READY_FIRST])
    _cost_rows(fix, dyn, rates, out, 0, pools, UNREACHABLE, False)
    _cost_rows(fix, dyn, rates, out, 2 * pools, len(out), UNREACHABLE, False)
    # Copies are costed before loads: what guards a load is part of its cost, by which the node is chosen that it loads on.
    least, safe = _best_copy(dyn, out) if rates[_R_CHURN] else (UNREACHABLE, False)
    _cold_rows(fix, dyn, rooms, rates, out)
    for line in range(len(pres)):
        pool = pres[line, _P_POOL]
        if dyn[pool, _D_ACCEPTING] and fix[pools + pool, _F_FEASIBLE]:
            _cold_line(fix, dyn, pres, rates, out, line, pools + pool, least, safe)
    _spots(fix, dyn, nodes, spots, rates, out, least, safe)
    _cost_rows(fix, dyn, rates, out, pools, 2 * pools, least, safe)
    return best(fix, dyn, rates, mask, out, pools, _BINDABLE), best(fix, dyn, rates, mask, out, pools, _WAITS)


def cost_rows(fix: Ints, dyn: Ints, rates: Ints, out: Ints) -> None:
    """The costs of rows whose state, wait, fetch and evictions are in `out` already, each for itself."""
    if COMPILED:
        _cost_rows(fix, dyn, rates, out, 0, len(out), UNREACHABLE, False)
    else:
        vectors.cost(fix, dyn, rates, out)


# The one that decisions use.
decide: Final[Decide] = decide_rows if COMPILED else vectors.decide
