"""Demand: rates follow what is asked for at three speeds, a launch prior fades, and equal histories give equal figures."""

from __future__ import annotations

import pytest

from atoll.model.ids import ModelId
from orchestrator.core.demand import SAVED_MAX, Demand, decayed

M = ModelId("m")
MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def empty(half_lives_ms: tuple[int, int, int] = (600_000, 21_600_000, 604_800_000)) -> Demand:
    return Demand(half_lives_ms=half_lives_ms, weights_milli=(500, 300, 200), prior_per_hour_milli=1_000)


def demand() -> Demand:
    found = empty()
    found.added(M, 0)
    return found


def steady(found: Demand, per_hour: int, until_us: int, from_us: int = 0) -> None:
    for number in range(per_hour * (until_us - from_us) // HOUR):
        found.arrived(M, from_us + (number + 1) * HOUR // per_hour)


def test_a_value_halves_with_each_half_life() -> None:
    assert [decayed(1_000_000, age, 10) for age in (0, 10, 20, 30)] == [1_000_000, 500_000, 250_000, 125_000]
    assert decayed(1_000_000, 5, 10) == pytest.approx(707_107, abs=2)
    assert decayed(10**18, 10**9, 10) == 0


def test_a_new_model_is_expected_once_an_hour() -> None:
    found = demand()
    assert found.rate_per_hour_milli(M) == 1_000
    assert found.averages_per_hour_milli(M, 0) == (1_000, 1_000, 1_000)
    assert found.rate_per_hour_milli(ModelId("unheard-of")) == 1_000
    assert not found.asked_for(M)


def test_a_steady_rate_is_found_by_all_three_averages() -> None:
    found = demand()
    steady(found, 60, 14 * DAY)
    for average in found.averages_per_hour_milli(M, 14 * DAY):
        assert average == pytest.approx(60_000, rel=0.05)
    assert found.rate_per_hour_milli(M) == pytest.approx(60_000, rel=0.13)


def test_a_rush_moves_the_ten_minutes_first_and_the_week_hardly() -> None:
    found = demand()
    steady(found, 6, 7 * DAY)
    steady(found, 600, 7 * DAY + 20 * MINUTE, from_us=7 * DAY)
    minutes, hours, days = found.averages_per_hour_milli(M, 7 * DAY + 20 * MINUTE)
    assert minutes > 300_000
    assert 15_000 < hours < 60_000
    assert days < 10_000


def test_what_is_told_is_half_the_minutes_three_tenths_the_hours_and_a_fifth_the_week() -> None:
    found = demand()
    rush_us = 7 * DAY + HOUR
    steady(found, 6, 7 * DAY)
    steady(found, 600, rush_us, from_us=7 * DAY)
    for later_us in (0, 15 * MINUTE, 2 * HOUR, 3 * DAY):
        found.refresh(M, rush_us + later_us)
        minutes, hours, days = found.averages_per_hour_milli(M, rush_us + later_us)
        mixed, told = (5 * minutes + 3 * hours + 2 * days) // 10, found.rate_per_hour_milli(M)
        assert abs(told - mixed) <= max(told, mixed) / 8 + 2, (later_us, minutes, hours, days)


def test_the_prior_fades_when_nobody_asks() -> None:
    found = demand()
    rates = []
    for day in range(30):
        found.refresh(M, day * DAY)
        rates.append(found.rate_per_hour_milli(M))
    assert rates == sorted(rates, reverse=True)
    assert rates[1] < 300
    assert rates[-1] < 10


def test_a_model_that_is_all_but_forgotten_is_no_longer_looked_at() -> None:
    found = demand()
    found.arrived(M, HOUR)
    assert found.asked_for(M)
    found.refresh(M, HOUR + 20 * DAY)
    assert found.asked_for(M)
    found.refresh(M, HOUR + 36 * DAY)
    assert not found.asked_for(M)


def test_what_is_told_moves_in_steps_and_a_snapshot_goes_on_equally() -> None:
    found = demand()
    changes = sum(found.arrived(M, number * MINUTE) for number in range(600))
    assert 0 < changes < 60, "a price is not computed anew at every arrival"
    twin = demand()
    twin.restore(found.take())
    assert twin.take() == found.take()
    assert [twin.arrived(M, (600 + n) * MINUTE) for n in range(50)] == [found.arrived(M, (600 + n) * MINUTE) for n in range(50)]
    assert twin.take() == found.take()


@pytest.mark.parametrize("unwatched_us", [0, 10 * MINUTE, 6 * HOUR, 7 * DAY, 200 * DAY])
def test_what_is_kept_decays_by_the_time_that_nobody_watched(unwatched_us: int) -> None:
    watched, later = demand(), empty()
    steady(watched, 60, 14 * DAY)
    later.resume(watched.save(14 * DAY), 14 * DAY, unwatched_us)
    # As if it had been watched all the time, and nobody had asked.
    for found, there, here in zip(
        later.averages_per_hour_milli(M, 14 * DAY),
        watched.averages_per_hour_milli(M, 14 * DAY + unwatched_us),
        watched.averages_per_hour_milli(M, 14 * DAY),
        strict=True,
    ):
        assert found == pytest.approx(there, rel=0.01, abs=2)
        assert unwatched_us == 0 or found < here
    watched.refresh(M, 14 * DAY + unwatched_us)
    assert later.rate_per_hour_milli(M) == pytest.approx(watched.rate_per_hour_milli(M), rel=0.15, abs=2)
    assert later.asked_for(M) is watched.asked_for(M) is (unwatched_us < 200 * DAY)


def test_averages_outlive_half_lives_that_a_new_policy_sets() -> None:
    found, later = demand(), empty((3_600_000, 21_600_000, 1_209_600_000))
    steady(found, 60, DAY)
    later.resume(found.save(DAY), DAY, 0)
    assert later.averages_per_hour_milli(M, DAY) == pytest.approx(found.averages_per_hour_milli(M, DAY), rel=0.01)


def test_demand_is_kept_once_a_minute_when_there_is_news() -> None:
    found = demand()
    found.arrived(M, HOUR)
    assert found.checkpoint(HOUR) is not None
    assert found.checkpoint(HOUR + MINUTE) is None, "nothing new"
    found.arrived(M, HOUR + MINUTE - 1)
    assert found.checkpoint(HOUR + MINUTE - 1) is None
    assert found.checkpoint(HOUR + MINUTE) is not None


def test_what_is_kept_is_bounded_and_is_what_is_asked_for_most() -> None:
    found = empty()
    names = [ModelId(f"m{number:05}") for number in range(SAVED_MAX + 100)]
    for name in names:
        found.added(name, 0)
    for name in names[-50:]:
        found.arrived(name, HOUR)
    later = empty()
    later.resume(found.save(HOUR), HOUR, 0)
    assert len(later.known()) == SAVED_MAX
    assert list(later.active) == names[-50:]
