"""`atoll up`: one command, a real site with Ray and diffusers, a picture; and nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from tests.architecture.sources import REPOSITORY

Shown = pytest.CaptureFixture[str]
PATIENCE_S = 60.0


@contextmanager
def atoll_up(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, from its start until it says that it is ready; killed with all it started if the test leaves it running."""
    command = [sys.executable, "-m", "atoll.cli", "up", "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder), "--no-gpus"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=said, start_new_session=True)
    try:
        while "ready at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that it started, directly or not."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.slow
@pytest.mark.timeout(420)  # two starts of Ray and torch, each up to a minute and a half where many share two cores
def test_a_picture_with_one_command_and_what_was_submitted_survives(
    short_path: Path, tmp_path: Path, free_ports: Callable[[], int], capsys: Shown
) -> None:
    port = free_ports()
    at = ["--address", f"127.0.0.1:{port}"]
    with atoll_up(short_path, port, tmp_path / "first.log") as process:
        started = family(process)
        assert len(started) > 5  # an orchestrator, an agent, Ray and its own
        picture = tmp_path / "lighthouse.png"
        submit = ["submit", "tiny-image", "--prompt", "a lighthouse", "--seed", "7", "--key", "k-1", "--out", str(picture)]
        assert main([*submit, *at]) == Exit.OK
        first = picture.read_bytes()
        assert first.startswith(b"\x89PNG")
        job_id = capsys.readouterr().out.split()[0]
        assert main(["up", "--listen", f"127.0.0.1:{port}", "--data-dir", str(short_path)]) == Exit.CONFLICT
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == Exit.OK
        assert psutil.wait_procs(started, timeout=PATIENCE_S)[1] == []
    with atoll_up(short_path, port, tmp_path / "second.log") as process:
        started = family(process)
        capsys.readouterr()
        assert main([*submit, *at]) == Exit.OK
        assert capsys.readouterr().out.split()[0] == job_id  # the same key is the same job, also after a restart
        assert picture.read_bytes() == first
        # Killed without a word, it still leaves nothing behind.
        process.kill()
        process.wait()
        assert psutil.wait_procs(started, timeout=PATIENCE_S)[1] == []


def test_an_orchestrator_that_cannot_start_says_why(tmp_path: Path, free_port: int) -> None:
    command = [sys.executable, "-m", "atoll.cli", "orchestrator", "--listen", f"0.0.0.0:{free_port}", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == Exit.USAGE
    assert done.stderr.startswith("error: refusing to listen on 0.0.0.0:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["orchestrator", "--listen", "nonsense:x"], "error: listen is 'nonsense:x': expected HOST:PORT"),
        (["orchestrator", "--time-scale", "fast"], "error: time_scale is 'fast': expected a number"),
        (["agent"], "error: --site is missing"),
        (["agent", "--site", "../x"], "error: site is '../x'"),
        (["agent", "--site", "x", "--cache", "10"], "error: --cache is '10': expected a size such as 500MB"),
        (["agent", "--site", "x", "--slots", "0"], "error: slots is '0': expected a whole number"),
        (["rehearse", "/nowhere/clusters.yaml"], "error: fleet is '/nowhere/clusters.yaml': expected a file that exists"),
        (["up", "--listen", "a b"], "error: --listen is 'a b': expected HOST:PORT"),
    ],
)
def test_settings_of_servers_that_are_wrong(arguments: list[str], said: str, capsys: Shown) -> None:
    assert main(arguments) == Exit.USAGE
    assert capsys.readouterr().err.startswith(said)
