"""The demo's programs end to the last one, however they behave and however the demo itself ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from atoll.cli.demo.processes import MARK, PartFailedError, Processes, Program, marked
from atoll.cli.demo.processes import environment as demo_environment

PATIENCE_S = 30.0

# Starts a grandchild that leaves its session and its parent, as Ray's processes do.
DETACHES = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        time.sleep(600)
    print("up", flush=True)
    time.sleep(600)
"""
STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(600)
"""
OBEDIENT = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("up", flush=True)
    time.sleep(600)
"""


def program(name: str, code: str, *, wave: int = 0, grace_s: float = PATIENCE_S, once: bool = False) -> Program:
    return Program(name=name, arguments=(sys.executable, "-c", textwrap.dedent(code)), wave=wave, grace_s=grace_s, once=once)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def patient() -> bool:
    return False


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path, os.environ)
    yield found
    found.stop(grace_s=0, hurry=lambda: True, say=lambda _: None)


def start(processes: Processes, wanted: Program) -> None:
    running = processes.start(wanted)
    until(lambda: running.log.read_text() == "up\n")


def test_ends_what_was_started_and_what_detached_itself(processes: Processes) -> None:
    start(processes, program("detaches", DETACHES))
    until(lambda: len(marked(processes.mark)) == 3)  # the program, what left it, and the guard
    processes.stop(grace_s=PATIENCE_S, hurry=patient, say=lambda _: None)
    assert marked(processes.mark) == []


def test_lower_waves_end_first_and_a_clean_end_has_no_complaints(processes: Processes) -> None:
    said: list[str] = []
    start(processes, program("orchestrator", OBEDIENT, wave=1))
    start(processes, program("site harbour", OBEDIENT))
    assert processes.stop(grace_s=PATIENCE_S, hurry=patient, say=said.append) == []
    assert said == ["stopping site harbour", "stopping orchestrator"]


def test_what_does_not_end_in_time_is_killed_and_named(processes: Processes) -> None:
    start(processes, program("site harbour", STUBBORN, grace_s=0.2))
    (complaint,) = processes.stop(grace_s=PATIENCE_S, hurry=patient, say=lambda _: None)
    assert complaint.startswith("killed: pid ")
    assert marked(processes.mark) == []


def test_a_second_interrupt_does_not_wait_for_the_grace(processes: Processes) -> None:
    start(processes, program("site harbour", STUBBORN, grace_s=600))
    processes.stop(grace_s=600, hurry=lambda: True, say=lambda _: None)
    assert marked(processes.mark) == []


def test_a_program_that_ends_by_itself_is_named_with_the_end_of_its_log(processes: Processes) -> None:
    running = processes.start(program("site harbour", "for n in range(100): print('line', n)\nraise SystemExit(3)"))
    running.process.wait(PATIENCE_S)
    with pytest.raises(PartFailedError, match="site harbour ended with exit code 3") as found:
        processes.check()
    assert found.value.log == running.log
    assert found.value.lines[-1] == "line 99"


def test_a_program_that_is_to_end_may_end_well_but_not_badly(processes: Processes) -> None:
    good = processes.start(program("starter models", "pass", once=True))
    good.process.wait(PATIENCE_S)
    processes.check()
    bad = processes.start(program("starter models", "raise SystemExit(1)", once=True))
    bad.process.wait(PATIENCE_S)
    with pytest.raises(PartFailedError, match="starter models ended with exit code 1"):
        processes.check()


def test_another_demo_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Processes(tmp_path / "other", os.environ)
    try:
        start(other, program("site quay", OBEDIENT))
        start(processes, program("site harbour", OBEDIENT))
        processes.stop(grace_s=PATIENCE_S, hurry=patient, say=lambda _: None)
        assert len(marked(other.mark)) == 2
    finally:
        other.stop(grace_s=PATIENCE_S, hurry=patient, say=lambda _: None)


def test_nothing_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    demo = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from atoll.cli.demo.processes import Processes, Program
        processes = Processes(Path(sys.argv[1]), os.environ)
        processes.start(Program(name="site harbour", arguments=(sys.executable, "-c", sys.argv[2]), wave=0, grace_s=9))
        print(processes.mark, flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", demo, str(tmp_path), textwrap.dedent(STUBBORN)], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        mark = started.stdout.readline().strip()
        until(lambda: (tmp_path / "site-harbour.log").read_text() == "up\n")
        assert len(marked(mark)) == 2
        started.send_signal(signal.SIGKILL)
    until(lambda: marked(mark) == [])


def test_programs_do_not_see_what_would_lead_them_to_another_fleet() -> None:
    seen = demo_environment(
        {"PATH": "/bin", "ATOLL_ADDRESS": "elsewhere:1", "ATOLL_AGENT_SITE": "x", "RAY_ADDRESS": "y", "https_proxy": "z"}, "mark"
    )
    assert seen[MARK] == "mark"
    assert seen["PATH"] == "/bin"
    assert not {"ATOLL_ADDRESS", "ATOLL_AGENT_SITE", "RAY_ADDRESS", "https_proxy"} & set(seen)


def test_a_mark_is_read_from_the_living_only(processes: Processes) -> None:
    running = processes.start(program("short", "pass", once=True))
    until(lambda: psutil.Process(running.process.pid).status() == psutil.STATUS_ZOMBIE)
    assert running.process.pid not in [process.pid for process in marked(processes.mark)]
