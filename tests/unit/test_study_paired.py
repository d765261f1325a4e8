"""Comparisons over seeds, against values that books and other programs give."""

from __future__ import annotations

import math

import pytest

from atoll.model.errors import FieldError
from sims.study.paired import compare, compare_all, holm, t_quantile, t_tail

# Student's own example (1908): hours of sleep that ten people gained by one drug and by the other.
FIRST = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SECOND = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))


def test_students_own_example() -> None:
    """t = 4.0621, p = 0.002833, 95 % between 0.7001142 and 2.4598858, as every statistics program prints it."""
    found = compare(FIRST, SECOND)
    assert [found.n, found.baseline_mean, found.other_mean] == pytest.approx([10, 0.75, 2.33])
    assert found.mean == pytest.approx(1.58)
    assert [found.low, found.high] == pytest.approx([0.7001142, 2.4598858], abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=5e-7) and found.is_significant


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [
        (0.975, 1, 12.7062047), (0.975, 2, 4.3026527), (0.975, 4, 2.7764451), (0.975, 9, 2.2621572), (0.975, 30, 2.0422725),
        (0.995, 5, 4.0321430), (0.95, 10, 1.8124611), (0.9, 120, 1.2886462), (0.975, 100_000, 1.9599876), (0.025, 9, -2.2621572),
        (0.5, 7, 0.0),
    ],
)  # fmt: skip
def test_quantiles_of_t_are_those_of_the_tables(share: float, freedom: int, value: float) -> None:
    assert t_quantile(share, freedom) == pytest.approx(value, abs=2e-7)


def test_tail_of_t_where_it_has_a_closed_form() -> None:
    """One degree of freedom: the Cauchy distribution. Two: 1 - t / sqrt(2 + t^2)."""
    for t in (0.0, 0.1, 1.0, 3.0, 50.0, 1e6):
        assert t_tail(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-12)
        assert t_tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)


def test_holm_corrects_as_his_procedure_says() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_policies_make_a_claim_harder() -> None:
    """What would be significant alone is not, when it is the best of ten that were tried."""
    alone = compare({1: 0.0, 2: 0.0, 3: 0.0}, {1: 1.0, 2: 1.2, 3: 1.6})
    assert alone.is_significant
    chance = {f"policy-{n}": {1: 0.1 * n, 2: -0.1, 3: 0.02 * n - 0.1} for n in range(9)}
    together = compare_all({1: 0.0, 2: 0.0, 3: 0.0}, {"best": {1: 1.0, 2: 1.2, 3: 1.6}, **chance})["best"]
    assert together.p == alone.p and together.p_adjusted == pytest.approx(10 * alone.p)
    assert not together.is_significant


def test_seeds_are_paired_and_what_they_share_drops_out() -> None:
    """Seeds differ by hundreds, the policies by one: as two unpaired samples nothing could be said."""
    baseline = {1: 100.0, 2: 500.0, 3: 900.0, 9: 1e9}
    other = {3: 901.1, 2: 501.0, 1: 100.9, 8: -1e9}
    found = compare(baseline, other)
    assert found.n == 3 and found.mean == pytest.approx(1.0)
    assert 0 < found.low < 1 < found.high < 2
    assert found.is_significant


def test_without_spread_only_the_sign_speaks() -> None:
    """Three equal differences are no certainty: the signs of three agree by chance one time in four."""
    same = compare({1: 1.0, 2: 2.0, 3: 5.0}, {1: 1.0, 2: 2.0, 3: 5.0})
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = compare({1: 1.0, 2: 2.0, 3: 5.0}, {1: 2.0, 2: 3.0, 3: 6.0})
    assert (shifted.mean, shifted.low, shifted.high, shifted.p) == (1.0, 1.0, 1.0, 0.25)


def test_intervals_hold_what_they_promise() -> None:
    """Over many small samples of a known difference, 95 of 100 intervals hold it, and 80 of 100 when that is asked."""
    import random

    chance = random.Random(4)
    held = {950: 0, 800: 0}
    for _ in range(2_000):
        other = {seed: chance.gauss(0.7, 2) for seed in range(5)}
        for confidence_milli in held:
            found = compare(dict.fromkeys(range(5), 0.0), other, confidence_milli=confidence_milli)
            held[confidence_milli] += found.low <= 0.7 <= found.high
    assert held[950] == pytest.approx(1_900, abs=40) and held[800] == pytest.approx(1_600, abs=70)


def test_too_few_seeds_are_refused_in_words() -> None:
    with pytest.raises(FieldError, match=r"seeds is \[1, 2\]: expected at least 3 that both policies ran"):
        compare({1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: 1.0, 4: 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused_by_its_seed(value: float) -> None:
    with pytest.raises(FieldError, match=r"other\[2\] is (nan|inf)"):
        compare({1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: value, 3: 1.0})
