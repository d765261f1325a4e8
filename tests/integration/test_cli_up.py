"""`atoll up`: one command, a real site with Ray and diffusers, a picture; and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from atoll.cli import upkeep
from atoll.cli.app import main
from atoll.cli.children import Children, Stopped
from atoll.cli.exits import Exit
from atoll.client import Client
from atoll.model.job import JobState
from atoll.model.site import SiteConnection
from tests.architecture.sources import REPOSITORY
from tests.integration.etcd_members import installed

Shown = pytest.CaptureFixture[str]
PATIENCE_S = 60.0
# With its own etcd, where there is one to start.
STORE = ("--store", "etcd") if installed() else ()


@contextmanager
def atoll_up(folder: Path, port: int, log: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, from its start until it says that it is ready; killed with all it started if the test leaves it running."""
    command = [sys.executable, "-m", "atoll.cli", "up", "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder), "--no-gpus", *more]
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
    with atoll_up(short_path, port, tmp_path / "first.log", *STORE) as process:
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
    with atoll_up(short_path, port, tmp_path / "second.log", *STORE) as process:
        started = family(process)
        capsys.readouterr()
        assert main([*submit, *at]) == Exit.OK
        assert capsys.readouterr().out.split()[0] == job_id  # the same key is the same job, also after a restart
        assert picture.read_bytes() == first
        # Killed without a word, it still leaves nothing behind.
        process.kill()
        process.wait()
        assert psutil.wait_procs(started, timeout=PATIENCE_S)[1] == []


def line_of(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Until the command says this."""
    until(lambda: text in log.read_text(), process, log)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until something holds, while the command runs."""
    deadline_s = time.monotonic() + 2 * PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.1)


def verb_of(process: psutil.Process) -> str:
    """The verb of a process that is our command line."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    return words[words.index("atoll.cli") + 1] if "atoll.cli" in words else ""


def child(process: subprocess.Popen[bytes], verb: str) -> psutil.Process | None:
    """The server of the command with this verb, if it runs."""
    return next((one for one in psutil.Process(process.pid).children() if verb_of(one) == verb), None)


@pytest.mark.slow
@pytest.mark.timeout(420)  # as above, and an agent that comes back
def test_an_agent_that_is_killed_is_started_again_and_finds_its_cluster(
    short_path: Path, tmp_path: Path, free_ports: Callable[[], int]
) -> None:
    port = free_ports()
    log = tmp_path / "up.log"
    record = short_path / "sites" / "local" / "ray" / "ray-head.json"
    with atoll_up(short_path, port, log) as process, Client(f"127.0.0.1:{port}") as client:
        orchestrator, agent = child(process, "orchestrator"), child(process, "agent")
        assert orchestrator is not None and agent is not None
        cluster, members = record.read_text(), family(process)
        agent.kill()
        line_of(log, "the agent was killed by SIGKILL: what it said stands above; the orchestrator goes on", process)
        assert client.fleet().sites == 1
        killed_us = client.sites_get("local").last_report_us

        def is_back() -> bool:
            view = client.sites_get("local")
            return view.connection is SiteConnection.CONNECTED and view.last_report_us > killed_us

        until(is_back, process, log)
        assert child(process, "orchestrator") == orchestrator and child(process, "agent") not in (agent, None)
        assert client.result(client.submit("tiny-image", "a gull", steps=2), timeout_s=PATIENCE_S).state is JobState.SUCCEEDED
        assert record.read_text() == cluster, "the same Ray cluster, found again"
        members += family(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == Exit.OK
        assert psutil.wait_procs(members, timeout=PATIENCE_S)[1] == []
        assert not record.exists()


@pytest.mark.slow
@pytest.mark.timeout(420)  # as above
def test_what_an_agent_leaves_that_does_not_come_back_ends_with_the_command(
    short_path: Path, tmp_path: Path, free_ports: Callable[[], int]
) -> None:
    port = free_ports()
    log = tmp_path / "up.log"
    with atoll_up(short_path, port, log) as process:
        members = family(process)
        agent = child(process, "agent")
        assert agent is not None
        agent.kill()
        line_of(log, "the agent is started again", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == Exit.OK
        assert psutil.wait_procs(members, timeout=PATIENCE_S)[1] == [], "Ray too, though no agent was there to end it"


class Kept:
    """A real orchestrator, and an agent of it that cannot reach anybody, kept as `atoll up` keeps them until the agent is given up."""

    def __init__(self, folder: Path, port: int, nowhere: int, patience: str, capfd: pytest.CaptureFixture[str]) -> None:
        self.agents: list[subprocess.Popen[bytes]] = []
        self.said, self.answered = "", False
        self._orchestrator = ["orchestrator", "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder), "--metrics", "off"]
        fleet = str(REPOSITORY / "clusters.yaml")
        self._agent = ["agent", "--site", "aws-use1", "--runtime", "twin", "--fleet", fleet, "--data-dir", str(folder / "site")]
        self._agent += ["--orchestrator", f"127.0.0.1:{nowhere}"]
        self._patience, self._port, self._capfd = patience, port, capfd

    def run(self) -> None:
        with Children() as children:

            def start() -> subprocess.Popen[bytes]:
                self.agents.append(children.start("agent", self._agent, {"ATOLL_AGENT_GIVE_UP_AFTER": self._patience}))
                return self.agents[-1]

            orchestrator = children.start("orchestrator", self._orchestrator)
            watcher = threading.Thread(target=self._end_once_it_is_given_up)
            watcher.start()
            try:
                upkeep.keep(children, [orchestrator], start(), start, pauses_s=(0.05, 0.1, 0.1))
            finally:
                watcher.join(PATIENCE_S)

    def _end_once_it_is_given_up(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while "it is given up" not in self.said and time.monotonic() < deadline_s:
            self.said += self._capfd.readouterr().err
            time.sleep(0.05)
        try:
            with Client(f"127.0.0.1:{self._port}") as client:
                self.answered = client.fleet().sites == 0
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("patience", "starts", "said"), [("0.2", 4, "it has ended 4 times in a row"), ("never", 1, "would end the same way")]
)
def test_an_agent_that_ends_each_time_is_given_up_and_the_orchestrator_goes_on(
    patience: str, starts: int, said: str, tmp_path: Path, free_ports: Callable[[], int], capfd: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(tmp_path, free_ports(), free_ports(), patience, capfd)
    with pytest.raises(Stopped):
        kept.run()
    assert len(kept.agents) == starts
    assert said in kept.said and kept.said.count("is started again in") == starts - 1
    assert kept.answered, "the orchestrator goes on"


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
        (["up", "--store", "redis://a"], "error: store is 'redis://a': expected 'sqlite', or etcd://HOST:PORT"),
        (["orchestrator", "--store", "etcd://a:1", "--store-user", "x"], "error: store_user is 'x': expected its password"),
        (["store", "etcd", "--data-dir", "/tmp", "--listen", "a b"], "error: --listen is 'a b': expected HOST:PORT"),
        (["up", "--listen", "a b"], "error: --listen is 'a b': expected HOST:PORT"),
    ],
)
def test_settings_of_servers_that_are_wrong(arguments: list[str], said: str, capsys: Shown) -> None:
    assert main(arguments) == Exit.USAGE
    assert capsys.readouterr().err.startswith(said)
