"""What is read off a decision's table for those who ask why: the next best rows, term by term, and what rules pools out.

Decides nothing: rows are costed (`kernel`) when it looks at them. Integers only, and the same in numpy (`vectors`). Must not know jobs,
sites or models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from orchestrator.core.placement import vectors
from orchestrator.core.placement.machine_code import COMPILED, jit
from orchestrator.core.placement.rows import COLD, LEAD, Dyn, Ints, Layout, Out, State

# numba sees plain integers: an IntEnum's members cost it a lookup each.
_STATE, _TOTAL, _PAID, _FREE = int(Out.STATE), int(Out.TOTAL), int(Out.PAID), int(Dyn.FREE)
_WAIT, _SAVING, _DELAY, _SHORT = int(Out.WAIT), int(Out.SAVING), int(Out.DELAY), int(Out.SHORT)
_MOVING, _COLUMN = int(Layout.MOVING), int(Layout.COLUMN)
_CONCURRENT, _SAVED_BY, _FIRST_IN, _FIRST = int(Layout.CONCURRENT), int(Layout.SAVED_BY), int(Layout.FIRST), int(Out.FIRST)
_IMPOSSIBLE, _BINDABLE = int(State.IMPOSSIBLE), int(State.BINDABLE)


class Serving(NamedTuple):
    """Pools that serve a class about as soon as a row does, the best first, and their slots; `slots`: of all, the others' reckoned."""

    pools: list[tuple[int, int]]
    slots: int


@jit
def nearest_rows(out: Ints, chosen: int, rows: Ints) -> int:
    """Fills `rows` with the possible rows of least total besides `chosen`, cheapest first, then by number. How many there are."""
    found = 0
    for row in range(len(out)):
        if out[row, _STATE] == _IMPOSSIBLE or row == chosen:
            continue
        total = out[row, _TOTAL]
        if found == len(rows) and total >= out[rows[found - 1], _TOTAL]:
            continue
        place = found if found < len(rows) else found - 1
        while place > 0 and out[rows[place - 1], _TOTAL] > total:
            rows[place] = rows[place - 1]
            place -= 1
        rows[place] = row
        found = min(found + 1, len(rows))
    return found


@jit
def alike_rows(out: Ints, chosen: int, pools: int, total: int, delay: int, rows: Ints) -> int:
    """Fills `rows` with the possible rows of the kind of `chosen`, besides it, that cost no more than `total` and take no longer than
    `delay`, the shortest first, then by number. How many there are, told or not."""
    found, count = 0, 0
    first = chosen - chosen % pools
    for row in range(first, first + pools):
        takes = out[row, _DELAY]
        if out[row, _STATE] == _IMPOSSIBLE or row == chosen or takes > delay or out[row, _TOTAL] > total:
            continue
        count += 1
        if found == len(rows) and takes >= out[rows[found - 1], _DELAY]:
            continue
        place = found if found < len(rows) else found - 1
        while place > 0 and out[rows[place - 1], _DELAY] > takes:
            rows[place] = rows[place - 1]
            place -= 1
        rows[place] = row
        found = min(found + 1, len(rows))
    return count


@jit
def tell_rows(out: Ints, still: Ints, pools: int, rows: Ints, layout: Ints, figures: Ints) -> int:
    """Fills `rows`, of which the first is given, with the next best, and a line of `figures` for each: `LEAD` figures, then all terms in
    their order: those that stand `still`, those of this decision, and last what concurrency saves, never positive. `layout`: see
    `rows.Layout`. How many lines."""
    found = 1 + (nearest_rows(out, rows[0], rows[1:]) if len(rows) > 1 else 0)
    last = still.shape[1] - 1
    for number in range(found):
        row = rows[number]
        kind = row // pools
        line, terms = figures[number], figures[number, LEAD:]
        line[0] = out[row, _TOTAL]
        line[1] = 0 if out[row, _STATE] == _BINDABLE else out[row, _WAIT]
        line[2], line[3] = kind == COLD, 0
        for which in range(last + 1):
            terms[which] = still[row, which]
        for which in range(last + 1):
            if layout[_MOVING, which] < 0:
                break
            terms[layout[_MOVING, which]] = out[row, layout[_COLUMN, which]]
        terms[layout[_SAVED_BY, kind]] -= out[row, _SAVING] + out[row, _FIRST]
        terms[layout[_FIRST_IN, 0]] += out[row, _FIRST]
        longest, together = 0, 0
        for which in range(last + 1):
            if layout[_CONCURRENT, which] < 0:
                break
            term = terms[layout[_CONCURRENT, which]]
            longest, together = max(longest, term), together + term
        terms[last] = longest - together
    return found


@jit
def count_reasons(codes: Ints, reasons: Ints, dyn: Ints, out: Ints, told: tuple[int, int, int, int], counts: Ints) -> None:
    """Adds up by number why pools cannot be bound: `codes` of static rejection, else `reasons` where no row of the pool is bindable. A
    pool of which that is `taken` and that has a free slot which nothing may leave is full of another kind: `held`; one that the price
    limit alone rules out, as things are now, is too `dear`; and one in which others would have to leave for a job that comes too late all
    the same, `vain`. `told`: the numbers of these four."""
    pools = len(codes)
    taken, held, dear, vain = told
    for pool in range(pools):
        if codes[pool]:
            counts[codes[pool]] += 1
            continue
        best, priced_out = _IMPOSSIBLE, False
        for row in range(pool, len(out), pools):
            best = max(best, out[row, _STATE])
            priced_out = priced_out or (out[row, _STATE] == _IMPOSSIBLE and out[row, _PAID] > 0)
        if best != _BINDABLE and out[pools + pool, _STATE] == _IMPOSSIBLE and out[pools + pool, _SHORT] > 0:
            counts[vain] += 1
        elif best == _IMPOSSIBLE and priced_out:
            counts[dear] += 1
        elif best != _BINDABLE:
            cold = pools + pool
            full = reasons[pool] == taken and dyn[pool, _FREE] > 0 and out[cold, _STATE] == _IMPOSSIBLE and out[cold, _PAID] == 0
            counts[held if full else reasons[pool]] += 1


# The ones that are used.
nearest: Final[Callable[[Ints, int, Ints], int]] = nearest_rows if COMPILED else vectors.nearest
alike: Final[Callable[[Ints, int, int, int, int, Ints], int]] = alike_rows if COMPILED else vectors.alike
tell: Final[Callable[[Ints, Ints, int, Ints, Ints, Ints], int]] = tell_rows if COMPILED else vectors.tell
count: Final[Callable[[Ints, Ints, Ints, Ints, tuple[int, int, int, int], Ints], None]] = count_reasons if COMPILED else vectors.count
