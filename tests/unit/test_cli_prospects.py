"""Whether a job keeps its limits of time, as text: said first, and true of what begins at once, is overdue, or has nowhere to go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import explain, outlook
from atoll.model.attempt import AttemptState
from atoll.model.quote import Eta, InTime, Prospects, TimeLimits, prospects
from tests.unit.jobs_to_show import CORDONED, DONE, GOES, QUEUED, WAITS, live, story_of

Shown = pytest.CaptureFixture[str]

NO_LIMITS = Prospects(meets_deadline=None, meets_start_timeout=None)


@pytest.mark.parametrize(
    ("deadline_ms", "start_timeout_ms", "said"),
    [
        (18_000, 0, ["It should meet its deadline of 18.0s: 9 of 10 such jobs are done within 18.0s."]),
        (17_999, 0, ["It may miss its deadline of 18.0s: half of such jobs are done within 9.00s, 9 of 10 within 18.0s."]),
        (9_000, 0, ["It may miss its deadline of 9.00s: half of such jobs are done within 9.00s, 9 of 10 within 18.0s."]),
        (1, 0, ["It would miss its deadline of 1ms and expire: half of such jobs are done only after 9.00s."]),
        (0, 10_000, ["It should meet its start timeout of 10.0s: 9 of 10 such jobs begin within 10.0s."]),
        (60_000, 100, [
            "It should meet its deadline of 1m00s: 9 of 10 such jobs are done within 18.0s.",
            "It would miss its start timeout of 100ms and expire: half of such jobs begin only after 5.00s.",
        ]),
        (0, 0, []),
    ],
)  # fmt: skip
def test_a_quote_says_first_whether_limits_are_kept(capsys: Shown, deadline_ms: int, start_timeout_ms: int, said: list[str]) -> None:
    limits = TimeLimits(now_us=3_000_000, asked_us=3_000_000, deadline_ms=deadline_ms, start_timeout_ms=start_timeout_ms)
    outlook.show_quote("flux1-dev", GOES, limits=limits, origin="tokyo-1")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "quote for flux1-dev, asked from near tokyo-1, 0 jobs in the queue"
    assert lines[1 : 1 + len(said)] == said
    assert lines[1 + len(said)].startswith("It would go to tokyo-1/h100 at once")


def test_an_explanation_says_first_whether_limits_are_kept(capsys: Shown) -> None:
    spec = replace(QUEUED.spec, deadline_ms=7_000, start_timeout_ms=4_000)
    waits = replace(QUEUED, spec=spec)
    first, second, *_ = story_of(capsys, waits, eta=WAITS.eta, quote=WAITS)
    assert first == "It would miss its deadline of 7.00s (5.00s from now) and expire: half of such jobs are done only after 7.50s."
    assert second == "It would miss its start timeout of 4.00s (2.00s from now) and expire: half of such jobs begin only after 3.50s."
    assert story_of(capsys, waits, quote=CORDONED)[0] == (
        "It would miss its deadline of 7.00s (5.00s from now) and expire, unless a place can take it before that."
    )
    running = replace(live(AttemptState.RUNNING, running_us=2_500_000), spec=spec)
    eta = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=5_000_000, end_p90_us=7_500_000)
    first, second, *_ = story_of(capsys, running, eta=eta)
    assert first == "It should meet its deadline of 7.00s (5.00s from now): 9 of 10 such jobs are done within 4.50s."
    assert second.startswith("It runs at tokyo-1"), "it has begun: its start timeout is met"
    overdue = replace(eta, end_p50_us=2_000_000, end_p90_us=2_500_000)
    assert story_of(capsys, running, eta=overdue)[0] == "It may miss its deadline of 7.00s (5.00s from now): it is overdue."
    # What is being stopped, or has ended, has no prospects.
    stopping = replace(running, attempts=(replace(running.attempts[0], state=AttemptState.STOPPING),))
    assert story_of(capsys, stopping)[0].startswith("It is being stopped")
    assert story_of(capsys, replace(DONE, spec=spec))[0].startswith("After 1.00s in the queue")
    assert explain.Moment(job=replace(DONE, spec=spec), now_us=20_000_000).prospects == NO_LIMITS
    assert explain.Moment(job=QUEUED, now_us=3_000_000, eta=WAITS.eta, quote=WAITS).prospects == NO_LIMITS


def test_what_would_begin_at_once_meets_any_start_timeout(capsys: Shown) -> None:
    """A free warm replica: it begins as soon as it is asked for, and nothing is overdue."""
    limits = TimeLimits(now_us=3_000_000, asked_us=3_000_000, deadline_ms=0, start_timeout_ms=3_600_000)
    at_once = Eta(begin_p50_us=3_000_000, begin_p90_us=3_000_000, end_p50_us=5_000_000, end_p90_us=9_000_000)
    assert prospects(at_once, limits).meets_start_timeout is InTime.YES
    outlook.show_quote("flux1-dev", replace(GOES, eta=at_once), limits=limits)
    assert "  It should meet its start timeout of 1h00m: 9 of 10 such jobs begin at once." in capsys.readouterr().out.splitlines()
    # So does one that has waited and is about to go; but half of them begin at once, and others take too long.
    waits = replace(QUEUED, spec=replace(QUEUED.spec, start_timeout_ms=4_000))
    assert story_of(capsys, waits, eta=at_once, quote=GOES)[0].startswith("It should meet its start timeout of 4.00s (2.00s from now)")
    slow = replace(at_once, begin_p90_us=6_000_000)
    said = "It may miss its start timeout of 4.00s (2.00s from now): half of such jobs begin at once, 9 of 10 within 3.00s."
    assert story_of(capsys, waits, eta=slow, quote=GOES)[0] == said


def test_what_has_begun_has_met_its_start_timeout() -> None:
    eta = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=5_000_000, end_p90_us=9_000_000)
    limits = TimeLimits(now_us=3_000_000, asked_us=0, deadline_ms=2_000, start_timeout_ms=1)
    assert prospects(eta, limits) == Prospects(meets_deadline=InTime.NO, meets_start_timeout=InTime.YES)
