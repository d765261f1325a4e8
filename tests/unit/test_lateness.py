"""What a deadline makes of a delay: expected lateness of a normal error, in integers."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest

from orchestrator.core.placement.lateness import outlook, tardy_us
from orchestrator.core.placement.rows import NO_DEADLINE, RATES, Dyn, Fix, Ints, Rate, Source

SECOND = 1_000_000
WARM_ROW, COLD_ROW = 0, 1
NARROW, WIDE = 200, 3_000


def _tables(slack_s: float, *, width_milli: int = 1_000, after_s: int = 50, scale_milli: int = 1_000) -> tuple[Ints, Ints, Ints]:
    """One pool; a second of lateness is worth one."""
    fix, dyn, rates = (np.zeros(shape, dtype=np.int64) for shape in ((2, len(Fix)), (1, len(Dyn)), RATES))
    fix[:, Fix.EXECUTION] = after_s * SECOND
    dyn[:, [Dyn.WIDE_BEFORE, Dyn.WIDE_EXECUTION]] = scale_milli
    rates[Rate.SLACK], rates[Rate.TARDY_MILLI], rates[Rate.BEGUN_WITHIN] = int(slack_s * SECOND), 1_000, NO_DEADLINE
    rates[Rate.DONE_WITHIN] = rates[Rate.SLACK]
    rates[Rate.WIDTHS :: 2], rates[Rate.WIDTHS + 1 :: 2] = 1_000, width_milli
    return fix, dyn, rates


def _tardy_s(slack_s: float, delay_s: float, row: int = WARM_ROW, source: Source = Source.ORIGIN, **changes: int) -> float:
    return tardy_us(*_tables(slack_s, **changes), row, int(delay_s * SECOND), source) / SECOND


@pytest.mark.parametrize("width_milli", [50, 500, 2_000])
@pytest.mark.parametrize("slack_s", [1.0, 40.0, 80.0, 100.0, 101.0, 120.0, 150.0, 250.0, 1_000.0])
def test_tangents_are_close_to_the_loss_of_a_normal_error_and_in_time_is_what_95_of_100_are(slack_s: float, width_milli: int) -> None:
    width_s = width_milli / 1_000 * math.hypot(50, 50)
    normal = NormalDist(100, width_s / 1.645)
    tardy_s = _tardy_s(slack_s, 100.0, width_milli=width_milli)
    if slack_s > 100 + width_s * 1.05:
        assert tardy_s == -100, "its delay costs nothing"
        return
    if slack_s < 100 + width_s * 0.95:
        exact_s = normal.variance * normal.pdf(slack_s) + (100 - slack_s) * (1 - normal.cdf(slack_s))
        assert tardy_s == pytest.approx(exact_s, abs=0.06 * normal.stdev + 0.01)


def test_more_delay_and_more_width_never_cost_less_and_less_slack_neither() -> None:
    for found in (
        [_tardy_s(60, delay_s) + (0 if _tardy_s(60, delay_s) >= 0 else delay_s) for delay_s in range(5, 200, 3)],
        [_tardy_s(110, 100, width_milli=width) for width in range(200, 4_000, 50)],
        [_tardy_s(slack_s, 100) for slack_s in range(160, -50, -5)],
    ):
        assert all(earlier <= later for earlier, later in pairwise(found)), found


def test_each_start_has_its_width_and_each_pool_its_scale() -> None:
    fix, dyn, rates = _tables(0)
    for start in range(5):
        rates[Rate.WIDTHS + 4 * start + 1] = 100 * (start + 1)
    fix[:, Fix.EXECUTION] = 0

    def width_s(row: int, source: Source) -> float:
        return outlook(fix, dyn, rates, row, 100 * SECOND, source)[1] / SECOND

    assert width_s(WARM_ROW, Source.ORIGIN) == 10
    expected = {Source.HOST: 20, Source.DISK: 30, Source.SITE: 40, Source.SITE_FETCHING: 40, Source.FETCHING: 50, Source.ORIGIN: 50}
    assert {source: width_s(COLD_ROW, source) for source in expected} == expected
    fix[COLD_ROW, Fix.PEERS] = 1
    assert width_s(COLD_ROW, Source.ORIGIN) == 40, "what comes from outside of the site comes from peers"
    dyn[0, Dyn.WIDE_BEFORE] = 500
    assert width_s(COLD_ROW, Source.ORIGIN) == 20
    assert outlook(fix, dyn, rates, COLD_ROW, 100 * SECOND, Source.ORIGIN)[0] == 100 * SECOND, "the middle stays"
