"""Probabilities in whole parts per million: near enough to the exponential, and never falling as the time grows."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm


@given(st.integers(0, X_PPM_MAX))
def test_it_is_the_exponential(x_ppm: int) -> None:
    assert abs(within_ppm(x_ppm) - 1e6 * (1 - math.exp(-x_ppm / 1e6))) <= 2


@given(st.integers(0, X_PPM_MAX), st.integers(0, X_PPM_MAX))
def test_more_time_never_makes_it_less_likely_by_more_than_rounding(first: int, second: int) -> None:
    low, high = sorted((first, second))
    assert within_ppm(low) <= within_ppm(high) + 1


def test_arrays_and_integers_agree() -> None:
    figures = np.arange(0, X_PPM_MAX, 7_919, dtype=np.int64)
    assert within_ppm(figures).tolist() == [within_ppm(int(figure)) for figure in figures]
