"""What copies are worth: Erlang's formula by hand, values that fall, and counts that do not flap."""

from __future__ import annotations

import pytest

from orchestrator.core.worth import count_from, disk_values, held_between, host_value, misses_ppm, offer, per_gb_us

GB = 10**9
SECOND = 1_000_000


def test_erlangs_formula_by_hand() -> None:
    # B(0) = 1, B(1) = 1 / 2, B(2) = (1/2) / (2 + 1/2) = 1/5, B(3) = (1/5) / (3 + 1/5) = 1/16 at one Erlang.
    assert misses_ppm(1_000, 3) == [1_000_000, 500_000, 200_000, 62_500]
    assert misses_ppm(0, 2) == [1_000_000, 0, 0]


def test_a_copys_worth_by_hand() -> None:
    # 60 requests an hour, all of which would wait 10 s, for 20 GB: 600 s an hour, 30 s for each GB.
    assert per_gb_us(60_000, 1_000_000, 10 * SECOND, 20 * GB) == 30 * SECOND
    assert per_gb_us(60_000, 500_000, 10 * SECOND, 20 * GB) == 15 * SECOND


def test_values_of_warm_copies_fall_and_end_at_the_floor() -> None:
    # 360 an hour of 10 s each: one Erlang. The first copy saves half of them 10 s, the second another 30 %.
    found = offer(rate_milli=360_000, execution_us=10 * SECOND, reload_us=10 * SECOND, resident_bytes=10 * GB, floor_us=SECOND)
    assert found.warm_us[:2] == (180 * SECOND, 108 * SECOND)
    assert list(found.warm_us) == sorted(found.warm_us, reverse=True)
    assert found.warm_us[-1] >= SECOND
    assert len(found.miss_ppm) == len(found.warm_us) + 1


def test_each_further_disk_copy_is_worth_half_of_the_one_before() -> None:
    found = offer(rate_milli=360_000, execution_us=10 * SECOND, reload_us=10 * SECOND, resident_bytes=10 * GB, floor_us=SECOND)
    values = disk_values(found, 1, 20 * SECOND, 10 * GB, SECOND)
    assert values[0] == 360 * SECOND
    assert values[1] == 180 * SECOND
    assert min(values) >= SECOND
    assert host_value(found, 1, 5 * SECOND, 10 * GB) == 90 * SECOND


@pytest.mark.parametrize(("old", "new"), [(0, 2), (1, 2), (2, 2), (3, 3), (4, 3), (9, 3)])
def test_a_count_stays_while_its_copies_are_between_entering_and_leaving(old: int, new: int) -> None:
    values = (100, 60, 45, 10)
    assert held_between(old, values, enter_us=50, stay_us=40) == new
    assert held_between(new, values, enter_us=50, stay_us=40) == new, "constant values never flap"
    assert count_from(values, 45) == 3
