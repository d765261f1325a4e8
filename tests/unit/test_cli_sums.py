"""Tables and sentences about costs can be checked by who reads them: lines add up, and what is explained is explained once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import costtable, explain, outlook
from atoll.model.quote import Eta, TimeLimits
from tests.unit.jobs_to_show import CHOSEN, DONE, FIRST, GOES, OTHER, QUEUED, WAITS, story_of

Shown = pytest.CaptureFixture[str]


def test_the_legend_is_told_once_where_it_is_asked_for(capsys: Shown) -> None:
    attempts = (FIRST, FIRST)
    explain.show(explain.Moment(job=replace(DONE, attempts=attempts), now_us=20_000_000), full=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("execution: the diffusion itself") == 1 and "-o wide" not in shown
    outlook.show_quote("flux1-dev", GOES, full=True)
    assert "money: price of the GPU" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("scale", [7, 1_003, 77_777, 1_234_567, 98_765_431])
def test_every_line_adds_up_as_it_is_printed(capsys: Shown, scale: int) -> None:
    """Whatever is lost in rounding: a tired person takes a sum that is wrong in its last figure for a bug."""
    names = ("queue", "fetch", "execution", "overlap", "money", "risk", "deadline")
    terms = tuple(scale * part for part in (3, 14, 15, -3, 9, 2, -26))
    found = replace(CHOSEN, terms_us=terms, total_us=sum(terms))
    costtable.candidates(names, [found, OTHER], costtable.Legend())
    line = capsys.readouterr().out.splitlines()[1]
    cells = [float(cell) for cell in line.split()[2:] if cell.lstrip("-")[0].isdigit()]
    cost, time, queue, fetch, execution, overlap, prices, money, risk, deadline = cells
    assert queue + fetch + execution + overlap == pytest.approx(time, abs=1e-9)
    assert money + risk + deadline == pytest.approx(prices, abs=1e-9)
    assert time + prices == pytest.approx(cost, abs=1e-9)
    assert cost == pytest.approx(sum(terms) / 1_000_000, rel=0.01, abs=0.0006)


def test_what_waits_behind_others_is_told_as_a_sum(capsys: Shown) -> None:
    outlook.show_quote("flux1-dev", WAITS)
    assert "    To its TIME of 6.00 come 1.50 for the 2 jobs before it: 7.50 in all." in capsys.readouterr().out.splitlines()
    outlook.show_quote("flux1-dev", replace(WAITS, turn_us=0, ahead=0))
    assert "To its TIME" not in capsys.readouterr().out


def test_a_job_that_is_due_later_waits_for_a_cheap_place_and_says_so(capsys: Shown) -> None:
    names = ("queue", "fetch", "stage", "execution", "money", "deadline")
    cheap = replace(OTHER, total_us=4_000_000, terms_us=(300_000_000, 0, 0, 60_000_000, 4_000_000, -360_000_000), wait_us=300_000_000)
    dear = replace(CHOSEN, total_us=9_000_000, terms_us=(0, 2_000_000, 3_000_000, 4_000_000, 9_000_000, -9_000_000))
    eta = Eta(begin_p50_us=303_000_000, begin_p90_us=400_000_000, end_p50_us=363_000_000, end_p90_us=460_000_000)
    quote = replace(WAITS, term_names=names, chosen=cheap, others=(dear,), turn_us=0, ahead=0, gpu_usd_micros=40_000)
    quote = replace(quote, predicted_us=360_000_000, eta=eta)
    limits = TimeLimits(now_us=3_000_000, asked_us=1_000_000, deadline_ms=3_600_000, start_timeout_ms=0)
    outlook.show_quote("flux1-dev", quote, limits=limits)
    why = "it is due only in 59m58s, and that is cheaper than tokyo-1/h100, which it could have at once: "
    why += "$0.0400 of GPU time instead of $0.0900."
    assert f"  It would wait for osaka-1/l4, free in about 5m00s: {why}" in capsys.readouterr().out.splitlines()
    job = replace(QUEUED, spec=replace(QUEUED.spec, deadline_ms=3_600_000))
    assert story_of(capsys, job, quote=quote)[1] == f"It waits for osaka-1/l4, free in about 5m00s: {why}"
    evicts = replace(dear, terms_us=(0, 2_000_000, 3_000_000, 4_000_000, 4_000_000, -9_000_000))
    outlook.show_quote("flux1-dev", replace(quote, others=(evicts,)), limits=limits)
    assert "which it could have at once: 5.00s of COST less." in capsys.readouterr().out
    # Where it goes at once and later than it could: the prices without the delay are what counts.
    told = outlook.comparison(names, replace(cheap, wait_us=0), [dear], 24 * 10**9, rule="cost")
    assert told == "5m51s later than fetching 24.0 GB to tokyo-1/h100, but cheaper, and early enough for its deadline"


def test_a_job_that_is_due_later_goes_behind_others_where_it_is_cheap_and_says_so(capsys: Shown) -> None:
    """Bound at once, but behind minutes of other work, while a dear place stands idle: that wants a reason."""
    names = ("queue", "fetch", "stage", "execution", "money", "deadline")
    cheap = replace(CHOSEN, total_us=9_000_000, terms_us=(287_000_000, 0, 0, 260_000_000, 9_000_000, -547_000_000))
    dear = replace(OTHER, total_us=37_000_000, terms_us=(0, 0, 0, 99_000_000, 36_000_000, -98_000_000), wait_us=0)
    limits = TimeLimits(now_us=3_000_000, asked_us=3_000_000, deadline_ms=3 * 3_600_000, start_timeout_ms=0)
    goes = replace(GOES, term_names=names, chosen=cheap, others=(dear,), gpu_usd_micros=30_000)
    outlook.show_quote("flux1-dev", goes, limits=limits)
    sooner = "It is due only in 3h00m and goes where it is cheapest: at osaka-1/l4 it would be done 7m28s sooner, "
    assert f"  {sooner}for $0.1200 of GPU time instead of $0.0300." in capsys.readouterr().out.splitlines()
    told = FIRST.explanation
    assert told is not None
    attempt = replace(FIRST, explanation=replace(told, term_names=names, chosen=cheap, others=(dear,)))
    job = replace(DONE, spec=replace(DONE.spec, deadline_ms=3 * 3_600_000), attempts=(attempt,))
    was = "It was due only in 3h00m and went where it is cheapest: at osaka-1/l4 it would have been done 7m28s sooner, "
    assert story_of(capsys, job)[1].startswith(was)
    assert story_of(capsys, job)[1].endswith("for 4.0 times the price of its GPU time.")
    # Nothing to explain where it goes where it is done soonest, or where nobody said when it is due.
    outlook.show_quote("flux1-dev", replace(goes, others=(replace(dear, terms_us=(500_000_000, 0, 0, 99_000_000, 1, 0)),)), limits=limits)
    outlook.show_quote("flux1-dev", goes)
    assert "It is due only" not in capsys.readouterr().out


@pytest.mark.parametrize("time_us", [35_165_000, 35_164_999, 9_994_999, 60_004_999])
def test_a_time_is_rounded_alike_wherever_it_is_told(capsys: Shown, time_us: int) -> None:
    """TIME of the table is the sum of predicted against actual, and what those before it are added to."""
    names, told_then = ("queue", "execution", "money"), FIRST.explanation
    assert told_then is not None
    for money_us in (4_000, 5_000, 6_000, 714_999):
        found = replace(CHOSEN, terms_us=(time_us // 3, time_us - time_us // 3, money_us), total_us=time_us + money_us)
        costtable.candidates(names, [found], costtable.Legend())
        told = capsys.readouterr().out.splitlines()[1].split()
        assert told[4] == f"{time_us / 1_000_000:.{len(told[4].partition('.')[2])}f}" or abs(float(told[4]) * 1_000_000 - time_us) <= 5_000
        costtable.before_it(names, found, 4_999, 1)
        told_again = capsys.readouterr().out.split()
        assert told_again[4] == told[4]
        attempt = replace(FIRST, leased_us=0, ended_us=time_us, predicted_us=time_us)
        costtable.phases(attempt, replace(told_then, chosen=found, term_names=names))
        (whole,) = [line for line in capsys.readouterr().out.splitlines() if "all of it" in line]
        assert whole.split()[3] == told[4]
