"""What the command line reads and prints: figures, forms, explanations, errors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from atoll.cli import arguments, figures, progress
from atoll.cli.jobs import JOBS
from atoll.cli.output import Form, plain, printable, show_list, show_one
from atoll.cli.reasons import meaning, remedy
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.errors import FieldError
from atoll.model.job import JobState
from atoll.model.placement import Awaits, Reason
from atoll.model.quote import Eta
from tests.unit.jobs_to_show import DONE, OTHER, QUEUED, SPEC

# Long before the ETA, just after half of such jobs are done, and after nine tenths are.
TIMES = (1_000_000, 9_010_000, 13_000_000)


@pytest.mark.parametrize(
    ("text", "expected_ms"), [("90s", 90_000), ("10m", 600_000), ("1h30m", 5_400_000), ("2d", 172_800_000), ("250ms", 250), ("1.5s", 1_500)]
)
def test_durations_are_read(text: str, expected_ms: int) -> None:
    assert arguments.duration_ms("--deadline", text) == expected_ms


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "5 minutes", "nan", "1m1h", "8d", "0s", "1e3s", "9" * 400 + "s"])
def test_durations_that_are_none_name_option_value_and_remedy(text: str) -> None:
    with pytest.raises(FieldError, match=r"^--deadline is .*: expected a duration such as 90s, 10m or 1h30m"):
        arguments.duration_ms("--deadline", text)


def test_sizes_rates_and_prices_are_read() -> None:
    assert arguments.size_px("--size", "1280x720") == (1280, 720)
    assert arguments.bytes_per_s("--wan", "10Gbps") == 1_250_000_000
    assert arguments.bytes_per_s("--wan", "1.5GB/s") == 1_500_000_000
    assert arguments.price_limit_usd("--max-price", "$0.25") == arguments.price_usd("--price", "0.25") == 0.25
    assert arguments.names(["a,b", "c"]) == ("a", "b", "c")


@pytest.mark.parametrize("text", ["0", "$0", "0.0000004", "-0.1", "nan", "", "cheap", "1000001"])
def test_a_price_that_would_mean_no_limit_is_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^--max-price is .*: expected dollars from 0\.000001 to 1000000; without the option"):
        arguments.price_limit_usd("--max-price", text)
    assert arguments.price_limit_usd("--max-price", None) is None


@pytest.mark.parametrize("text", ["", "1280", "x", "0x0", "-1x5", "1280x720x3", "99999x8", "16384x16384", "nanx1"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^--size is "):
        arguments.size_px("--size", text)


@pytest.mark.parametrize("text", ["10", "10Gb", "0bps", "fast", "-1Gbps", "999999999TB/s"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^--wan is .*10Gbps"):
        arguments.bytes_per_s("--wan", text)


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0s"),
        (250, "250us"),
        (340_000, "340ms"),
        (2_414_000, "2.41s"),
        (59_949_000, "59.9s"),
        (59_960_000, "1m00s"),
        (192_000_000, "3m12s"),
        (3_900_000_000, "1h05m"),
        (183_600_000_000, "2d03h"),
        (-340_000, "-340ms"),
    ],
)
def test_durations_are_shown(us: int, shown: str) -> None:
    assert figures.duration(us) == shown


def test_bytes_and_money_are_shown() -> None:
    assert [figures.size(value) for value in (0, 812, 8_300_000, 24_100_000_000, 999_600)] == [
        "0 B",
        "812 B",
        "8.30 MB",
        "24.1 GB",
        "1.00 MB",
    ]
    assert [figures.money(value) for value in (0, 40, 2_100, 4_128_000)] == ["$0.00", "<$0.0001", "$0.0021", "$4.13"]


def test_sizes_that_are_compared_can_be_told_apart() -> None:
    for one, other, shown in (
        (33_740_000_000, 33_715_493_274, ("33.74 GB", "33.72 GB")),
        (100_000_000_000, 80_000_000_000, ("100 GB", "80.0 GB")),
        (80_000_000_000, 80_000_000_000, ("80.0 GB", "80.0 GB")),
        (101_400_000_000, 101_380_000_000, ("101.40 GB", "101.38 GB")),
    ):
        assert figures.sizes(one, other) == shown


def test_every_reason_says_what_would_have_to_change() -> None:
    assert all(meaning(reason) != reason.replace("_", " ") and remedy(reason) for reason in Reason)


def test_texts_of_others_cannot_drive_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = replace(QUEUED, spec=replace(SPEC, prompt="\x1b[2Jboo\n\x07\u202e"))
    show_one(Form.WIDE, JOBS, hostile)
    shown = capsys.readouterr().out
    assert "boo" in shown
    assert not set("\x1b\x07\u202e") & set(shown)
    assert len(shown.splitlines()) == 2
    assert printable("plain \N{LATIN SMALL LETTER E WITH ACUTE}") == "plain \N{LATIN SMALL LETTER E WITH ACUTE}"


def test_a_table_has_columns(capsys: pytest.CaptureFixture[str]) -> None:
    eta = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=9_000_000, end_p90_us=12_000_000)
    running = replace(
        DONE, state=JobState.RUNNING, eta=eta, as_of_us=5_000_000, attempts=(replace(DONE.attempts[0], ended_us=0),), result=None
    )
    show_list(Form.TABLE, JOBS, [replace(QUEUED, as_of_us=12_000_000), running, DONE])
    assert capsys.readouterr().out.splitlines() == [
        "JOB   MODEL       STATE       SITE      WEIGHTS   PREDICTED        ETA    TOOK   TRIES     AGE",
        "j-1   flux1-dev   queued      -         -                 -          -       -       0   11.0s",
        "j-1   flux1-dev   running     tokyo-1   cold          10.0s   in 4.00s       -       1   4.00s",
        "j-1   flux1-dev   succeeded   tokyo-1   cold          10.0s          -   11.0s       1       -",
    ]


def test_the_wide_table_says_why_a_job_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert QUEUED.deferral is not None
    waits = replace(QUEUED, as_of_us=1_500_000, deferral=replace(QUEUED.deferral, waits_for=OTHER))
    show_list(Form.WIDE, JOBS, [QUEUED, waits, replace(QUEUED, deferral=None)])
    heading, never, soon, new = capsys.readouterr().out.splitlines()
    at = heading.index("WHY")
    assert never[at:].startswith("no site of this fleet can ever run it as it is: ")
    assert soon[at:].startswith("waiting for osaka-1, free in about 1.50s  ") and new[at] == "-"


def test_programs_get_the_whole_noun(capsys: pytest.CaptureFixture[str]) -> None:
    show_one(Form.JSON, JOBS, DONE)
    as_json = json.loads(capsys.readouterr().out)
    show_list(Form.YAML, JOBS, [DONE])
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    assert as_yaml == [as_json] == [plain(DONE)]
    assert as_json["state"] == "succeeded"
    assert as_json["attempts"][0]["explanation"]["chosen"]["terms_us"][1] == 2_000_000
    assert as_json["result"]["artifacts"][0]["name"] == "0.png"
    show_list(Form.NAME, JOBS, [DONE])
    assert capsys.readouterr().out == "job/j-1\n"


def test_nothing_is_said_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    show_list(Form.TABLE, JOBS, [], empty="no jobs")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "no jobs\n")


def test_sentences_say_where_a_job_stands() -> None:
    running = replace(
        DONE,
        state=JobState.RUNNING,
        result=None,
        attempts=(replace(DONE.attempts[0], state=AttemptState.RUNNING, ended_us=0, steps_done=3),),
    )
    failed = replace(DONE, state=JobState.FAILED, failure=Failure(kind=FailureKind.OUT_OF_MEMORY, message="12 GB\nneeded"))
    assert progress.sentence(QUEUED).startswith("is queued: no site of this fleet can ever run it as it is: it is a twin")
    assert progress.sentence(running) == "is running at tokyo-1, step 3 of 28"
    eta = Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=9_000_000, end_p90_us=12_000_000)
    assert progress.sentence(replace(running, eta=eta, as_of_us=5_000_000)).endswith("step 3 of 28, done in about 4.00s")
    assert progress.sentence(replace(running, eta=eta, as_of_us=9_010_000)).endswith("step 3 of 28")
    assert progress.sentence(replace(running, eta=eta, as_of_us=9_500_000)).endswith("step 3 of 28, late by 500ms")
    cells = [column.cell(replace(running, eta=eta, as_of_us=at_us)) for column in JOBS.columns if column.title == "ETA" for at_us in TIMES]
    assert cells == ["in 8.00s", "now", "late by 4.00s"]
    assert progress.sentence(DONE) == "succeeded at tokyo-1 in 11.0s, predicted 10.0s (+10 %)"
    assert progress.sentence(failed) == "failed: out of memory: 12 GB needed"
    assert progress.sentence(replace(QUEUED, state=JobState.CANCELLED, cancel_reason="typo")) == "was cancelled: typo"
    assert progress.sentence(replace(QUEUED, state=JobState.EXPIRED)) == "expired"


def test_plain_progress_has_a_line_for_each_change_only(capsys: pytest.CaptureFixture[str]) -> None:
    running = replace(
        DONE, state=JobState.RUNNING, result=None, attempts=(replace(DONE.attempts[0], state=AttemptState.RUNNING, ended_us=0),)
    )
    with progress.PlainView() as view:
        for steps in range(5):
            view.changed(replace(running, attempts=(replace(running.attempts[0], steps_done=steps),)))
        view.changed(DONE)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["job/j-1 is running at tokyo-1", "job/j-1 succeeded at tokyo-1 in 11.0s, predicted 10.0s (+10 %)"]


def test_a_model_that_was_loading_is_not_called_warm(capsys: pytest.CaptureFixture[str]) -> None:
    told = DONE.attempts[0].explanation
    assert told is not None
    loading = replace(DONE.attempts[0], cold=False, explanation=replace(told, chosen=replace(told.chosen, awaits=Awaits.LOAD)))
    for attempt, said in ((DONE.attempts[0], "cold"), (replace(DONE.attempts[0], cold=False), "warm"), (loading, "loading")):
        assert progress.temperature(attempt) == said
        placed = replace(DONE, state=JobState.PLACED, result=None, attempts=(replace(attempt, state=AttemptState.LEASED, ended_us=0),))
        assert f" at tokyo-1 ({said}), predicted 10.0s" in progress.sentence(placed)
        show_list(Form.TABLE, JOBS, [placed])
        assert capsys.readouterr().out.splitlines()[1].split()[4] == said
