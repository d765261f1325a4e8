"""What is told of times by what such predictions came to of late: sentences of one answer agree, and say where its table does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.ids import NodeId, PoolId, SiteId
from atoll.model.placement import Awaits, Claim
from atoll.model.quote import Eta
from tests.unit.jobs_to_show import CHOSEN, DONE, FIRST, QUEUED, WAITS, live, story_of

Shown = pytest.CaptureFixture[str]
ETA = Eta(begin_p50_us=163_000_000, begin_p90_us=400_000_000, end_p50_us=223_000_000, end_p90_us=460_000_000)
# Its place is free in 251 s, and it executes for another minute; half of such waits were over after 0.64 times as long.
SLOW = replace(
    WAITS,
    chosen=replace(WAITS.chosen or CHOSEN, wait_us=251_000_000, terms_us=(251_000_000, 0, 0, 60_000_000, 0, 0)),
    predicted_us=311_000_000,
    turn_us=0,
    eta=ETA,
)
CLAIM = Claim(
    site_id=SiteId("osaka-1"), pool_id=PoolId("l4"), node_id=NodeId("l4-3"), first=4, slots=4, since_us=1_000_000, begins_us=99_000_000,
)  # fmt: skip


def _corrected(story: list[str]) -> str:
    (found,) = [line for line in story if line.startswith("The terms below")]
    return found


def test_the_place_that_is_waited_for_is_free_when_the_job_should_begin(capsys: Shown) -> None:
    story = story_of(capsys, QUEUED, quote=SLOW, eta=SLOW.eta)
    assert story[0].startswith("It waits for osaka-1/l4, free in about 2m40s: ")
    assert story[1].startswith("It should begin in about 2m40s and be done in about 3m40s ")
    assert _corrected(story) == (
        "The terms below add up to 5m11s, 4m11s of it until it begins: "
        "jobs like this took 0.71 times as long as predicted of late, their waits 0.64 times."
    )
    busy = replace(SLOW, turn_us=251_000_000, eta=replace(ETA, begin_p50_us=203_000_000, end_p50_us=263_000_000))
    story = story_of(capsys, QUEUED, quote=busy, eta=busy.eta)
    assert story[0].startswith("It waits for osaka-1/l4, free in about 1m40s, and 2 jobs before it for 1m40s more: ")
    assert story[1].startswith("It should begin in about 3m20s ")


def test_a_difference_that_only_the_beginning_shows_is_told_and_rounding_is_not(capsys: Shown) -> None:
    film = replace(
        SLOW,
        chosen=replace(CHOSEN, cold=False, wait_us=100_000_000, terms_us=(100_000_000, 0, 0, 9_900_000_000, 0, 0)),
        predicted_us=10_000_000_000,
        eta=Eta(begin_p50_us=143_000_000, begin_p90_us=400_000_000, end_p50_us=10_043_000_000, end_p90_us=12_000_000_000),
    )
    said = "The terms below add up to 1m40s until it begins: waits like this took 1.4 times as long as predicted of late."
    assert _corrected(story_of(capsys, QUEUED, quote=film, eta=film.eta)) == said
    # The wait is told no longer than the beginning, though no sentence explains two milliseconds.
    near = replace(WAITS, turn_us=0, eta=replace(ETA, begin_p50_us=4_998_000, end_p50_us=8_998_000))
    story = story_of(capsys, QUEUED, quote=near, eta=near.eta)
    assert "free in about 2.00s" in story[0] and len(story) == 2


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_block_that_is_kept_is_free_when_the_quote_says_so_and_for_the_first_alone(capsys: Shown, ahead: int) -> None:
    """When the claim was made it should have been whole at second 99, which nobody says any more."""
    assert QUEUED.deferral is not None
    job = replace(QUEUED, deferral=replace(QUEUED.deferral, claim=CLAIM))
    quote = replace(SLOW, ahead=ahead, turn_us=251_000_000 if ahead else 0)
    story = story_of(capsys, job, quote=quote, eta=quote.eta, queue_position=ahead + 1)
    if ahead:
        block = "slots 4 to 7 of l4-3 are kept for the first of those like it: the last of them should be free in about 1m20s"
        assert story[0] == f"It waits for osaka-1/l4, where {block}, and 3 jobs before it for 1m20s more."
    else:
        kept = "They are kept for it, and the last of them should be free in about 2m40s."
        assert story[0] == f"It waits for slots 4 to 7 of l4-3 at osaka-1/l4. {kept}"
    assert story[1].startswith("It should begin in about 2m40s ")


def test_a_gang_that_would_go_elsewhere_by_now_is_not_said_to_wait_for_its_block(capsys: Shown) -> None:
    assert QUEUED.deferral is not None
    job = replace(QUEUED, deferral=replace(QUEUED.deferral, claim=replace(CLAIM, site_id=SiteId("kobe-1"))))
    story = story_of(capsys, job, quote=SLOW, eta=SLOW.eta)
    assert story[0].startswith("It waits for osaka-1/l4, free in about 2m40s: ")
    assert SLOW.chosen is not None and SLOW.chosen.awaits is Awaits.NOTHING


def test_what_was_told_at_a_decision_and_what_was_predicted_are_told_apart(capsys: Shown) -> None:
    told = FIRST.explanation
    assert told is not None
    promised = replace(told, p50_us=10_800_000)
    said = (
        "When it was decided 10.8s was told; the terms below add up to 10.0s: "
        "jobs like this had taken 1.08 times as long as predicted of late."
    )
    assert said in story_of(capsys, replace(DONE, attempts=(replace(FIRST, explanation=promised),)))
    assert said in story_of(capsys, live(AttemptState.LOADING, explanation=promised))
    assert not any("was told" in line for line in story_of(capsys, DONE)), "here they are the same"
    rounded = replace(told, p50_us=10_030_000)
    assert not any("was told" in line for line in story_of(capsys, live(AttemptState.LOADING, explanation=rounded)))
