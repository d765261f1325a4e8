"""What a fleet of unequal GPUs can carry, by hand and by theory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.study.carrying import Times, busy_us

# Four digits are told, and the bound is within a part in a thousand of what can be done.
NEARLY = 2e-3
SECOND = 1_000_000


def _times(**seconds: float) -> Times:
    return tuple((name, round(took_s * SECOND)) for name, took_s in seconds.items())


def test_a_gpu_counts_by_its_speed() -> None:
    """Two that take 1 s and four that take 4 s do three jobs a second."""
    assert busy_us({_times(fast=1, slow=4): 300}, {"fast": 2, "slow": 4}) == pytest.approx(100 * SECOND, rel=NEARLY)


def test_each_does_what_it_is_relatively_best_at() -> None:
    """Both kinds of jobs are faster on `big`, but films so much more that all pictures belong to `small`: 100 x 2 s there, 20 x 10 s here.

    A spread by speed alone, pictures on `big` too, would take longer.
    """
    work = {_times(big=1, small=2): 100, _times(big=10, small=60): 20}
    assert busy_us(work, {"big": 1, "small": 1}) == pytest.approx(200 * SECOND, rel=NEARLY)


def test_work_that_only_some_can_do_is_bound_by_them() -> None:
    work = {_times(big=10): 50, _times(big=1, small=1): 100}
    # `big` has 500 s of its own: `small` does the rest alone.
    assert busy_us(work, {"big": 1, "small": 1}) == pytest.approx(500 * SECOND, rel=NEARLY)
    # Three of `big` have 167 s, and share the rest: 600 GPU-seconds on four GPUs.
    assert busy_us(work, {"big": 3, "small": 1}) == pytest.approx(167 * SECOND, rel=NEARLY)


def test_what_nobody_can_do_counts_nothing() -> None:
    assert busy_us({(): 10}, {"big": 1}) == 0
    assert busy_us({_times(gone=1): 10}, {"big": 1, "gone": 0}) == 0
    assert busy_us({}, {"big": 1}) == 0
    assert busy_us({(): 10, _times(big=1): 10}, {"big": 1, "idle": 5}) == pytest.approx(10 * SECOND, rel=NEARLY)


@settings(max_examples=25, deadline=None)  # five searches of prices each, on a machine that may be busy
@given(
    times=st.lists(st.lists(st.integers(1, 200), min_size=3, max_size=3), min_size=1, max_size=5),
    counts=st.lists(st.integers(1, 50), min_size=5, max_size=5),
    slots=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_no_schedule_is_sooner_and_one_is_nearly_as_soon(times: list[list[int]], counts: list[int], slots: list[int]) -> None:
    """Between what would be if all were fastest for every job, and each job on its fastest type alone."""
    names = ("a", "b", "c")
    work: dict[Times, int] = {}
    for row, count in zip(times, counts, strict=False):
        work[_times(**dict(zip(names, row, strict=True)))] = count
    held = dict(zip(names, slots, strict=True))
    found = busy_us(work, held)
    # As if every GPU were the fastest for each job.
    least = sum(min(took_us for _, took_us in pairs) * count for pairs, count in work.items()) / sum(slots)
    # Each job on the type that is fastest for it, and nowhere else: a spread that can be done.
    on: dict[str, int] = {}
    for pairs, count in work.items():
        took_us, name = min((took_us, name) for name, took_us in pairs)
        on[name] = on.get(name, 0) + took_us * count
    most = max(sum_us / held[name] for name, sum_us in on.items())
    assert least * (1 - NEARLY) <= found <= most * (1 + NEARLY)
    # More of one type is never slower, twice of all is twice as fast.
    assert busy_us(work, held | {"a": held["a"] + 1}) <= found * (1 + NEARLY)
    assert busy_us(work, {name: 2 * count for name, count in held.items()}) == pytest.approx(found / 2, rel=NEARLY)
