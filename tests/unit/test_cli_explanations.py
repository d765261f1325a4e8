"""Explanations and quotes as text: what happened comes first and is true, whatever became of the job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import calibrated, costtable, explain, outlook
from atoll.cli.reasons import remedy
from atoll.model.attempt import Attempt, AttemptState, Failure, FailureKind, PhaseTimes
from atoll.model.ids import AdapterId, AttemptKey, GpuTypeId, JobId, Ordinal, PoolId, SiteId
from atoll.model.job import JobState
from atoll.model.learned import Component
from atoll.model.placement import Awaits, Reason, Rejection, Stopped
from atoll.model.quote import Eta, PlaceView
from atoll.wire.placement import explanation_from_proto, explanation_to_proto
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.jobs_to_show import CHOSEN, CORDONED, DONE, FIRST, GOES, NOWHERE, OTHER, QUEUED, REJECTED, WAITS, live, story_of

Shown = pytest.CaptureFixture[str]


def test_a_job_that_is_done(capsys: Shown) -> None:
    explain.show(explain.Moment(job=DONE, now_us=20_000_000))
    assert capsys.readouterr().out.splitlines() == [
        "job/j-1 succeeded, 12.0s after it was accepted",
        "  flux1-dev, 1024x768, 28 steps, seed 7, normal priority, tenant default; only regions Tokyo",
        "  After 1.00s in the queue it went to tokyo-1/h100, which had to fetch 24.0 GB first: 52.0s sooner than waiting for osaka-1/l4.",
        "  It took 11.0s; 10.0s had been predicted (+10 %), and at most 20.0s for nine of ten such jobs.",
        "",
        "Attempt 1 at tokyo-1, h100-3 slot 2 (cold: the model had to be loaded): succeeded",
        "  Places when it was decided, after 1 deferral. Policy: default",
        "        PLACE           COST   =    TIME   QUEUE   FETCH   STAGE   EXECUTION   +   PRICES   MONEY   WEIGHTS",
        "    >   tokyo-1/h100    9.50   =    9.00       0    2.00    3.00        4.00   +     0.50    0.50   cold, to be fetched",
        "        osaka-1/l4     61.00   =   61.00    1.00       0       0       60.00   +        0       0   warm, free in 2.00s",
        "    (in seconds of delay: COST = TIME from the decision to the result + PRICES, which pass no time but count as if",
        "    they did; -o wide says what each column is)",
        "  Made room: sdxl, 7.00 GB: others are expected to wait 1.50s longer for it",
        "  Predicted against actual, in seconds:",
        "    PHASE                 PREDICTED   ACTUAL     OFF",
        "    waiting in the slot           0     0.10       -",
        "    fetch                      2.00     2.50   +25 %",
        "    load (stage, init)         3.00     3.00    +0 %",
        "    run (execution)            4.00     5.00   +25 %",
        "    upload (output)               0     0.40       -",
        "    at the same time              0    -0.10       -",
        "    the rest                   1.00     0.10       -",
        "    all of it                 10.00    11.00   +10 %",
        "    (at the same time: what is fetched while it waits, counted once; the rest: messages and the job's own files)",
        "  Not possible then:",
        "    HOW MANY   WHY                    WHAT WOULD HAVE TO CHANGE",
        "    2 pools    the site is cordoned   atoll sites uncordon SITE",
    ]


def test_the_phases_add_up_and_say_what_had_been_corrected(capsys: Shown) -> None:
    factors = tuple(1_400 if component is Component.LOAD else 1_000 for component in Component)
    told = FIRST.explanation
    assert told is not None
    costtable.phases(replace(FIRST, factors_milli=factors), told)
    lines = capsys.readouterr().out.splitlines()
    cells = {line.strip().split("   ")[0]: line.split() for line in lines[2:-1]}
    assert cells["load (stage, init)"][-1] == "x1.40"
    assert lines[1].split()[-1] == "CORRECTED" and "earlier attempts" in lines[-1]
    figures = [[float(cell) for cell in line if cell.replace(".", "").lstrip("-").isdigit()][:2] for line in cells.values()]
    *parts, (predicted, actual) = figures
    assert sum(part[0] for part in parts) == pytest.approx(predicted)
    assert sum(part[1] for part in parts) == pytest.approx(actual)


def test_a_fetch_that_went_on_while_it_waited_is_counted_once(capsys: Shown) -> None:
    """Behind another job's fetch: 15.8 s until its turn, of which 3.17 s of fetching, then 2 s of its own."""
    told = FIRST.explanation
    assert told is not None
    chosen = replace(told.chosen, cold=False, awaits=Awaits.LOAD, terms_us=(14_000_000, 0, 0, 2_000_000, 0, 0))
    times = PhaseTimes(waiting_us=15_800_000, fetch_us=3_170_000, run_us=2_000_000, upload_us=10_000)
    behind = replace(FIRST, cold=False, times=times, predicted_us=16_000_000, leased_us=0, ended_us=17_860_000)
    costtable.phases(behind, replace(told, chosen=chosen))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["at", "the", "same", "time", "0", "-3.17", "-"] in lines
    assert ["the", "rest", "0", "0.05", "-"] in lines
    cold = replace(told, chosen=replace(chosen, cold=True, terms_us=(3_000_000, 2_000_000, 0, 2_000_000, 0, -2_000_000)))
    costtable.phases(replace(behind, predicted_us=5_000_000), cold)
    assert ["at", "the", "same", "time", "-2.00", "-3.17", "-"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_model_that_was_loading_for_another_job_was_not_warm(capsys: Shown) -> None:
    told = FIRST.explanation
    assert told is not None
    chosen = replace(told.chosen, cold=False, awaits=Awaits.LOAD, terms_us=(14_000_000, 0, 0, 2_000_000, 0, 0))
    fetched = replace(OTHER, cold=True, awaits=Awaits.FETCH, wait_us=447_000)
    attempt = replace(FIRST, cold=False, explanation=replace(told, chosen=chosen, others=(fetched,)))
    explain.show(explain.Moment(job=replace(DONE, attempts=(attempt,)), now_us=20_000_000))
    shown = capsys.readouterr().out
    assert "tokyo-1/h100, where the model was loading already, behind 14.0s of that and other work: " in shown
    assert "slot 2 (the model was loading there already): succeeded" in shown
    assert "warm" not in shown
    assert "cold, fetched by another node there, at hand in 447ms" in shown and "free in" not in shown
    outlook.show_quote("flux1-dev", replace(WAITS, chosen=fetched, turn_us=0))
    assert "It would wait for osaka-1/l4, where another node fetches the model and has it in about 447ms: " in capsys.readouterr().out
    outlook.show_quote("flux1-dev", replace(WAITS, chosen=replace(OTHER, awaits=Awaits.LOAD), turn_us=0))
    assert "It would wait for osaka-1/l4, where the model is loading already, free in about 2.00s: " in capsys.readouterr().out
    outlook.show_quote("flux1-dev", replace(WAITS, chosen=replace(OTHER, awaits=Awaits.GANG), turn_us=0))
    shown = capsys.readouterr().out
    kept = "where idle GPUs are kept for a job that needs several at once and should be done with them in about 2.00s: "
    assert f"It would wait for osaka-1/l4, {kept}" in shown and ", kept for a gang, free in 2.00s" in shown
    outlook.show_quote("flux1-dev", replace(GOES, others=(replace(OTHER, awaits=Awaits.LOAD),)))
    assert "sooner than waiting for osaka-1/l4, where the model is loading already." in capsys.readouterr().out


def test_why_a_job_was_moved_is_told_in_the_story_and_with_the_attempt(capsys: Shown) -> None:
    why = "tokyo-1/h100 was uncordoned: 12.34 s better (31.20 s from here, 18.86 s from there, all costs counted)"
    failure = Failure(kind=FailureKind.MOVED, message=why)
    moved = replace(FIRST, site_id=SiteId("osaka-1"), state=AttemptState.STOPPED, failure=failure)
    then = replace(FIRST, key=AttemptKey(job_id=FIRST.key.job_id, ordinal=Ordinal(2)))
    explain.show(explain.Moment(job=replace(DONE, attempts=(moved, then)), now_us=20_000_000))
    shown = capsys.readouterr().out
    assert f"Before that it had been tried at osaka-1 (moved: {why})." in shown
    assert f"  moved: {why}\n" in shown


def test_what_a_place_lacked_of_the_adapters_is_told_and_by_name_for_the_chosen(capsys: Shown) -> None:
    told = FIRST.explanation
    assert told is not None
    names = (*told.term_names, "adapt")
    ink, many = (AdapterId("ink"),), tuple(AdapterId(f"s{number}") for number in range(7))
    warm = replace(OTHER, wait_us=0, terms_us=(*OTHER.terms_us, 1_470_000))
    chosen, two = replace(warm, lacks=ink), replace(warm, lacks=many[:2])
    others = (two, replace(warm, lacks=many), replace(CHOSEN, lacks=many), warm)
    attempt = replace(FIRST, cold=False, explanation=replace(told, term_names=names, chosen=chosen, others=others))
    explain.show(explain.Moment(job=replace(DONE, attempts=(attempt,)), now_us=20_000_000))
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.lstrip().startswith(">"))
    ends = [line.rsplit("   ", 1)[-1] for line in lines[first : first + 5]]
    assert ends == ["warm, lacks ink", "warm, lacks s0 and s1", "warm, lacks 7 adapters", "cold, to be fetched", "warm"]
    assert "  Adapters to bring: ink, in 1.47s (adapt)" in lines


def test_an_attempt_that_failed_is_compared_as_far_as_it_came(capsys: Shown) -> None:
    failure = Failure(kind=FailureKind.OUT_OF_MEMORY, message="12 GB\nneeded")
    failed = replace(FIRST, state=AttemptState.FAILED, failure=failure)
    job = replace(DONE, state=JobState.FAILED, result=None, failure=failure, attempts=(failed,))
    (said,) = story_of(capsys, job)
    assert said == "It failed for good after 1 attempt: out of memory: 12 GB needed (such a failure is tried again 3 times)."
    explain.show(explain.Moment(job=job, now_us=20_000_000))
    assert "Predicted against actual, in seconds, until it failed:" in capsys.readouterr().out


def test_a_job_that_waits_for_a_place(capsys: Shown) -> None:
    moment = explain.Moment(job=QUEUED, now_us=3_000_000, queue_position=3, queue_length=9, eta=WAITS.eta, quote=WAITS)
    explain.show(moment)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "job/j-1 queued, number 3 of 9 in the queue, accepted 2.00s ago"
    better = "that is 1.50s sooner than fetching 24.0 GB to tokyo-1/h100."
    assert lines[2:5] == [
        f"  It waits for osaka-1/l4, free in about 2.00s, and 2 jobs before it for 1.50s more: {better}",
        "  It should begin in about 3.50s and be done in about 7.50s (9 of 10 such jobs: within 15.0s).",
        "",
    ]
    assert "  Places as of now. Policy: default" in lines
    assert lines[-1].split("   ")[1:3] == [" 1 pool", "  the GPU is too small for the model at this shape"]


def test_waiting_that_is_later_and_cheaper_says_both(capsys: Shown) -> None:
    chosen = replace(OTHER, total_us=12_000_000, terms_us=(8_000_000, 0, 0, 4_000_000, 0, 0))
    dear = replace(CHOSEN, total_us=29_000_000, terms_us=(0, 2_000_000, 3_000_000, 4_000_000, 20_000_000, 0))
    story = story_of(capsys, QUEUED, quote=replace(WAITS, chosen=chosen, others=(dear,), turn_us=0))
    assert "that is 3.00s later than fetching 24.0 GB to tokyo-1/h100, but cheaper: prices there count 20.0s more." in story[0]
    equal = replace(CHOSEN, total_us=12_010_000)
    story = story_of(capsys, QUEUED, quote=replace(WAITS, chosen=chosen, others=(equal,), turn_us=0))
    assert "as good as fetching" in story[0]
    taken = replace(CHOSEN, total_us=2_010_000, wait_us=1_000_000)
    told = outlook.comparison(WAITS.term_names, chosen, [taken], 24 * 10**9, rule="cost")
    assert told.startswith("9.99s of COST more than ") and told.endswith(": those who wait for that already go first there")


def test_a_job_that_nobody_can_take_now_and_one_that_nobody_ever_can(capsys: Shown) -> None:
    why = "it is a twin, which only rehearses (62 pools), the GPU is too small for the model at this shape (1 pool)"
    # Jobs before it are of no matter to one that has no place.
    assert story_of(capsys, QUEUED, queue_position=5, queue_length=5, quote=NOWHERE) == [
        f"No site of this fleet can ever run it as it is: {why}.",
        "It waits in vain: cancel it and ask for what a site can do, or add a site that can do this.",
    ]
    assert story_of(capsys, QUEUED, queue_position=5, queue_length=5, quote=CORDONED) == [
        "No place can take it now: the site is cordoned (2 pools); 63 other pools never can.",
        "It is placed as soon as that changes.",
    ]
    cordoned = "the site is cordoned (2 pools); 63 other pools never can."
    for found, said in (
        (NOWHERE.rejections, f"No site of this fleet can ever run it as it is: {why}."),
        (CORDONED.rejections, f"No place could take it when it was last looked at: {cordoned}"),
    ):
        assert QUEUED.deferral is not None
        looked = replace(QUEUED, deferral=replace(QUEUED.deferral, waits_for=None, rejections=found))
        assert story_of(capsys, looked)[0] == said
    late = replace(QUEUED, spec=replace(QUEUED.spec, deadline_ms=7_000))
    assert story_of(capsys, late, quote=NOWHERE)[0] == "It would miss its deadline of 7.00s (5.00s from now) and expire."


def test_a_job_in_back_off_says_what_failed_and_when_it_is_tried_again(capsys: Shown) -> None:
    failure = Failure(kind=FailureKind.LOAD_FAILED, message="no such file")
    job = replace(QUEUED, deferral=None, attempts=(replace(FIRST, state=AttemptState.FAILED, failure=failure),))
    assert story_of(capsys, job, held_until_us=4_000_000, quote=GOES)[:2] == [
        "Its last attempt, at tokyo-1, ended without a result: load failed: no such file.",
        "It is tried again in 1.00s, elsewhere if there is another place.",
    ]


def test_a_job_of_an_orchestrator_that_told_no_offer(capsys: Shown) -> None:
    deferral = QUEUED.deferral
    assert deferral is not None
    job = replace(QUEUED, deferral=replace(deferral, since_us=2_000_000, waits_for=replace(OTHER, wait_us=5_000_000)))
    assert story_of(capsys, job) == ["It waits for osaka-1/l4, free in about 4.00s."]
    assert story_of(capsys, replace(QUEUED, deferral=None)) == ["It is about to be placed."]


@pytest.mark.parametrize(
    ("state", "steps", "said"),
    [
        (AttemptState.LEASED, 0, "It was sent to tokyo-1; it should"),
        (AttemptState.FETCHING, 0, "It is at tokyo-1, which fetches the weights or has other work before it; it should"),
        (AttemptState.RUNNING, 7, "It runs at tokyo-1, step 7 of 28; it should"),
        (AttemptState.STOPPING, 0, "It is being stopped at tokyo-1; it should"),
    ],
)
def test_a_job_on_its_way(capsys: Shown, state: AttemptState, steps: int, said: str) -> None:
    eta = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=5_000_000, end_p90_us=9_000_000)
    story = story_of(capsys, live(state, steps_done=steps, running_us=2_500_000 if steps else 0), eta=eta)
    assert story[0] == f"{said} be done in about 2.00s (9 of 10 such jobs: within 6.00s)."
    assert story[1].startswith("After 1.00s in the queue it went to tokyo-1/h100")


def test_a_job_that_takes_longer_than_it_should(capsys: Shown) -> None:
    late = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=2_000_000, end_p90_us=3_500_000)
    story = story_of(capsys, live(AttemptState.LOADING), eta=late)
    assert "be done any moment, late by 1.00s (9 of 10 such jobs: within 500ms)" in story[0]
    over = replace(late, end_p90_us=2_500_000)
    story = story_of(capsys, live(AttemptState.LOADING), eta=over)
    assert "be done by now: it is late by 1.00s, nine of ten such jobs would have been done 500ms ago" in story[0]


def test_jobs_that_were_ended(capsys: Shown) -> None:
    cancelled = replace(QUEUED, state=JobState.CANCELLED, ended_us=2_000_000, cancel_reason="typo", deferral=None)
    assert story_of(capsys, cancelled) == ["It was cancelled while it waited in the queue, with the reason: typo."]
    # The attempt of a job that ends while it runs is still being stopped when the job is final.
    stopping = replace(FIRST, state=AttemptState.RUNNING, running_us=1_500_000, ended_us=0)
    expired = replace(
        DONE, state=JobState.EXPIRED, ended_us=2_000_000, result=None, cancel_reason="deadline of 3.00s passed", attempts=(stopping,)
    )
    assert story_of(capsys, expired) == ["It expired while it ran at tokyo-1: its deadline of 3.00s passed."]
    stopped = replace(stopping, state=AttemptState.STOPPED, running_us=0, ended_us=2_400_000)
    assert story_of(capsys, replace(expired, attempts=(stopped,)))[0].startswith("It expired while it was at tokyo-1:")
    failed = replace(DONE, state=JobState.FAILED, failure=(bad := Failure(kind=FailureKind.BAD_INPUT, message="no")))
    story = story_of(capsys, replace(failed, attempts=_tried(3, bad)))
    assert story[0] == "It failed for good after 3 attempts: bad input: no (the same would happen anywhere)."
    assert story_of(capsys, replace(failed, attempts=()))[0].startswith("It failed for good before any attempt: bad input: no (")
    assert story[1] == "Before that it had been tried at tokyo-1 (bad input), at tokyo-1 (bad input)."


def _tried(times: int, failure: Failure) -> tuple[Attempt, ...]:
    return tuple(
        replace(FIRST, key=AttemptKey(job_id=JobId("j-1"), ordinal=Ordinal(ordinal)), state=AttemptState.FAILED, failure=failure)
        for ordinal in range(1, times + 1)
    )


def test_many_attempts_are_counted_and_the_last_is_shown_first(capsys: Shown) -> None:
    lost = Failure(kind=FailureKind.LOST, message="silent")
    attempts = (*_tried(6, lost), replace(FIRST, key=AttemptKey(job_id=JobId("j-1"), ordinal=Ordinal(7))))
    explain.show(explain.Moment(job=replace(DONE, attempts=attempts), now_us=20_000_000))
    shown = capsys.readouterr().out
    assert "Before that it had been tried at tokyo-1 (lost), at tokyo-1 (lost), at tokyo-1 (lost) and 3 before them." in shown
    assert shown.count("-o wide says") == 1, "how it is read is needed once"
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("Attempt ")] == ["7", "6", "5", "4", "3", "2", "1"]


def test_what_others_wrote_cannot_drive_a_terminal(capsys: Shown) -> None:
    hostile = replace(QUEUED, state=JobState.CANCELLED, cancel_reason="\x1b[2Jboo\x07", deferral=None)
    explain.show(explain.Moment(job=hostile, now_us=3_000_000))
    outlook.show_quote("flux1-dev", replace(NOWHERE, refusal="tenant x\x1b[2J has enough"))
    assert not set("\x1b\x07") & set(capsys.readouterr().out)


def test_a_quote_that_would_go_somewhere(capsys: Shown) -> None:
    outlook.show_quote("flux1-dev", GOES)
    lines = capsys.readouterr().out.splitlines()
    price = "for $0.0044 of GPU time and $0.0012 for the result to leave."
    assert lines[:4] == [
        "quote for flux1-dev, 0 jobs in the queue",
        "  It would go to tokyo-1/h100 at once, which has to fetch 24.0 GB first: 52.0s sooner than waiting for osaka-1/l4.",
        f"  It should begin in about 5.00s and be done in about 9.00s (9 of 10 such jobs: within 18.0s), {price}",
        "  Places as of now. Policy: default",
    ]
    assert "  Would make room: sdxl, 7.00 GB: others are expected to wait 1.50s longer for it" in lines


def test_a_quote_that_differs_from_its_terms_says_why(capsys: Shown) -> None:
    """The table and the sentence are made of the same prediction; what lies between them is what was learned of such jobs."""
    assert GOES.eta is not None and WAITS.eta is not None
    outlook.show_quote("flux1-dev", replace(GOES, eta=replace(GOES.eta, end_p50_us=14_700_000)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("  It should begin in about 5.00s and be done in about 11.7s")
    assert lines[3] == "  The terms below add up to 9.00s: jobs like this took 1.3 times as long as predicted of late."
    waits = replace(WAITS, eta=replace(WAITS.eta, end_p50_us=8_625_000))
    said = "The terms below and the jobs before it add up to 7.50s: jobs like this took 0.75 times as long as predicted of late."
    assert story_of(capsys, QUEUED, quote=waits, eta=waits.eta)[-1] == said
    # What is the same to the eye needs no reason, and what cannot run has none.
    for quote in (GOES, WAITS, NOWHERE, replace(GOES, eta=replace(GOES.eta, end_p50_us=12_040_000))):
        assert calibrated.corrected(quote) == []


def test_a_place_that_is_waited_for_is_not_called_impossible(capsys: Shown) -> None:
    """Its slots are full, and so are those of four more: the two that are listed are possible, the other three are not listed."""
    rejected = (*REJECTED, Rejection(reason=Reason.NO_SLOT, pools=1))
    outlook.show_quote("flux1-dev", replace(WAITS, rejections=rejected))
    assert "every slot has all the work" not in capsys.readouterr().out
    listed = replace(CHOSEN, wait_us=1)
    more = (*REJECTED, Rejection(reason=Reason.NO_SLOT, pools=4), Rejection(reason=Reason.MEMORY_BUSY, pools=1))
    outlook.show_quote("flux1-dev", replace(WAITS, others=(listed, listed), rejections=more))
    shown = capsys.readouterr().out
    assert "2 pools" in shown.split("every slot has all the work")[0].splitlines()[-1]
    assert "1 pool" in shown.split("the memory is held")[0].splitlines()[-1]
    # The only one, and its memory may not go: nothing else was left out.
    outlook.show_quote("flux1-dev", replace(WAITS, others=(), rejections=(Rejection(reason=Reason.MEMORY_BUSY, pools=1),)))
    assert "Not possible" not in capsys.readouterr().out


def test_quotes_that_wait_or_lead_nowhere_or_would_be_refused(capsys: Shown) -> None:
    outlook.show_quote("flux1-dev", replace(WAITS, refusal="the queue is full", retry_after_ms=5_000))
    shown = capsys.readouterr().out
    assert "It would wait for osaka-1/l4, free in about 2.00s, and 2 jobs before it for 1.50s more: that is 1.50s sooner" in shown
    assert "  A submit would be refused just now: the queue is full; try again in 5.00s." in shown
    outlook.show_quote("flux1-dev", NOWHERE)
    shown = capsys.readouterr().out
    assert "  No site of this fleet can ever run it as it is: it is a twin, which only rehearses (62 pools)" in shown
    assert "It would wait in vain." in shown and "\n  Not possible:\n" in shown
    outlook.show_quote("flux1-dev", CORDONED)
    shown = capsys.readouterr().out
    assert "  No place can take it now: the site is cordoned (2 pools); 63 other pools never can. It would wait until" in shown
    assert "\n  Not possible now:\n" in shown
    warm = replace(OTHER, wait_us=0)
    outlook.show_quote("flux1-dev", replace(GOES, chosen=warm, others=(CHOSEN,), evicted=()))
    assert "osaka-1/l4 at once, where the model is warm, behind 1.00s of other work: " in capsys.readouterr().out
    outlook.show_quote("flux1-dev", replace(GOES, others=(), evicted=()))
    assert ": the only place that can take it." in capsys.readouterr().out


def test_why_not_there(capsys: Shown) -> None:
    places = (
        PlaceView(pool_id=PoolId("l4"), gpu_type=GpuTypeId("L4"), candidates=(OTHER,), reason=Reason.NO_SLOT),
        PlaceView(pool_id=PoolId("t4"), gpu_type=GpuTypeId("T4"), candidates=(), reason=Reason.MEMORY_TOO_SMALL),
    )
    explain.show_site(explain.Moment(job=DONE, now_us=20_000_000, quote=GOES), "osaka-1", places)
    lines = capsys.readouterr().out.splitlines()
    why = f"the GPU is too small for the model at this shape. To change that: {remedy(Reason.MEMORY_TOO_SMALL)}."
    assert lines[2:5] == [
        "  What osaka-1 offers it, as of now, as if it were submitted again:",
        "  osaka-1/l4 (L4) would cost 1m01s, 51.5s more than tokyo-1/h100, where it would go now.",
        f"  osaka-1/t4 (T4) cannot take it: {why}",
    ]
    assert lines[6].split()[:2] == [">", "tokyo-1/h100"]
    there = (PlaceView(pool_id=PoolId("h100"), gpu_type=GpuTypeId("H100-SXM"), candidates=(CHOSEN,)),)
    explain.show_site(explain.Moment(job=QUEUED, now_us=3_000_000, quote=GOES), "tokyo-1", there)
    assert "  tokyo-1/h100 (H100-SXM) is where it would go now." in capsys.readouterr().out


def test_a_policy_that_does_not_choose_by_cost_says_so(capsys: Shown) -> None:
    told = DONE.attempts[0].explanation
    assert told is not None
    attempt = replace(DONE.attempts[0], explanation=replace(told, policy="rotating", rule="round-robin"))
    explain.show(explain.Moment(job=replace(DONE, attempts=(attempt,)), now_us=20_000_000))
    shown = capsys.readouterr().out
    assert "which had to fetch 24.0 GB first: chosen by round-robin, not by cost." in shown
    assert "Policy: rotating, which chooses by round-robin, not by cost" in shown
    outlook.show_quote("flux1-dev", replace(GOES, rule="random"))
    assert "which has to fetch 24.0 GB first: chosen by random, not by cost." in capsys.readouterr().out
    outlook.show_quote("flux1-dev", replace(WAITS, rule="load-time-only"))
    assert "before it for 1.50s more: chosen by load-time-only, not by cost." in capsys.readouterr().out
    outlook.show_quote("flux1-dev", replace(GOES, rule="cost"))
    assert "not by cost" not in capsys.readouterr().out


def test_every_term_has_its_words() -> None:
    assert set(costtable._TERMS) == set(TERM_NAMES)
    assert [name for _, terms, _, _ in costtable._PHASES for name in terms if name not in TERM_NAMES] == []


def test_whose_work_was_stopped_for_a_job_is_told(capsys: Shown) -> None:
    one = Stopped(job_id=JobId("j-9"), ordinal=Ordinal(1), site_id=SiteId("tokyo-1"), pool_id=PoolId("h100"), lost_us=41_000_000)
    costtable.stopped([one, replace(one, job_id=JobId("j-8"), lost_us=0)])
    assert "  Stopped for it: j-9 at tokyo-1/h100, 41.0s of its work to do again; j-8 at tokyo-1/h100" in capsys.readouterr().out
    costtable.stopped([replace(one, job_id=JobId(f"j-{number}")) for number in range(7)])
    assert capsys.readouterr().out.count("j-") == 3
    costtable.stopped([])
    assert not capsys.readouterr().out
    told = DONE.attempts[0].explanation
    assert told is not None
    kept = replace(told, stopped=(one,))
    assert explanation_from_proto(explanation_to_proto(kept)).stopped == (one,)
