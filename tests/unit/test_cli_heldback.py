"""What is said of a job that expired while it waited: what held it back, where it stood, and what would have helped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import explain
from atoll.model.ids import JobId, NodeId, Ordinal, PoolId, SiteId
from atoll.model.job import Job, JobState, Priority
from atoll.model.placement import Awaits, Claim, Deferral, Reason, Rejection, Stopped
from atoll.wire.jobs import job_from_proto, job_to_proto
from tests.unit.jobs_to_show import OTHER, QUEUED, story_of

Shown = pytest.CaptureFixture[str]


def _expired(deferral: Deferral | None, **spec: object) -> Job:
    """Accepted at second 1, and ended at second 4."""
    limits = {"start_timeout_ms": 3_000, **spec}
    return replace(
        QUEUED,
        spec=replace(QUEUED.spec, **limits),  # type: ignore[arg-type]  # the caller names fields
        state=JobState.EXPIRED,
        ended_us=4_000_000,
        cancel_reason="start timeout of 3.00s passed",
        deferral=deferral,
    )


def test_a_job_that_no_place_could_take_says_why_and_what_would_have_to_change(capsys: Shown) -> None:
    found = (Rejection(reason=Reason.CORDONED, pools=2), Rejection(reason=Reason.SITE_NOT_ALLOWED, pools=5))
    told = Deferral(since_us=1_000_000, until_us=5_000_000, waits_for=None, rejections=found, position=3, queue_length=9)
    explain.show(explain.Moment(job=_expired(told), now_us=9_000_000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "  It expired while it waited in the queue, number 3 of 9 there: its start timeout of 3.00s passed.",
        "  No place could take it when it was last looked at: the site is cordoned (2 pools); 5 other pools never can.",
        "",
        "  Not possible then:",
        "    HOW MANY   WHY                         WHAT WOULD HAVE TO CHANGE",
        "    5 pools    the job names other sites   submit with another --site, or none",
        "    2 pools    the site is cordoned        atoll sites uncordon SITE",
    ]


def test_a_job_whose_place_was_busy_says_which_and_what_it_would_have_needed(capsys: Shown) -> None:
    busy = replace(OTHER, wait_us=10_000_000)
    told = Deferral(since_us=2_000_000, until_us=5_000_000, waits_for=busy, rejections=(), position=1, queue_length=1)
    story = story_of(capsys, _expired(told))
    assert story[1] == "It waited for osaka-1/l4, which was busy for about 8.00s more."
    assert story[2].startswith("It would have needed a later --start-timeout, a higher --priority or another place; ")
    due = _expired(told, start_timeout_ms=0, deadline_ms=3_000, priority=Priority.URGENT)
    assert "needed a later --deadline or another place; " in story_of(capsys, due)[2]
    late = replace(told, waits_for=replace(busy, wait_us=1, awaits=Awaits.LOAD))
    assert story_of(capsys, _expired(late))[1].endswith(", where the model was loading for longer than had been predicted.")
    claim = Claim(
        site_id=SiteId("osaka-1"), pool_id=PoolId("l4"), node_id=NodeId("l4-3"), first=4, slots=4, since_us=0, begins_us=6_000_000,
    )  # fmt: skip
    assert story_of(capsys, _expired(replace(told, claim=claim)))[1] == (
        "It waited for slots 4 to 7 of l4-3 at osaka-1/l4: they were kept for it or the first of those like it, "
        "but busy for about 2.00s more."
    )


def test_a_job_that_expired_before_anybody_looked_says_so(capsys: Shown) -> None:
    assert story_of(capsys, _expired(None)) == [
        "It expired while it waited in the queue: its start timeout of 3.00s passed.",
        "What it waited for is not known: no place had been looked for yet.",
    ]


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_stopped_for_a_job_is_told_while_it_waits_and_when_it_expired_before_the_slot_was_empty(capsys: Shown, ended: bool) -> None:
    one = Stopped(job_id=JobId("j-9"), ordinal=Ordinal(1), site_id=SiteId("osaka-1"), pool_id=PoolId("l4"), lost_us=41_000_000)
    told = Deferral(since_us=2_000_000, until_us=5_000_000, waits_for=OTHER, rejections=(), stopped=(one,))
    job = _expired(told) if ended else replace(QUEUED, deferral=told)
    assert job_from_proto(job_to_proto(job)).deferral == told
    explain.show(explain.Moment(job=job, now_us=9_000_000))
    assert "  Stopped for it: j-9 at osaka-1/l4, 41.0s of its work to do again" in capsys.readouterr().out.splitlines()
