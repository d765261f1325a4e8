"""The guard of the test session itself: a process that outlives its test fails the session and is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

LEAVES_ONE = """
import subprocess, sys
from pathlib import Path

def test_leaves_a_process(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    child.returncode = 0  # as if forgotten: no ResourceWarning
    Path(__file__).with_name("pid").write_text(str(child.pid))
"""


def test_a_process_left_behind_fails_the_session_and_is_ended(tmp_path: Path) -> None:
    conftest = CONFTEST.read_text(encoding="utf-8").replace("LEFTOVER_GRACE_S = 15", "LEFTOVER_GRACE_S = 1")
    assert "LEFTOVER_GRACE_S = 1\n" in conftest
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_one.py").write_text(LEAVES_ONE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    pid = int((tmp_path / "pid").read_text())
    assert done.returncode == 1, done.stdout
    assert f"pid {pid}: {sys.executable}" in done.stdout
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_environment_keeps_tests_alone_and_quiet() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in os.environ if name.endswith(("_proxy", "_PROXY")) and not name.lower().startswith("no_")]


def test_short_path_leaves_room_for_ray_sockets(short_path: Path) -> None:
    assert len(str(short_path)) < 107 - 60
    assert list(short_path.iterdir()) == []


def test_free_ports_are_distinct_and_below_the_ephemeral_range(free_ports: Callable[[], int]) -> None:
    ports = [free_ports() for _ in range(50)]
    assert len(set(ports)) == 50
    assert min(ports) > 1024
    assert max(ports) < 32_768
