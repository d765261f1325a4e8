"""Which of the rows that are costed is taken: the least, and of those as good as it the one with most other virtues.

Decides what else counts among equals. Integers only; `vectors` does the same in numpy. Must not know how a cost comes about.
"""

from __future__ import annotations

from orchestrator.core.placement.machine_code import jit
from orchestrator.core.placement.rows import COLD, TIED_MAX_US, UNREACHABLE, Bools, Dyn, Fix, Ints, Out, Rate

# As plain integers: see `kernel`.
_COLD, _D_FREE, _F_USD, _F_HASH = int(COLD), int(Dyn.FREE), int(Fix.USD), int(Fix.HASH)
_O_STATE, _O_FETCH, _O_BYTES = int(Out.STATE), int(Out.FETCH), int(Out.EVICTED_BYTES)
_O_TARDY, _O_TOTAL = int(Out.TARDY), int(Out.TOTAL)
_R_TIE_US, _R_TIE_MILLI = int(Rate.TIE_US), int(Rate.TIE_MILLI)


@jit
def _before(fix: Ints, dyn: Ints, out: Ints, pools: int, row: int, other: int) -> bool:
    """Whether `row` goes before `other` among equals: resident, shorter fetch, fewer evicted bytes, cheaper, more free slots, rendezvous
    hash."""
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
def best(fix: Ints, dyn: Ints, rates: Ints, mask: Bools, out: Ints, pools: int, state: int) -> int:
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
