"""Reports: which runs are compared with which, what the page holds, and what a terminal shows."""

from __future__ import annotations

import builtins
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.model.errors import FieldError
from sims.report.html import page, write_page
from sims.report.land import land_points
from sims.report.reading import Report, read_report
from sims.results.parquet import JOBS_FILE, SITES_FILE, MissingExtraError
from tests.unit.made_results import made_metadata, made_places, write_made

Shown = pytest.CaptureFixture[str]
PLACES = made_places(5)
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\x1b[31m[bold]"


def _made(folder: Path, *, seed: int = 1, policy: str = "default", slowness: int = 1000, count: int = 300, **changes: Any) -> Path:
    metadata = replace(made_metadata(seed, policy, places=PLACES), **changes)
    return write_made(
        folder / f"{policy[:9].replace('/', '_')}-{seed}-{metadata.load_milli}", metadata, slowness=slowness, count=count, samples=12
    )


def _study(folder: Path, seeds: int) -> list[Path]:
    policies = {"default": 1000, "random": 1700}
    return [_made(folder, seed=seed, policy=name, slowness=slow) for name, slow in policies.items() for seed in range(1, seeds + 1)]


def _rows(folder: Path, file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / file).to_pylist()
    return found


def _shown(report: Report) -> str:
    """The page without what no person reads."""
    return re.sub(r"<script.*?</script>", "", page(report), flags=re.DOTALL)


def test_curves_are_latencies_of_the_file(tmp_path: Path) -> None:
    folders = [_made(tmp_path, seed=seed, count=1_500) for seed in (1, 2)]
    rows = [row for folder in folders for row in _rows(folder, JOBS_FILE) if row["state"] == "succeeded"]
    found = read_report(folders).data["latency"]
    assert [curve["kind"] for curve in found] == ["image", "image-4k", "video"]
    for curve in found:
        us = sorted(row["ended_us"] - row["arrival_us"] for row in rows if row["kind"] == curve["kind"])
        assert curve["n"] == len(us) and curve["share"][-1] == 1 and curve["seconds"][-1] == us[-1] / 1e6
        assert len(curve["share"]) == min(len(us), 400)
        for seconds, share in zip(curve["seconds"], curve["share"], strict=True):
            assert seconds == us[round(share * len(us)) - 1] / 1e6


def test_seconds_and_dollars_are_sums_of_the_file(tmp_path: Path) -> None:
    folders = [_made(tmp_path, seed=seed) for seed in (1, 2)]
    rows = [row for folder in folders for row in _rows(folder, JOBS_FILE)]
    data = read_report(folders).data
    for bar in data["seconds"]:
        of_kind = [row for row in rows if row["kind"] == bar["kind"] and row["state"] == "succeeded"]
        assert bar["mean"] == {
            term: pytest.approx(sum(row[f"{term}_us"] for row in of_kind) / len(of_kind) / 1e6) for term in data["terms"]
        }
    succeeded = sum(row["state"] == "succeeded" for row in rows)
    usd = dict(zip(data["cost"]["gpu_types"], data["cost"]["usd"]["default"], strict=True))
    for gpu_type in usd.keys() - {"other"}:
        assert usd[gpu_type] == pytest.approx(sum(r["price_usd_micros"] for r in rows if r["gpu_type"] == gpu_type) / 1e3 / succeeded)
    assert sum(usd.values()) == pytest.approx(sum(row["price_usd_micros"] for row in rows) / 1e3 / succeeded)
    assert len(usd) <= 8


def test_sites_over_time_are_those_of_the_file(tmp_path: Path) -> None:
    folder = _made(tmp_path)
    rows, (run,) = _rows(folder, SITES_FILE), read_report([folder]).data["runs"]
    longitudes = {place.site_id: place.longitude_micro_deg for place in PLACES}
    assert run["sites"] == sorted(longitudes, key=longitudes.__getitem__)
    for row in rows:
        column = run["hours"].index(row["at_us"] / 3.6e9)
        assert run["utilisation"][run["sites"].index(row["site_id"])][column] == row["slots_busy"] / row["slots"]
    for name in ("cold_starts", "evictions"):
        assert run[name] == [sum(row[name] for row in rows if row["at_us"] == hour * 3.6e9) for hour in run["hours"]]
    jobs = _rows(folder, JOBS_FILE)
    assert {site["site"]: site["jobs"] for site in run["map"]} == {name: sum(r["site_id"] == name for r in jobs) for name in longitudes}


def test_a_long_run_has_no_more_moments_than_a_screen_shows(tmp_path: Path) -> None:
    folder = write_made(tmp_path, made_metadata(places=PLACES), count=50, samples=1_000)
    (run,) = read_report([folder]).data["runs"]
    assert len(run["hours"]) == 200 and {len(line) for line in run["utilisation"]} == {200}
    rows = _rows(folder, SITES_FILE)
    assert sum(run["cold_starts"]) == sum(row["cold_starts"] for row in rows)
    first = [row for row in rows if row["site_id"] == run["sites"][0]][:5]
    assert run["utilisation"][0][0] == sum(row["slots_busy"] for row in first) / sum(row["slots"] for row in first)


def test_warm_up_is_in_no_chart(tmp_path: Path) -> None:
    folder = _made(tmp_path, warm_up_us=12 * 3_600_000_000)
    rows = _rows(folder, JOBS_FILE)
    late = [row for row in rows if row["arrival_us"] >= 12 * 3_600_000_000]
    report = read_report([folder])
    assert 0 < report.comparison.groups[0].runs[0].figures.jobs == len(late) < len(rows)
    assert sum(curve["n"] for curve in report.data["latency"]) == sum(row["state"] == "succeeded" for row in late)


def _compare(report: Report) -> dict[str, Any]:
    return {metric: one for (group, metric), one in report.comparison.differences.items() if group == "random"}


def test_policies_are_compared_seed_by_seed_with_the_first(tmp_path: Path) -> None:
    report = read_report(_study(tmp_path, 3))
    assert [(group.name, len(group.runs)) for group in report.comparison.groups] == [("default", 3), ("random", 3)]
    found = _compare(report)["cold_start_share"]
    by_policy = [[run.figures.cold_start_share or 0 for run in group.runs] for group in report.comparison.groups]
    assert found.n == 3 and found.mean == pytest.approx(sum(b - a for a, b in zip(*by_policy, strict=True)) / 3)
    text = _shown(report)
    assert "n = 3 seeds" in text and "p = " in text and "▼" in text


def test_two_seeds_say_nothing_of_chance(tmp_path: Path) -> None:
    report = read_report(_study(tmp_path, 2))
    assert report.comparison.differences == {}
    assert "p = " not in _shown(report) and "n = 2 seeds" in _shown(report)


def test_loads_are_compared_apart(tmp_path: Path) -> None:
    folders = [_made(tmp_path, policy=name, load_milli=load) for load in (500, 900) for name in ("default", "random")]
    comparison = read_report(folders).comparison
    names = [group.name for group in comparison.groups]
    assert names == ["default at load 0.5", "random at load 0.5", "default at load 0.9", "random at load 0.9"]
    bases = [comparison.baseline_of(group) for group in comparison.groups]
    assert [base.name if base else None for base in bases] == [None, names[0], None, names[2]]


def test_one_seed_twice_is_refused_by_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an error quotes a long value only in part
    first, second = _made(Path("a")), _made(Path("b"))
    with pytest.raises(FieldError, match=re.escape(f"another seed than 1, which {first} has")) as error:
        read_report([first, second])
    assert str(second) in str(error.value)


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    text = page(read_report([_made(tmp_path, policy=HOSTILE, trace=HOSTILE, trace_licence=HOSTILE, fleet=HOSTILE, digest=HOSTILE)]))
    assert "<img" not in text and "\x1b" not in text
    assert text.count("</script>") == 3  # the data, the library, the page's own
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;amp;" in text
    assert "default-src 'none'" in text and "://" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_page_of_a_run_without_any_job(tmp_path: Path) -> None:
    folder = write_made(tmp_path, made_metadata(places=()), count=0, samples=0)
    text = page(read_report([folder]))
    assert "<b>0</b> jobs" in text and "nan" not in text.split('id="data">')[1].split("</script>")[0].lower()


def test_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report([_made(tmp_path)])
    target = tmp_path / "pages" / "report.html"
    write_page(report, target)
    before = target.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(report, target)
    assert target.read_bytes() == before and list(target.parent.iterdir()) == [target]


def test_a_missing_extra_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report([_made(tmp_path)])
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed: .*pip install 'atoll\[sim\]'"):
        read_report([tmp_path / "default-1-900"])
    monkeypatch.undo()
    monkeypatch.setattr(
        "importlib.resources.files", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)) if name == "plotly" else tmp_path
    )
    (tmp_path / "page.css").write_text("")
    with pytest.raises(MissingExtraError, match="plotly is not installed"):
        page(report)


def test_land_is_where_it_is() -> None:
    points = set(land_points())
    assert {(13, 53), (-99, 39), (135, -25), (25, -29)} <= points  # by Berlin, in Kansas, in Australia, in South Africa
    assert not {(-31, 31), (-151, 1), (81, -31), (-179, -59)} & points  # oceans


def _ran(shown: Shown, *arguments: object) -> tuple[int, str, str]:
    shown.readouterr()
    code = main(["sim", "report", *map(str, arguments)])
    captured = shown.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_command_prints_a_screen_and_writes_a_page(tmp_path: Path, capsys: Shown) -> None:
    target = tmp_path / "report.html"
    code, out, err = _ran(capsys, _made(tmp_path), "--out", target)
    assert code == 0 and err == f"wrote {target}\n" and target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(out.splitlines()) <= 24
    for part in ("synthetic fleet", "image-4k", "cold starts", "pooling efficiency 92.5 %", "execution", "sites busy"):
        assert part in out


def test_command_compares(tmp_path: Path, capsys: Shown) -> None:
    code, out, _ = _ran(capsys, *_study(tmp_path, 3))
    assert code == 0 and re.search(r"deadlines missed +\d+\.\d % +\d+\.\d % +\+\d+\.\d points\*", out)


def test_command_gives_figures_to_programs(tmp_path: Path, capsys: Shown) -> None:
    _, out, _ = _ran(capsys, *_study(tmp_path, 3), "-o", "json")
    found = json.loads(out)
    assert [(run["policy"], run["seed"]) for run in found["runs"]] == [
        (policy, seed) for policy in ("default", "random") for seed in (1, 2, 3)
    ]
    assert {run["figures"]["jobs"] for run in found["runs"]} == {300}
    one = next(one for one in found["differences"] if one["metric"] == "deadline_miss_share")
    assert (one["policy"], one["baseline"], one["n"]) == ("random", "default", 3) and one["low"] < one["mean"] < one["high"]


def test_names_from_outside_do_not_reach_a_terminal_raw(tmp_path: Path, capsys: Shown) -> None:
    _, out, _ = _ran(capsys, _made(tmp_path / "a", policy=HOSTILE, trace=HOSTILE), _made(tmp_path / "b", policy="x"))
    assert "\x1b" not in out and "[bold]" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "result is 'nowhere': expected a folder that `atoll sim run --out` wrote"),
        ((".",), "there is no jobs.parquet"),
        (("good", "--out", "."), "--out is '.': expected a file"),
        (("good", "--out", "good/jobs.parquet/x.html"), "cannot write good/jobs.parquet/x.html"),
        (("good", "-o", "name"), "a report has no name"),
        ((), "Missing argument"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _made(tmp_path).rename(tmp_path / "good")
    code, _, err = _ran(capsys, *arguments)
    assert code == Exit.USAGE and told in err
