"""What settled attempts say, and what quotes make of predictions."""

from __future__ import annotations

import pytest

from atoll.model.attempt import AttemptState, FailureKind, PhaseTimes
from atoll.model.ids import NodeId, PoolId, SiteId
from atoll.model.learned import Component
from atoll.model.placement import Candidate, Explanation
from orchestrator.core.learning.observation import COMPONENTS, Cut, is_cut, observed

SECOND = 1_000_000
NAMES = ("queue", "fetch", "input", "stage", "init", "execution", "output", "money", "overlap")
TERMS = (9, 40, 0, 6, 4, 20, 2, 5, -9)
# From the origin store: what a fetch from a peer takes, such an attempt does not say.
FACTORS = tuple(0 if component is Component.PEER else 1_000 + 100 * index for index, component in enumerate(COMPONENTS))


EXPLANATION = Explanation(
    decided_us=0,
    policy="default",
    term_names=NAMES,
    chosen=Candidate(
        site_id=SiteId("a"), pool_id=PoolId("p"), total_us=80 * SECOND, terms_us=tuple(term * SECOND for term in TERMS), cold=True
    ),
    node_id=NodeId("p-0"),
    others=(),
    rejections=(),
)


def said(state: AttemptState, times: PhaseTimes, cut: Cut | None = None) -> dict[Component, tuple[int, int, bool]]:
    """Component -> (predicted, actual, whether it was cut off), in seconds."""
    found = observed(EXPLANATION, state, times, FACTORS, cut)
    return {one.component: (one.predicted_us // SECOND, one.actual_us // SECOND, one.at_least) for one in found}


ALL = PhaseTimes(waiting_us=0, fetch_us=30 * SECOND, load_us=12 * SECOND, run_us=25 * SECOND, upload_us=SECOND)


def test_success_gives_every_phase_its_prediction_and_load_the_sum_of_its_two() -> None:
    assert said(AttemptState.SUCCEEDED, ALL) == {
        Component.FETCH: (40, 30, False),
        Component.LOAD: (10, 12, False),
        Component.EXECUTION: (20, 25, False),
        Component.UPLOAD: (2, 1, False),
    }
    for one in observed(EXPLANATION, AttemptState.SUCCEEDED, ALL, FACTORS, None):
        assert one.factor_milli == FACTORS[COMPONENTS.index(one.component)]


def test_phases_that_did_not_happen_say_nothing() -> None:
    assert said(AttemptState.SUCCEEDED, PhaseTimes(run_us=25 * SECOND)) == {Component.EXECUTION: (20, 25, False)}
    assert said(AttemptState.SUCCEEDED, PhaseTimes(run_us=999)) == {}


def test_what_was_stopped_lasted_at_least_as_long() -> None:
    times = PhaseTimes(fetch_us=30 * SECOND, load_us=12 * SECOND, run_us=7 * SECOND)
    cut = Cut(phase=AttemptState.RUNNING, lasted_us=6 * SECOND)
    expected = {Component.FETCH: (40, 30, False), Component.LOAD: (10, 12, False), Component.EXECUTION: (20, 7, True)}
    assert said(AttemptState.STOPPED, times, cut) == expected
    fetching = Cut(phase=AttemptState.FETCHING, lasted_us=55 * SECOND)
    assert said(AttemptState.STOPPED, PhaseTimes(), fetching) == {Component.FETCH: (40, 55, True)}


def test_what_failed_says_nothing_of_the_phase_that_broke() -> None:
    times = PhaseTimes(fetch_us=30 * SECOND, load_us=2 * SECOND)
    assert said(AttemptState.FAILED, times) == {Component.FETCH: (40, 30, False)}
    assert said(AttemptState.REFUSED, PhaseTimes()) == {}
    assert said(AttemptState.REFUSED, ALL) == {}


@pytest.mark.parametrize(
    ("state", "why", "cut"),
    [
        (AttemptState.STOPPED, FailureKind.MOVED, True),
        (AttemptState.STOPPED, FailureKind.PREEMPTED, True),
        (AttemptState.LOST, FailureKind.LOST, True),
        (AttemptState.STOPPED, FailureKind.TIMED_OUT, False),  # it hung
        (AttemptState.FAILED, FailureKind.OUT_OF_MEMORY, False),
        (AttemptState.SUCCEEDED, None, False),
    ],
)
def test_which_ends_cut_work_off(state: AttemptState, why: FailureKind | None, cut: bool) -> None:
    assert is_cut(state, why) is cut


def test_what_is_not_to_be_learned_has_no_factor() -> None:
    without = tuple(0 if component is Component.FETCH else 1_000 for component in COMPONENTS)
    found = observed(EXPLANATION, AttemptState.SUCCEEDED, ALL, without, None)
    assert Component.FETCH not in {one.component for one in found}
    assert observed(EXPLANATION, AttemptState.SUCCEEDED, ALL, (), None) == ()
    assert observed(None, AttemptState.SUCCEEDED, ALL, FACTORS, None) == ()
