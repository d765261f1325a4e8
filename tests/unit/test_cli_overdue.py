"""What was later than had been quoted says so, by how much and by which phase; and an expired job says which limit would have done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import outlook
from atoll.model.attempt import AttemptState
from atoll.model.job import Job, JobState
from tests.unit.jobs_to_show import CHOSEN, DONE, FIRST, SPEC, TERMS, story_of

Shown = pytest.CaptureFixture[str]


def quoted(p50_us: int, p90_us: int, **changes: object) -> Job:
    """The job that is done, as it would be told if so much had been quoted; `changes` are of its attempt."""
    assert FIRST.explanation is not None
    told = replace(FIRST.explanation, p50_us=p50_us, p90_us=p90_us)
    return replace(DONE, attempts=(replace(FIRST, explanation=told, **changes),))  # type: ignore[arg-type]  # the caller names fields


def test_a_job_that_took_longer_than_nine_of_ten_says_so_and_by_what(capsys: Shown) -> None:
    late = "It took 11.0s, later than nine of ten such jobs: for those at most 10.5s had been quoted, and 10.0s had been predicted (+10 %)."
    told = story_of(capsys, quoted(10_000_000, 10_500_000))
    assert told[1:3] == [late, "All of the difference is run (execution): 5.00s instead of 4.00s."]
    times = replace(FIRST.times, fetch_us=7_000_000, load_us=8_000_000)
    slow = quoted(10_000_000, 10_500_000, times=times, ended_us=23_000_000)
    assert story_of(capsys, slow)[2] == "The largest part of the difference is fetch: 7.00s instead of 2.00s."
    shares = replace(FIRST.times, run_us=13_000_000)
    assert story_of(capsys, quoted(10_000_000, 10_500_000, times=shares, ended_us=23_000_000))[2].startswith(
        "Most of the difference is run (exec"
    )
    in_time = story_of(capsys, quoted(10_000_000, 11_000_000))
    assert in_time[1] == "It took 11.0s; 10.0s had been predicted (+10 %), and at most 11.0s for nine of ten such jobs."
    assert len(in_time) == 2, "what is within its quote needs no culprit"


@pytest.mark.parametrize(
    ("limits", "p50_us", "p90_us", "said"),
    [
        # Decided a second after it was accepted; four seconds of what is quoted are its execution.
        (
            {"start_timeout_ms": 3_000}, 10_000_000, 20_000_000,
            "It had been expected to begin 7.00s after it was accepted, and nine of ten such jobs begin within 17.0s: a --start-timeout of",
        ),
        (
            {"start_timeout_ms": 3_000}, 4_500_000, 5_500_000,
            "It had been expected to begin 1.50s after it was accepted, and is later than nine of ten such jobs, which begin within 2.50s.",
        ),
        (
            {"deadline_ms": 3_000}, 10_000_000, 20_000_000,
            "It had been expected to be done 11.0s after it was accepted, and nine of ten such jobs are done within 21.0s: a --deadline of",
        ),
    ],
)  # fmt: skip
def test_a_job_that_expired_at_a_site_says_which_limit_would_have_been_enough(
    capsys: Shown, limits: dict[str, int], p50_us: int, p90_us: int, said: str
) -> None:
    job = quoted(p50_us, p90_us, state=AttemptState.STOPPED, running_us=0, ended_us=4_100_000)
    spec = replace(SPEC, **limits)  # type: ignore[arg-type]  # which of them differs
    expired = replace(
        job, state=JobState.EXPIRED, spec=spec, ended_us=4_000_000, result=None, cancel_reason="start timeout of 3.00s passed"
    )
    first, second = story_of(capsys, expired)
    assert first == "It expired while it was at tokyo-1: its start timeout of 3.00s passed."
    assert second.startswith(said)
    waited = replace(expired, attempts=(replace(expired.attempts[0], ended_us=3_000_000),))
    assert not any("expected" in line for line in story_of(capsys, waited)), "what it waited for afterwards is not that attempt's matter"
    unquoted = quoted(0, 0, state=AttemptState.STOPPED, running_us=0, ended_us=4_100_000).attempts
    assert len(story_of(capsys, replace(expired, attempts=unquoted))) == 1


def test_what_is_better_by_prices_is_not_called_cheaper_as_if_it_were_dollars() -> None:
    dear = replace(CHOSEN, total_us=CHOSEN.total_us + 636_000, terms_us=(227_000, *CHOSEN.terms_us[1:4], 909_000, 0))
    told = outlook.comparison(TERMS, CHOSEN, [dear], 24 * 10**9, rule="cost")
    assert told == "636ms of COST better than tokyo-1/h100, the next best; 227ms of that is time, the rest prices"
    priced = replace(CHOSEN, total_us=CHOSEN.total_us + 636_000, terms_us=(*CHOSEN.terms_us[:4], 1_136_000, 0))
    assert outlook.comparison(TERMS, CHOSEN, [priced], 0, rule="cost").endswith("the next best; all of that is prices")
