"""`atoll sim run`: figures of a run, kept or not; how it ends when it is interrupted or when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from sims.results.parquet import read_result
from tests.architecture.sources import REPOSITORY

Shown = pytest.CaptureFixture[str]
PATIENCE_S = 60.0

FLEET = """version: 1
sites:
- id: here
  region: Here
  wan_gbit_per_s: 10
  origin_gb_per_s: 5
  node: {memory_gb: 256, disk_cache_gb: 1000, disk_gb_per_s: 4}
  pools:
  - {id: a, gpu: A100-SXM4-80GB, nodes: 4, gpus_per_node: 2}
"""


def ran(shown: Shown, *arguments: object) -> tuple[int, str, str]:
    shown.readouterr()
    code = main(["sim", "run", *map(str, arguments)])
    captured = shown.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    gpu = next(line.partition(",")[0] for line in (REPOSITORY / "atoll/data/gpus.csv").read_text().splitlines() if line.startswith("A100"))
    Path("clusters.yaml").write_text(FLEET.replace("A100-SXM4-80GB", gpu))
    rows = "".join(f"{number * 4_000_000},sdxl-base-1.0--m{number % 3},t,Here\n" for number in range(30))
    Path("trace.csv").write_text("arrival_us,model_id,tenant,origin\n" + rows)
    return tmp_path


def test_figures_in_json_and_the_same_seed_the_same_digest(folder: Path, capsys: Shown) -> None:
    code, out, _ = ran(capsys, "trace.csv", "--out", "result", "-o", "json")
    assert code == 0
    found = json.loads(out)
    assert found["jobs"] == 30 and found["states"] == {"succeeded": 30}
    assert found["classes"]["image"]["p50_s"] > 0 and found["utilisation"] > 0
    kept = read_result(folder / "result")
    assert kept.metadata.digest == found["digest"]
    assert [row.number for row in sorted(kept.jobs(), key=lambda row: row.number)] == list(range(30))
    _, out, _ = ran(capsys, "trace.csv", "-o", "json")
    assert json.loads(out)["digest"] == found["digest"]
    _, out, _ = ran(capsys, "trace.csv", "-o", "json", "--seed", "1")
    assert json.loads(out)["digest"] != found["digest"]


def test_the_warm_up_is_in_no_figure(folder: Path, capsys: Shown) -> None:
    _, out, _ = ran(capsys, "trace.csv", "-o", "json", "--warm-up", "1m")
    assert json.loads(out)["jobs"] == 15


def test_a_person_sees_kinds_money_and_the_digest(folder: Path, capsys: Shown) -> None:
    code, out, _ = ran(capsys, "trace.csv", "--scale", "1/2", "--policy", "least-loaded")
    assert code == 0
    assert "30 jobs in" in out and "policy least-loaded" in out and "per 1,000 jobs" in out and "digest" in out


def test_a_result_says_where_nothing_lay(folder: Path, capsys: Shown) -> None:
    """It is passed on: names of files are of use to others, paths of this machine are not."""
    code, _, _ = ran(capsys, folder / "trace.csv", "--fleet", folder / "clusters.yaml", "--scale", "1/2", "--out", "result")
    metadata = read_result(Path("result")).metadata
    assert (code, metadata.trace, metadata.fleet) == (0, "trace.csv", "clusters.yaml x 1/2")
    assert str(folder) not in repr(metadata)


def test_a_load_is_what_was_asked_for(folder: Path, capsys: Shown) -> None:
    """Twice the load: the same jobs in half of the time."""
    spans = []
    for load in ("0.2", "0.4"):
        ran(capsys, "trace.csv", "--load", load, "--out", f"at-{load}", "--copies", "2")
        kept = read_result(Path(f"at-{load}"))
        arrivals = sorted((row.arrival_us, row.model_id) for row in kept.jobs())
        assert len(arrivals) == 60 and kept.metadata.load_milli == round(float(load) * 1_000)
        assert {model for _, model in arrivals} == {f"sdxl-base-1.0--m{n}{end}" for n in range(3) for end in ("", ".c1")}
        work_us = sum(row.ideal_execution_us for row in kept.jobs())
        spans.append(arrivals[-1][0])
        assert work_us / (spans[-1] * 8) == pytest.approx(float(load), rel=0.01)
    assert spans[0] == pytest.approx(2 * spans[1], rel=0.001)


def test_pooling_efficiency_is_found_and_shown(folder: Path, capsys: Shown) -> None:
    code, out, _ = ran(capsys, "trace.csv", "--ideal", "--warm-up", "20%", "--out", "result")
    metadata = read_result(Path("result")).metadata
    assert code == 0 and metadata.pooled_load_milli > 0 and metadata.ideal_load_milli > 0
    share = metadata.pooled_load_milli / metadata.ideal_load_milli
    assert f"pooling efficiency {share * 100:.1f} %" in out


def test_the_small_fleet_has_a_name(folder: Path, capsys: Shown) -> None:
    code, _, _ = ran(capsys, "trace.csv", "--fleet", "fleet-small", "--out", "result")
    sites = read_result(Path("result")).metadata.sites
    assert code == 0 and len(sites) == 36 and 600 < sum(site.slots for site in sites) < 700


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv"], "FILE is 'none.csv': expected a file that exists"),
        (["trace.csv", "--scale", "2"], "--scale is '2': expected a share above 0 and at most 1, such as 1/32"),
        (["trace.csv", "--scale", "0/3"], "--scale is '0/3'"),
        (["trace.csv", "--scale", "1/0"], "--scale is '1/0'"),
        (["trace.csv", "--scale", "nan"], "--scale is 'nan'"),
        (["trace.csv", "--seed", "-1"], "--seed is '-1': expected a whole number from 0"),
        (["trace.csv", "--sigma", "0"], "--sigma is '0': expected a number from 0.3 to 1"),
        (["trace.csv", "--warm-up", "600"], "--warm-up is '600': expected a duration such as 90s"),
        (["trace.csv", "--warm-up", "100%"], "--warm-up is '100%': expected a duration such as 10m, or a share"),
        (["trace.csv", "--warm-up", "1h"], "warm-up is '3600000000 us': expected less than the trace"),
        (["trace.csv", "--load", "0"], "--load is '0': expected a number from 0.001 to 10"),
        (["trace.csv", "--load", "inf"], "--load is 'inf': expected a number"),
        (["once.csv", "--load", "0.5"], "load is '0.5': expected a trace whose jobs arrive one after the other"),
        (["trace.csv", "--copies", "0"], "--copies is '0': expected a whole number from 1"),
        (["trace.csv", "--sample", "1ms"], "--sample is '1ms'"),
        (["trace.csv", "--weather", "storm"], "--weather is 'storm': expected one of calm, ordinary, rough, hazy"),
        (["trace.csv", "--policy", "defalt"], "policy is 'defalt': expected a file that exists"),
        (["trace.csv", "--fleet", "no.yaml"], "no.yaml"),
        (["trace.csv", "--fleet", "trace.csv"], "trace.csv:1"),
        (["trace.csv", "--out", "trace.csv"], "--out is 'trace.csv': expected a folder"),
        (["unknown.csv"], "unknown.csv:2: model_id is 'gpt'"),
        (["unsorted.csv"], "unsorted.csv:3: arrival_us is 4"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(folder: Path, capsys: Shown, arguments: list[str], said: str) -> None:
    Path("unknown.csv").write_text("arrival_us,model_id,tenant\n0,gpt,t\n")
    Path("unsorted.csv").write_text("arrival_us,model_id,tenant\n5,sd-1.5,t\n4,sd-1.5,t\n")
    Path("once.csv").write_text("arrival_us,model_id,tenant\n0,sd-1.5,t\n0,sd-1.5,t\n")
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = ran(capsys, *arguments, *([] if "--out" in arguments else ["--out", "result"]))
    assert code in {Exit.USAGE, Exit.NOT_FOUND} and not out
    assert said in err.splitlines()[0]
    assert [name for name in sorted(path.name for path in folder.iterdir()) if name != "result"] == before
    assert not Path("result").exists() or not list(Path("result").iterdir())


def test_interrupted_it_ends_with_one_line_and_keeps_nothing(folder: Path) -> None:
    rows = "".join(f"{number * 100_000},sdxl-base-1.0--m{number % 40},t,\n" for number in range(200_000))
    Path("long.csv").write_text("arrival_us,model_id,tenant,origin\n" + rows)
    command = [sys.executable, "-m", "atoll.cli", "sim", "run", "long.csv", "--out", "result"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        until_s = time.monotonic() + PATIENCE_S
        while len(list(Path("result").glob("*"))) < 2 and time.monotonic() < until_s:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == Exit.INTERRUPTED and not out
    assert len(err.strip().splitlines()) <= 1 and "Traceback" not in err
    assert not list(Path("result").iterdir())
