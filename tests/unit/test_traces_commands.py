"""`atoll sim trace`: what its verbs write and say, and how they end when something is wrong."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.cli.sim.counting import counted
from atoll.cli.sim.recording import traced
from atoll.model.job import JobState
from sims.traces.reading import TraceFile
from sims.traces.writing import write_trace
from tests.unit.jobs_to_show import QUEUED
from tests.unit.test_traces_records import DIFFUSION_HEAD, diffusion_row
from tests.unit.traces_made import META, jobs, written

Shown = pytest.CaptureFixture[str]


def ran(shown: Shown, *arguments: object) -> tuple[int, str, str]:
    shown.readouterr()
    code = main(["sim", "trace", *map(str, arguments)])
    captured = shown.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_generate_inspect_convert(tmp_path: Path, capsys: Shown) -> None:
    day, copy, sorted_again = tmp_path / "day.parquet", tmp_path / "day.csv.gz", tmp_path / "day.jsonl"
    assert ran(capsys, "generate", day, "--hours", "0.5", "--seed", "3", "--deadlines")[0] == 0
    _, out, _ = ran(capsys, "inspect", day, "-o", "json")
    found = json.loads(out)
    assert found["jobs"] == len(list(TraceFile(day).jobs()))
    assert found["settings"]["seed"] == "3" and found["licence"] and found["synthesised"] == ["everything"]
    assert found["with_deadline_share"] == 1 and found["skipped"] == {} and found["unknown_models"] == []
    assert ran(capsys, "convert", day, copy)[0] == 0
    assert ran(capsys, "convert", copy, sorted_again, "--sort")[0] == 0
    assert list(TraceFile(sorted_again).jobs()) == list(TraceFile(day).jobs())
    assert TraceFile(sorted_again).meta.source == TraceFile(day).meta.source


def test_a_record_with_more_models_and_more_load(tmp_path: Path, capsys: Shown) -> None:
    rows = "".join(diffusion_row(number * 60, f"G{number % 7}", f"M{number % 5}") for number in range(50))
    record, trace = written(tmp_path, DIFFUSION_HEAD + rows, "requests.csv"), tmp_path / "trace.parquet"
    assert ran(capsys, "convert", record, trace, "--from", "diffusion", "--copies", "3", "--speed", "10")[0] == 0
    _, out, _ = ran(capsys, "inspect", trace, "-o", "json")
    found = json.loads(out)
    assert (found["jobs"], found["models"], found["tenants"]) == (150, 15, 21)
    assert found["span_s"] == pytest.approx(49 * 60 / 10, abs=1)
    assert "for research or study" in found["licence"] and "origin" in found["synthesised"]
    assert found["settings"]["copies"] == "3" and found["settings"]["speed"] == "10"
    _, out, _ = ran(capsys, "inspect", trace)
    assert "licence: for research or study; not to be passed on" in out
    assert "made up: which model of the catalogue" in out


def test_skipped_rows_are_counted_and_said(tmp_path: Path, capsys: Shown) -> None:
    path = written(tmp_path, "arrival_us,model_id,tenant\n0,sd-1.5,t\n1,SD,t\n2,none,t\n")
    code, out, err = ran(capsys, "inspect", path)
    assert code == Exit.USAGE and not out
    assert err.startswith(f"error: {path}:3: model_id is 'SD': expected 1 to 63 of a-z")
    code, out, err = ran(capsys, "inspect", path, "--skip-bad", "-o", "json")
    assert code == 0 and json.loads(out)["skipped"] == {"model_id": 1}
    assert "skipped 1 rows, 'model_id'" in err
    assert json.loads(out)["unknown_models"] == ["none"]
    code, _, err = ran(capsys, "inspect", path, "--skip-bad", "--known-models", "-o", "json")
    assert code == 0 and "skipped 2 rows, 'model_id'" in err


def test_unsorted_rows_are_refused_and_can_be_sorted(tmp_path: Path, capsys: Shown) -> None:
    path = written(tmp_path, "arrival_us,model_id,tenant\n5,m,t\n4,m,u\n")
    code, _, err = ran(capsys, "convert", path, tmp_path / "out.csv")
    assert code == Exit.USAGE and "'atoll sim trace convert --sort' puts rows in order" in err
    assert not (tmp_path / "out.csv").exists()
    assert ran(capsys, "convert", path, tmp_path / "out.csv", "--sort")[0] == 0
    assert [job.arrival_us for job in TraceFile(tmp_path / "out.csv").jobs()] == [4, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "none.csv"], "FILE is 'none.csv': expected a file that exists"),
        (["inspect", "trace.csv", "--rows-max", "3"], "trace.csv:6: rows is 4: expected at most 3 rows; --rows-max allows more"),
        (["inspect", "trace.csv", "--rows-max", "0"], "--rows-max is '0': expected a whole number from 1"),
        (["convert", "trace.csv", "out.txt"], "FILE is 'out.txt': expected a name that ends in one of .parquet, .csv"),
        (["convert", "trace.csv", "trace.csv"], "OUT is 'trace.csv': expected another file than FILE"),
        (["convert", "trace.csv", "nowhere/out.csv"], "FILE is 'nowhere/out.csv': expected a place that can be written"),
        (["convert", "trace.csv", "out.csv", "--from", "filly"], "--from is 'filly': expected one of atoll, diffusion"),
        (
            ["convert", "trace.csv", "out.csv", "--from", "philly"],
            "cluster; is it another record (--from)?",
        ),
        (["convert", "trace.csv", "out.csv", "--video-share", "0.1"], "--video-share is '0.1': expected only with --from diffusion"),
        (
            ["convert", "trace.csv", "out.csv", "--from", "diffusion", "--video-share", "8"],
            "--video-share is '8': expected a number from 0",
        ),
        (["convert", "trace.csv", "out.csv", "--copies", "many"], "--copies is 'many': expected a whole number from 1 to 500"),
        (["convert", "trace.csv", "out.csv", "--speed", "nan"], "--speed is 'nan': expected a number from 0.001"),
        (["generate", "out.csv", "--models", "0"], "--models is '0': expected a whole number from 1 to 9000"),
        (["generate", "out.csv", "--hours", "0.01", "--jobs-per-hour", "0.01"], "these settings: no job came out of it"),
        (["generate", "out.csv", "--4k-share", "2"], "--4k-share is '2': expected a number from 0 to 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(Path("trace.csv"), META, jobs(50))
    code, out, err = ran(capsys, *arguments)
    assert code == Exit.USAGE and not out
    assert said in err.splitlines()[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.csv"]


def test_a_recorded_job_took_as_long_as_it_ran() -> None:
    """From its start to its end; of one without a result nobody knows how long it would have taken."""
    done = replace(QUEUED, state=JobState.SUCCEEDED, started_us=3_000_000, ended_us=7_500_000)
    assert traced(done).measured_us == 4_500_000
    assert traced(replace(done, state=JobState.FAILED)).measured_us == traced(QUEUED).measured_us == 0


def test_without_the_extra_parquet_is_refused_and_the_rest_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    importing = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "pyarrow":
            raise ImportError(name)
        return importing(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = ran(capsys, "generate", tmp_path / "day.parquet", "--hours", "0.1")
    assert code == Exit.USAGE
    assert "pyarrow is 'not installed': expected the extra 'sim' for Parquet: pip install 'atoll[sim]'" in err
    assert ran(capsys, "generate", tmp_path / "day.csv", "--hours", "0.1")[0] == 0
    assert ran(capsys, "inspect", tmp_path / "day.csv")[0] == 0


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("atoll.cli.sim.counting._EVERY_S", 0.0)
    assert list(counted(range(5_000), "read", 5_000)) == list(range(5_000))
    assert "2,000 of about 5,000 jobs read" in capsys.readouterr().err
