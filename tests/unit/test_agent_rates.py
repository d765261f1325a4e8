"""Rates that a site tells: the first as measured, later ones as a mean of seconds per byte that hardly moves with one transfer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import AgentEvent, RatesMeasured
from agents.core.rates import Rates
from atoll.model.report import RateFacts


def _rates() -> tuple[Rates, list[RateFacts]]:
    told: list[RateFacts] = []

    def tell(event: AgentEvent) -> None:
        assert isinstance(event, RatesMeasured)
        told.append(event.rates)

    return Rates(tell), told


def test_the_first_measurement_is_told_as_it_is_and_others_stay_as_they_were() -> None:
    rates, told = _rates()
    rates.measured(disk=4_000)
    rates.measured(origin=800)
    rates.measured()
    first = RateFacts(disk_bytes_per_s=4_000, disk_transfers=1)
    assert told == [first, replace(first, origin_bytes_per_s=800, origin_transfers=1)]


def test_all_transfers_are_counted_of_which_the_last_ones_make_the_mean() -> None:
    rates, told = _rates()
    for _ in range(100):
        rates.measured(origin=800)
    assert (told[11].origin_transfers, told[-1].origin_transfers, told[-1].disk_transfers) == (12, 100, 0)


def test_one_fast_transfer_does_not_make_a_fast_site() -> None:
    rates, told = _rates()
    for _ in range(8):
        rates.measured(origin=1_000_000)
    rates.measured(origin=8_000_000)
    assert told[-1].origin_bytes_per_s < 1_200_000


def test_after_many_transfers_one_moves_the_mean_by_a_sixty_fourth_of_what_it_differs() -> None:
    rates, told = _rates()
    for _ in range(40):
        rates.measured(origin=4_000_000)
        rates.measured(origin=500_000)
    before = told[-1].origin_bytes_per_s
    rates.measured(origin=4_000_000)
    assert before == pytest.approx(2 / (1 / 4 + 1 / 0.5) * 1_000_000, rel=0.03)
    assert 1 < told[-1].origin_bytes_per_s / before < 1.02


def test_a_link_that_changed_is_followed() -> None:
    rates, told = _rates()
    rates.measured(origin=8_000_000)
    for _ in range(24):
        rates.measured(origin=1_000_000)
    assert told[-1].origin_bytes_per_s < 1_100_000
    rates.measured(origin=1)
    assert told[-1].origin_bytes_per_s >= 1
