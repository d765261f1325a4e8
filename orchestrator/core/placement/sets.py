"""Which of the sources that a pool could read it reads at once: the set that is cheapest in time and money together.

Decides by trying one bound after the other on what a source costs beside its bytes: of all sources within it, the set that ends first is
that of the highest rates. So each source in turn, in the order of what it costs so, is the bound, and joins if it is among these. That
finds the best of all sets, and one more source never makes it worse.
Integers only, so that numba's machine code and numpy (where numba is missing) give exactly the same; tests hold them together. Must not
know sites, models, nor what was learned of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from atoll.model.limits import FETCH_SOURCES_MAX
from orchestrator.core.placement.machine_code import COMPILED, jit_making_tables
from orchestrator.core.placement.rows import FETCH_MAX_US, Ints

# A rate of 0 would divide by zero; a byte per second says "never" as well.
RATE_MIN: Final = 1
# A petabyte stands for anything larger: products with it stay in int64.
BYTES_MAX: Final = 10**15
# In the place of a source's number: no source, and the origin store.
NOBODY: Final = -1
ORIGIN: Final = -2
# A source that brings less than one part in so many is not worth its requests.
_LITTLE: Final = 64
_MOST: Final = FETCH_SOURCES_MAX
_FETCH_MAX_US: Final = FETCH_MAX_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What each source offers to a pool, a line for each pair: its number, rate and round trip, and what a fetch from it costs beside its
    bytes, round trip and what the peer's owner charges for all of the weights; microseconds."""

    pools: Ints
    number: Ints
    bytes_per_s: Ints
    rtt_us: Ints
    fixed_us: Ints


@dataclass(slots=True, kw_only=True)
class Best:
    """Per pool the set of sources: what it costs, of that what is time, and its members, the one that gives most first."""

    cost_us: Ints
    us: Ints
    members: Ints


def cheapest(alone_us: Ints, offers: Offers, size: int, ingress: Ints, peer_milli: Ints) -> Best:
    """The best set of each pool, or `alone_us` and nobody where that is no dearer. Only sets with a peer count: what was learned of peers
    (`peer_milli`) says nothing of the origin store alone. `ingress`: what comes into the pool's site at most."""
    best = Best(cost_us=alone_us.copy(), us=alone_us.copy(), members=np.full((len(alone_us), FETCH_SOURCES_MAX), NOBODY, dtype=np.int64))
    order = np.lexsort((offers.number, -offers.bytes_per_s, offers.fixed_us, offers.pools))
    table = np.column_stack((offers.pools, offers.number, offers.bytes_per_s, offers.rtt_us, offers.fixed_us))[order]
    (cheapest_rows if COMPILED else cheapest_columns)(table, size, ingress, peer_milli, best.cost_us, best.us, best.members)
    return best


@jit_making_tables
def cheapest_rows(table: Ints, size: int, ingress: Ints, peer_milli: Ints, cost_us: Ints, us: Ints, members: Ints) -> None:
    """Fills `cost_us`, `us` and `members` where a set costs less than what is there. `table`: offers in order, as columns."""
    top, who = np.zeros(_MOST, dtype=np.int64), np.zeros(_MOST, dtype=np.int64)
    rtt, sums = np.zeros(_MOST, dtype=np.int64), np.zeros(_MOST, dtype=np.int64)
    last = -1
    for line in range(len(table)):
        pool, rate = table[line, 0], table[line, 2]
        if pool != last:
            last = pool
            top[:], who[:], rtt[:] = 0, NOBODY, 0
        place = _MOST
        while place > 0 and top[place - 1] < rate:
            place -= 1
        for moved in range(_MOST - 1, place, -1):
            top[moved], who[moved], rtt[moved] = top[moved - 1], who[moved - 1], rtt[moved - 1]
        if place < _MOST:
            top[place], who[place], rtt[place] = rate, table[line, 1], table[line, 3]
        together = 0
        for number in range(_MOST):
            together += top[number]
            sums[number] = min(together, ingress[pool])
        whole = sums[_MOST - 1]
        moved_us = min(size // 1_000 * 1_000_000 // max(whole // 1_000, RATE_MIN), _FETCH_MAX_US) * peer_milli[pool] // 1_000
        moved_us = min(moved_us, _FETCH_MAX_US)
        found_us = min(table[line, 4] + moved_us, _FETCH_MAX_US)
        if found_us >= cost_us[pool]:
            continue
        # Who adds next to nothing to those of higher rates is not asked.
        needed, peers, longest_us = 0, 0, 0
        while needed < _MOST and (needed == 0 or sums[needed - 1] // _LITTLE < whole // _LITTLE - whole // _LITTLE**2):
            peers += who[needed] >= 0
            longest_us = max(longest_us, rtt[needed])
            needed += 1
        if not peers:
            continue
        cost_us[pool], us[pool] = found_us, min(longest_us + moved_us, found_us)
        for number in range(_MOST):
            members[pool, number] = who[number] if number < needed else NOBODY


def cheapest_columns(table: Ints, size: int, ingress: Ints, peer_milli: Ints, cost_us: Ints, us: Ints, members: Ints) -> None:
    """As `cheapest_rows`, of all pools at once: in each turn one offer of each."""
    count = len(cost_us)
    pools, number, bytes_per_s, rtt_us, fixed_us = table.T
    place = np.arange(len(pools)) - np.searchsorted(pools, pools)  # in the order of its pool
    top = np.zeros((count, FETCH_SOURCES_MAX), dtype=np.int64)
    who = np.full((count, FETCH_SOURCES_MAX), NOBODY, dtype=np.int64)
    rtt = np.zeros((count, FETCH_SOURCES_MAX), dtype=np.int64)
    for turn in range(int(place.max(initial=-1)) + 1):
        lines = np.flatnonzero(place == turn)
        here = pools[lines]
        rates = np.column_stack((top[here], bytes_per_s[lines]))
        first = np.argsort(-rates, axis=1, kind="stable")[:, :FETCH_SOURCES_MAX]
        top[here] = np.take_along_axis(rates, first, axis=1)
        who[here] = np.take_along_axis(np.column_stack((who[here], number[lines])), first, axis=1)
        rtt[here] = np.take_along_axis(np.column_stack((rtt[here], rtt_us[lines])), first, axis=1)
        sums = np.minimum(np.cumsum(top[here], axis=1), ingress[here][:, np.newaxis])
        moved_us = np.minimum(transfer_us(size, sums[:, -1]), FETCH_MAX_US) * peer_milli[here] // 1_000
        moved_us = np.minimum(moved_us, FETCH_MAX_US)
        found_us = np.minimum(fixed_us[lines] + moved_us, FETCH_MAX_US)
        enough = sums[:, :-1] // _LITTLE >= sums[:, -1:] // _LITTLE - sums[:, -1:] // _LITTLE**2
        needed = np.column_stack((np.ones(len(here), dtype=np.bool_), ~enough))
        found = np.where(needed, who[here], NOBODY)
        better = (found_us < cost_us[here]) & (found >= 0).any(axis=1)
        at, longest_us = here[better], np.where(needed, rtt[here], 0).max(axis=1)
        members[at], cost_us[at] = found[better], found_us[better]
        us[at] = np.minimum(longest_us + moved_us, found_us)[better]


def transfer_us(size: int, rates: Ints) -> Ints:
    """Microseconds for so many bytes, computed in thousands of them so that int64 holds a petabyte, which stands for anything larger."""
    return np.asarray(min(size, BYTES_MAX) // 1_000 * 1_000_000 // np.maximum(rates // 1_000, RATE_MIN), dtype=np.int64)
