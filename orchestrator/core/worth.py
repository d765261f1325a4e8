"""What a copy of a model is worth: delay that it saves those who ask, per hour and GB.

    value of the n-th warm copy = rate x (P(miss | n - 1) - P(miss | n)) x reload time / GB
    value of the k-th disk copy = rate x P(miss | warm copies) / 2^(k - 1) x fetch time / GB
    value of a host copy        = rate x P(miss | warm copies) x (stage from disk - stage from memory) / GB

P(miss | n) is Erlang's loss formula: the share of requests that find all of n warm copies busy, at rate x execution time Erlangs.
A cold start finds a further disk copy usable half of the time (its site full, silent or closed to the job), hence the halving.
Unit: microseconds of delay per hour and GB, integers. Fails where requests come in bursts: Erlang's arrivals are independent.
Decides values only. Must not know places or targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MILLION: Final = 1_000_000
_HOUR_MS: Final = 3_600_000
_GB: Final = 10**9
# Beyond 64 copies of one model the fleet is a dedicated one, and its operator pins.
COPIES_MAX: Final = 64
# Further disk copies are worth a thousandth of the first.
DISK_COPIES_MAX: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What copies of one model are worth: `warm_us[n]` of the (n + 1)-th warm copy; `miss_ppm[n]` is P(miss) with n of them."""

    rate_milli: int
    warm_us: tuple[int, ...]
    miss_ppm: tuple[int, ...]


def misses_ppm(load_milli: int, most: int) -> list[int]:
    """P(miss) with 0, 1, ... `most` warm copies at a load in thousandths of an Erlang."""
    found = [_MILLION]
    for copies in range(1, most + 1):
        found.append(_miss_ppm(load_milli, copies, found[-1]))
    return found


def _miss_ppm(load_milli: int, copies: int, with_one_less_ppm: int) -> int:
    offered = load_milli * with_one_less_ppm
    return offered * _MILLION // (copies * 1_000 * _MILLION + offered)


def per_gb_us(rate_milli: int, share_ppm: int, saved_us: int, size_bytes: int) -> int:
    """Microseconds saved per hour and GB when `share_ppm` of the requests each save `saved_us`."""
    return rate_milli * share_ppm * max(saved_us, 0) // 10**9 * _GB // max(size_bytes, 1)


def offer(*, rate_milli: int, execution_us: int, reload_us: int, resident_bytes: int, floor_us: int) -> Offer:
    """Values of warm copies, falling, down to the first that is below `floor_us`."""
    load_milli = rate_milli * (execution_us // 1_000) // _HOUR_MS
    misses = [_MILLION]
    values: list[int] = []
    for copies in range(1, COPIES_MAX + 1):
        misses.append(_miss_ppm(load_milli, copies, misses[-1]))
        value = per_gb_us(rate_milli, misses[copies - 1] - misses[copies], reload_us, resident_bytes)
        # Erlang's formula is convex, so values fall; rounding must not undo that.
        value = min(value, values[-1]) if values else value
        if value < floor_us:
            break
        values.append(value)
    return Offer(rate_milli=rate_milli, warm_us=tuple(values), miss_ppm=tuple(misses[: len(values) + 1]))


def disk_values(found: Offer, warm: int, fetch_us: int, weights_bytes: int, floor_us: int) -> list[int]:
    """Values of disk copies while `warm` copies are warm, down to the first that is below `floor_us`."""
    miss_ppm = found.miss_ppm[min(warm, len(found.miss_ppm) - 1)]
    values: list[int] = []
    for copies in range(DISK_COPIES_MAX):
        value = per_gb_us(found.rate_milli, miss_ppm >> copies, fetch_us, weights_bytes)
        if value < floor_us:
            break
        values.append(value)
    return values


def host_value(found: Offer, warm: int, saved_us: int, weights_bytes: int) -> int:
    """Value of a copy in host memory beside `warm` warm copies."""
    return per_gb_us(found.rate_milli, found.miss_ppm[min(warm, len(found.miss_ppm) - 1)], saved_us, weights_bytes)


def count_from(values: list[int] | tuple[int, ...], floor_us: int) -> int:
    """How many copies are worth at least `floor_us`."""
    return sum(1 for value in values if value >= floor_us)


def held_between(old: int, values: list[int] | tuple[int, ...], enter_us: int, stay_us: int) -> int:
    """The next count: `old`, unless fewer are worth entering or more have stopped being worth staying. Constant values never flap."""
    return min(max(old, count_from(values, enter_us)), count_from(values, stay_us))
