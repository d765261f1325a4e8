"""`atoll sim fidelity`: the same jobs through real processes and through the simulator; and how it ends early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from atoll.cli.app import main
from atoll.cli.demo.processes import MARK
from atoll.cli.exits import Exit
from tests.architecture.sources import REPOSITORY

Shown = pytest.CaptureFixture[str]
PATIENCE_S = 60.0
JOBS = 80

# Two sites of one kind, and more of them than these jobs need: nobody waits long for anybody.
FLEET = """version: 1
sites:
- id: {name}
  region: {name}
  wan_gbit_per_s: 10
  origin_gb_per_s: 20
  node: {{memory_gb: 256, disk_cache_gb: 1000, disk_gb_per_s: 8}}
  pools:
  - {{id: a, gpu: H100-SXM, nodes: 1, gpus_per_node: 4}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a fleet and a trace of pictures."""
    monkeypatch.chdir(tmp_path)
    first, second = FLEET.format(name="one"), FLEET.format(name="two").split("sites:\n")[1]
    Path("fleet.yaml").write_text(first + second)
    rows = "".join(f"{number * 4_000_000},flux.1-dev,t{number % 3}\n" for number in range(JOBS))
    Path("trace.csv").write_text("arrival_us,model_id,tenant\n" + rows)
    return tmp_path


@pytest.mark.timeout(180)
def test_the_same_jobs_live_and_simulated(folder: Path, capsys: Shown) -> None:
    options = ("--time-scale", "40", "--noise-seeds", "3", "--warm-up", "30%", "-o", "json")
    code = main(["sim", "fidelity", "trace.csv", "--fleet", "fleet.yaml", "--sites", "one,two", *options])
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert code == {"within 5 %": Exit.OK, "may be noise": Exit.UNDECIDED, "differs": Exit.FAILED}[told["verdict"]], captured.err
    assert (told["jobs"], told["sites"], told["time_scale"]) == (JOBS, ["one", "two"], 40.0)
    assert min(told["commit_us"], told["way_us"]) > 0
    assert [(one["kind"], one["quantile"]) for one in told["classes"]] == [("image", "p50"), ("image", "p99")]
    assert {one["n"] for one in told["classes"]} == {JOBS * 7 // 10}
    median = told["classes"][0]
    # Executions of seconds and nobody before them: what a busy machine adds is small beside that.
    assert median["live_us"] > 0 and abs(median["difference"]) < 0.3 and median["noise"] > 0
    assert f"{JOBS} jobs at 2 sites with 8 GPUs" in captured.err
    assert not [process for process in psutil.Process().children(recursive=True) if process.is_running()]


@pytest.mark.timeout(120)
def test_interrupted_it_leaves_no_process(folder: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "atoll.cli", "sim", "fidelity", "trace.csv", "--fleet", "fleet.yaml", "--time-scale", "1"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    parent = psutil.Process(child.pid)
    deadline_s = time.monotonic() + PATIENCE_S
    while not (started := [one for one in parent.children(recursive=True) if "rehearse" in one.cmdline()]):
        assert time.monotonic() < deadline_s and child.poll() is None
        time.sleep(0.05)
    mark = started[0].environ()[MARK]
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, out) == (Exit.INTERRUPTED, b"") and b"Traceback" not in err, err
    assert not [one for one in psutil.process_iter() if mark in _environ(one).get(MARK, "")]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sites", "one,three"), "--sites is 'three': expected sites of fleet.yaml"),
        (("--time-scale", "1000"), "--time-scale is '1000'"),
        (("--noise-seeds", "2"), "--noise-seeds is '2': expected a whole number from 3 to 100"),
        (("--policy", "fastest"), "policy is 'fastest'"),
        (("-o", "name"), "-o is 'name'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(folder: Path, capsys: Shown, options: tuple[str, ...], said: str) -> None:
    code = main(["sim", "fidelity", "trace.csv", "--fleet", "fleet.yaml", *options])
    captured = capsys.readouterr()
    assert (code, captured.out) == (Exit.USAGE, "") and said in captured.err


def test_a_trace_that_fits_no_gpu_is_refused(folder: Path, capsys: Shown) -> None:
    Path("trace.csv").write_text("arrival_us,model_id,tenant,gang_size\n0,flux.1-dev,t,8\n1000000,flux.1-dev,t,8\n")
    code = main(["sim", "fidelity", "trace.csv", "--fleet", "fleet.yaml"])
    assert code == Exit.USAGE and "no job of the trace can run at these sites" in capsys.readouterr().err
