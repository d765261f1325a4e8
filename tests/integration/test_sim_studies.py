"""`atoll sim compare` and `atoll sim sweep`: the same figures whoever does the work, nothing done twice, no half run taken for whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from sims.results.parquet import JOBS_FILE, read_result
from sims.study.tasks import read_found
from tests.architecture.sources import REPOSITORY

Shown = pytest.CaptureFixture[str]
PATIENCE_S = 120.0
FLEET = """version: 1
sites:
- id: here
  region: Here
  wan_gbit_per_s: 10
  origin_gb_per_s: 5
  node: {memory_gb: 256, disk_cache_gb: 1000, disk_gb_per_s: 4}
  pools:
  - {id: a, gpu: A100-80-SXM, nodes: 2, gpus_per_node: 2}
"""
STUDY = """version: 1
trace: trace.csv
policies: [default, random]
loads: [0.2, 0.4]
seeds: 2
"""


def ran(shown: Shown, *arguments: object) -> tuple[int, str, str]:
    shown.readouterr()
    code = main(["sim", *map(str, arguments)])
    captured = shown.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def answer(shown: Shown, *arguments: object) -> dict[str, Any]:
    code, out, err = ran(shown, *arguments, "-o", "json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("clusters.yaml").write_text(FLEET)
    rows = "".join(f"{number * 4_000_000},sdxl-base-1.0--m{number % 3},t,Here\n" for number in range(30))
    Path("trace.csv").write_text("arrival_us,model_id,tenant,origin\n" + rows)
    Path("study.yaml").write_text(STUDY)
    return tmp_path


def test_policies_are_compared_seed_by_seed_on_any_number_of_processes(capsys: Shown) -> None:
    asked = ("compare", "trace.csv", "--policies", "default,random", "--loads", "0.5", "--seeds", "3", "--warm-up", "10%")
    alone = answer(capsys, *asked, "--workers", "1")
    together = answer(capsys, *asked, "--workers", "3", "--out", "kept")
    assert alone["digest"] == together["digest"] and alone["jobs"] == 6 * 27
    assert [(run["policy"], run["seed"], run["load_milli"]) for run in together["runs"]] == [
        (policy, seed, 500) for policy in ("default", "random") for seed in range(3)
    ]
    mean = next(one for one in together["differences"] if one["metric"] == "mean_s")
    assert (mean["policy"], mean["baseline"], mean["n"]) == ("random", "default", 3)
    assert mean["low"] <= mean["mean"] <= mean["high"] and 0 < mean["p_adjusted"] <= 1
    by_policy = {policy: [run["metrics"]["mean_s"] for run in alone["runs"] if run["policy"] == policy] for policy in ("default", "random")}
    assert mean["mean"] == pytest.approx(sum(b - a for a, b in zip(by_policy["default"], by_policy["random"], strict=True)) / 3)
    code, out, _ = ran(capsys, *asked, "--out", "kept")
    assert code == 0 and "95 % interval" in out and together["digest"] in out


def test_a_sweep_goes_on_where_it_was_stopped(capsys: Shown) -> None:
    whole = answer(capsys, "sweep", "study.yaml", "--workers", "1", "--out", "whole")
    runs = sorted(path.name for path in Path("whole/runs").iterdir())
    assert len(runs) == 8
    written = {name: (Path("whole/runs") / name / JOBS_FILE).stat().st_mtime_ns for name in runs}
    # One is gone, one is half written: its sites are there, its jobs have another name.
    lost, half, *kept = runs
    (Path("whole/runs") / lost / JOBS_FILE).unlink()
    torn = Path("whole/runs") / half / JOBS_FILE
    torn.write_bytes(torn.read_bytes()[:1_000])
    again = answer(capsys, "sweep", "study.yaml", "--workers", "2", "--out", "whole")
    assert again["digest"] == whole["digest"]
    assert [name for name in kept if (Path("whole/runs") / name / JOBS_FILE).stat().st_mtime_ns != written[name]] == []
    # More seeds: what is there is not run again; another trace is another study.
    Path("study.yaml").write_text(STUDY.replace("seeds: 2", "seeds: 3"))
    assert len(answer(capsys, "sweep", "study.yaml", "--workers", "2", "--out", "whole")["runs"]) == 12
    assert [name for name in kept if (Path("whole/runs") / name / JOBS_FILE).stat().st_mtime_ns != written[name]] == []
    Path("trace.csv").write_text(Path("trace.csv").read_text() + "120000000,sd-1.5,t,Here\n")
    answer(capsys, "sweep", "study.yaml", "--workers", "2", "--out", "whole")
    assert len(list(Path("whole/runs").iterdir())) == 24


def test_interrupted_it_says_so_and_what_is_done_stays(capsys: Shown) -> None:
    Path("study.yaml").write_text(STUDY.replace("seeds: 2", "seeds: 60"))
    command = [sys.executable, "-m", "atoll.cli", "sim", "sweep", "study.yaml", "--workers", "2"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as running:  # fmt: skip
        until_s = time.monotonic() + PATIENCE_S
        while len(list(Path("study/runs").glob(f"*/{JOBS_FILE}"))) < 2 and time.monotonic() < until_s:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: all of them
        out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == Exit.INTERRUPTED and not out
    assert err.splitlines()[0] == "what is done is kept in study; the same command goes on from there" and len(err.splitlines()) <= 2
    whole = [path.parent for path in Path("study/runs").glob(f"*/{JOBS_FILE}")]
    assert 2 <= len(whole) < 240 and all(read_result(path).metadata.digest for path in whole)
    assert not list(Path("study/runs").glob("*/*.partial"))


def test_the_best_of_equally_many_settings_is_what_is_compared(capsys: Shown) -> None:
    Path("study.yaml").write_text(
        STUDY.replace("[0.2, 0.4]", "[0.4]").replace("seeds: 2", "seeds: 1")
        + "tune: {by: mean_s, budget: 3, load: 0.4, grid: {slot_depth: [1, 2], moves_max: [0, 2]}}\n"
    )
    found = answer(capsys, "sweep", "study.yaml", "--workers", "2")
    for one in found["tuned"]:
        assert len(one["tried"]) == 3 and len({json.dumps(setting) for setting in one["tried"]}) == 3
        assert one["tried"][0]["policy"] == one["policy"]
        least = min(setting["value"] for setting in one["tried"])
        best = next(setting for setting in one["tried"] if setting["value"] == least)
        assert one["best"] == (one["policy"] if best["policy"] == one["policy"] else f"{one['policy']}.tuned")
        assert ran(capsys, "run", "trace.csv", "--policy", f"study/best/{one['policy']}.yaml")[0] == 0
    assert [run["policy"] for run in found["runs"]] == [one["best"] for one in found["tuned"]]


def test_each_part_is_turned_off_in_its_turn(capsys: Shown) -> None:
    found = answer(capsys, "compare", "trace.csv", "--policies", "default", "--seeds", "1", "--ablate", "--workers", "2")
    names = [run["policy"] for run in found["runs"]]
    assert names[0] == "default" and {"default.no-execution", "default.no-money", "default.no-learning"} < set(names)
    assert len(names) == len(set(names)) > 15
    code, _, err = ran(capsys, "compare", "trace.csv", "--policies", "random", "--ablate")
    assert code == Exit.USAGE and "ablate is 'random': expected a policy that chooses by cost" in err


def test_pooling_efficiency_of_every_policy_and_a_search_that_goes_on(capsys: Shown) -> None:
    asked = ("compare", "trace.csv", "--policies", "default,random", "--seeds", "1", "--ideal", "--warm-up", "40%", "--out", "kept")
    found = answer(capsys, *asked, "--workers", "2")
    shares = {run["policy"]: run["metrics"]["pooling_efficiency"] for run in found["runs"]}
    assert 0 < shares["default"] <= 1.25 and 0 <= shares["random"] <= 1.25
    # The ideal stands beside them, with its own rows: no job waits for anything but a slot, and no slot has two.
    means = {run["policy"]: run["metrics"]["mean_s"] for run in found["runs"]}
    assert shares["ideal"] == 1 and means["ideal"] < min(means["default"], means["random"])
    (folder,) = Path("kept/runs").glob("ideal-*")
    kept_rows = read_result(folder)
    assert all(row.queue_us + row.execution_us == row.ended_us - row.arrival_us > 0 for row in kept_rows.jobs())
    assert max(row.slots_busy for row in kept_rows.sites()) > 0 and all(0 <= row.slots_busy <= row.slots for row in kept_rows.sites())
    for path in Path("kept/highest-loads").iterdir():
        first = read_found(path)
        assert first is not None
        met = [load for load, share in first.tried.items() if share >= 0.95]
        assert first.pooled_milli == max(met, default=0) and len(first.tried) <= 9
        # As if it had been stopped after three loads: those are believed, a share that no run would give among them.
        said = json.loads(path.read_text())
        kept = dict(list(said["tried"].items())[:3])
        path.write_text(json.dumps({**said, "pooled_milli": None, "tried": {**kept, "3": 0.123}}))
    assert answer(capsys, *asked, "--workers", "2")["runs"] == found["runs"]
    assert all((again := read_found(path)) is not None and again.tried[3] == 0.123 for path in Path("kept/highest-loads").iterdir())


CLUSTER = """
import sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}


@pytest.fixture
def cluster(short_path: Path) -> Iterator[str]:
    """The address of a Ray cluster of two cores, which ends when nobody speaks to its head any more."""
    command = [sys.executable, "-c", CLUSTER, str(short_path / "ray")]
    environment = {**os.environ, **TOKEN, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as head:
        assert head.stdin is not None and head.stdout is not None
        yield head.stdout.readline().strip()
        head.stdin.close()
        head.wait(PATIENCE_S)


def test_on_a_ray_cluster_it_is_the_same_study(capsys: Shown, cluster: str) -> None:
    here = answer(capsys, "sweep", "study.yaml", "--workers", "1", "--out", "here")
    # A process of its own: Ray reads its environment once.
    command = [sys.executable, "-m", "atoll.cli", "sim", "sweep", "study.yaml", "--ray", cluster, "--out", "there", "-o", "json"]
    environment = {**os.environ, **TOKEN, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == here["digest"]
    assert sorted(path.name for path in Path("here/runs").iterdir()) == sorted(path.name for path in Path("there/runs").iterdir())


def test_no_cluster_is_one_error(capsys: Shown) -> None:
    code, out, err = ran(capsys, "sweep", "study.yaml", "--ray", "127.0.0.1:1")
    assert code == Exit.UNAVAILABLE and not out
    assert err.splitlines()[0].startswith("error: no Ray cluster answers at 127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 2\ntrace: t\n", "study.yaml:1: version is 2: expected 1"),
        ("version: 1\n", "study.yaml:1: trace is 'missing': expected a trace's file"),
        (STUDY.replace("loads: [0.2, 0.4]", "loads: [0.2, x]"), "study.yaml:4: loads is 'x': expected a number"),
        (STUDY.replace("loads: [0.2, 0.4]", "loads: [0.2, 0.2]"), "study.yaml:4: loads is '0.2,0.2': expected each load once"),
        (STUDY.replace("loads: [0.2, 0.4]", "loads: []"), "study.yaml:4: loads is '0 entries': expected a list of 1 to 32"),
        (STUDY.replace("seeds: 2", "seeds: 0"), "study.yaml:5: seeds is '0': expected a whole number from 1"),
        (STUDY + "weather: storm\n", "study.yaml:6: weather is 'storm': expected one of calm, ordinary, rough, hazy"),
        (STUDY + "wheather: calm\n", "study.yaml:6: unknown key 'wheather', whose value is 'calm': did you mean 'weather'?"),
        (STUDY + "tune: {by: speed, budget: 2}\n", "study.yaml:6: tune.by is 'speed'"),
        (STUDY + "tune: {by: mean_s, budget: 2, grid: {slotdepth: [1]}}\n", "study.yaml:6: tune.grid.slotdepth is 'slotdepth'"),
        (STUDY + "tune: {by: mean_s, budget: 2, grid: {slot_depth: [1, 99]}}\n", "study.yaml:6: tune.grid.slot_depth is '99'"),
        (STUDY.replace("default, random", "default, rondom"), "policy is 'rondom'"),
        (STUDY.replace("trace.csv", "none.csv"), "FILE is 'none.csv'"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(capsys: Shown, text: str, said: str) -> None:
    Path("study.yaml").write_text(text)
    code, out, err = ran(capsys, "sweep", "study.yaml")
    assert code in {Exit.USAGE, Exit.NOT_FOUND} and not out
    assert said in err.splitlines()[0]
    assert not Path("study").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "default,default"], "--policies is 'default,default': expected policies of different names"),
        (["--policies", "default,,random"], "--policies is 'default,,random': expected 1 to 64 values"),
        (["--seeds", "0"], "--seeds is '0': expected a whole number from 1 to 1000"),
        (["--loads", "0.5;0.9"], "--loads is '0.5;0.9': expected a number from 0.001 to 10"),
        (["--workers", "0"], "--workers is '0': expected a whole number from 1"),
        (["--ideal", "--warm-up", "70s"], "warm-up is '70000000 us': expected less than the trace"),
        (["--workers", "2", "--ray", "auto"], "--workers is given with --ray"),
        (["--out", "trace.csv"], "--out is 'trace.csv': expected a folder"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line(capsys: Shown, arguments: list[str], said: str) -> None:
    code, out, err = ran(capsys, "compare", "trace.csv", *arguments)
    assert code == Exit.USAGE and not out
    assert said in err.splitlines()[0]
