"""How near a simulated run is to a live one: the arithmetic, and what may be said of it."""

from __future__ import annotations

import math

import pytest

from atoll.model.errors import FieldError
from sims.study.fidelity import Latency, Likeness, Verdict, likenesses, worst

SECOND_US = 1_000_000


def run(*latencies_s: float, kind: str = "image", arrival_us: int = 0) -> list[Latency]:
    return [Latency(kind=kind, arrival_us=arrival_us, latency_us=round(one * SECOND_US)) for one in latencies_s]


def one_class(live_s: float, *simulated_s: float) -> Likeness:
    """Of runs with a single job each."""
    (found,) = likenesses(run(live_s), [run(one) for one in simulated_s])
    return found


def test_the_difference_is_of_the_mean_over_seeds_and_noise_is_that_of_one_run_more() -> None:
    median = one_class(100, 90, 100, 110).quantiles[0]
    assert (median.live_us, median.simulated_us, median.difference_milli) == (100 * SECOND_US, 100 * SECOND_US, 0)
    # Standard deviation 10, t of two degrees of freedom 4.3027, and the mean itself is known to a third of the variance.
    assert median.noise_milli == round(4.3027 * 10 * math.sqrt(4 / 3) * 10)


@pytest.mark.parametrize(
    ("live_s", "simulated_s", "verdict"),
    [
        (100, (104, 104, 104), Verdict.WITHIN),
        (100, (95, 95, 95), Verdict.WITHIN),
        (100, (50, 100, 150), Verdict.WITHIN),  # near it by luck perhaps, but near
        (100, (106, 106, 106), Verdict.DIFFERS),
        (100, (91, 92, 93), Verdict.DIFFERS),
        (100, (90, 110, 130), Verdict.NOISE),
    ],
)
def test_beyond_five_per_cent_it_is_noise_only_if_seeds_differ_as_much(
    live_s: float, simulated_s: tuple[float, ...], verdict: Verdict
) -> None:
    assert one_class(live_s, *simulated_s).verdict is verdict


def test_a_class_is_as_near_as_its_worst_quantile_and_a_run_as_its_worst_class() -> None:
    """The medians agree; the slowest of the hundred do not."""
    live = [*run(*[10.0] * 95, *[20.0] * 5), *run(300, kind="video")]
    runs = [[*run(*[10.0] * 95, *[30.0] * 5), *run(303, kind="video")] for _ in range(3)]
    images, videos = likenesses(live, runs)
    assert [(one.per_mille, one.verdict) for one in images.quantiles] == [(500, Verdict.WITHIN), (990, Verdict.DIFFERS)]
    assert (images.kind, images.n, images.verdict) == ("image", 100, Verdict.DIFFERS)
    assert (videos.kind, videos.n, videos.verdict) == ("video", 1, Verdict.WITHIN)
    assert worst(one.verdict for one in (images, videos)) is Verdict.DIFFERS
    assert worst([Verdict.NOISE, Verdict.WITHIN]) is Verdict.NOISE and worst([]) is Verdict.WITHIN


def test_what_arrived_during_the_warm_up_does_not_count() -> None:
    live = [*run(500), *run(10, arrival_us=SECOND_US)]
    runs = [[*run(20), *run(10, arrival_us=SECOND_US)] for _ in range(3)]
    assert likenesses(live, runs)[0].verdict is Verdict.DIFFERS
    (kept,) = likenesses(live, runs, SECOND_US)
    assert (kept.n, kept.verdict) == (1, Verdict.WITHIN)


def test_too_few_runs_and_a_class_that_is_only_live_are_refused() -> None:
    with pytest.raises(FieldError, match=r"^noise seeds is 2: expected at least 3"):
        likenesses(run(1), [run(1)] * 2)
    with pytest.raises(FieldError, match=r"^simulated jobs of class video is 0: expected some in at least 3 runs"):
        likenesses(run(1, kind="video"), [run(1)] * 3)
