"""The demo's programs: started with a log each, watched, and ended to the last process, whatever happened to them.

Decides how nothing is left behind. Every program and all it starts carry a mark in their environment, by which they are found even
when they have detached themselves. Must not know what the programs do.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from atoll.model.errors import AtollError

MARK: Final = "ATOLL_DEMO"
# What a person needs of a log to see why its program ended.
LOG_LINES: Final = 12
_LOG_TAIL_BYTES: Final = 64 * 1024
_LINE_CHARS_MAX: Final = 300
# A killed process is gone within milliseconds; one in the middle of a slow write may need seconds.
_KILL_S: Final = 10.0
_POLL_S: Final = 0.05
# Settings of the person who runs the demo would lead its programs to another fleet; a proxy cannot reach loopback addresses.
_NOT_INHERITED: Final = ("ATOLL_AGENT_", "ATOLL_ORCHESTRATOR_", "RAY_")
_NAMES_NOT_INHERITED: Final = frozenset({
    "ATOLL_ADDRESS", "ATOLL_TOKEN", "ATOLL_CA", "ATOLL_CONFIG", "ATOLL_ORIGIN", "ATOLL_OUTPUT",
    "ATOLL_JOIN_TOKEN",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY",
})  # fmt: skip
_ENVIRONMENT: Final = {
    # Two threads of torch on two busy cores are slower by an order of magnitude, and change pixels.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    # Ray names its processes by overwriting their memory; with this it leaves the environment, and so the mark, readable.
    "SPT_NOENV": "1",
}


class PartFailedError(AtollError):
    """A part of the demo failed; `lines` are the last of its log, `log` is where the rest is."""

    def __init__(self, part: str, what: str, *, log: Path | None = None, lines: Sequence[str] = ()) -> None:
        super().__init__(f"{part} {what}")
        self.part = part
        self.log = log
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program: what runs, and how long it may take to end when it is told to.

    `wave`: lower ones are ended first. `once`: it does something and ends well by itself; others run until they are told.
    """

    name: str
    arguments: tuple[str, ...]
    wave: int
    grace_s: float
    once: bool = False


@dataclass(slots=True, kw_only=True)
class Running:
    """A program that was started."""

    program: Program
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def failed(self, what: str) -> PartFailedError:
        """The error that names this program, with the end of its log."""
        return PartFailedError(self.program.name, what, log=self.log, lines=tail(self.log))


class Processes:
    """Starts programs and ends them. `stop` may be called at any moment, and again."""

    def __init__(self, logs: Path, environ: Mapping[str, str]) -> None:
        self.mark = secrets.token_hex(16)
        self._logs = logs
        self._environ = environment(environ, self.mark)
        self._running: list[Running] = []
        # From now on somebody outlives this process and ends what it could not.
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "atoll.cli.demo.processes", self.mark],
            stdin=subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
        )

    def start(self, program: Program) -> Running:
        """Start a program in a session of its own, where a Ctrl-C at the terminal does not reach it."""
        log = self._logs / f"{program.name.replace(' ', '-')}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                program.arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        running = Running(program=program, process=process, log=log)
        self._running.append(running)
        return running

    def forget(self, running: Running) -> None:
        """A program has ended, and that is well."""
        self._running.remove(running)

    def check(self) -> None:
        """PartFailedError when a program has ended that should be running, or has ended badly."""
        for running in self._running:
            code = running.exit_code
            if code is not None and not (running.program.once and code == 0):
                raise running.failed(f"ended with {ending(code)}")

    def stop(self, *, grace_s: float, hurry: Callable[[], bool], say: Callable[[str], None]) -> list[str]:
        """End everything, wave by wave: asked first, killed after its own grace, at most `grace_s`, or at once when `hurry()`.

        Returns what did not end well, each as a line; that is not expected of programs that were up and were not hurried.
        """
        for wave in sorted({running.program.wave for running in self._running}):
            part = [running for running in self._running if running.program.wave == wave]
            names = ", ".join(running.program.name for running in part if running.exit_code is None)
            if names:
                say(f"stopping {names}")
            for running in part:
                if running.exit_code is None:
                    running.process.send_signal(signal.SIGTERM)
            deadline_s = time.monotonic() + min(grace_s, max(running.program.grace_s for running in part))
            while time.monotonic() < deadline_s and not hurry() and any(running.exit_code is None for running in part):
                time.sleep(_POLL_S)
        bad = [f"{one.program.name} ended with {ending(one.exit_code)}" for one in self._running if one.exit_code]
        bad += [f"killed: {line}" for line in end_all(self.mark, spare=self._guard.pid)]
        for running in self._running:
            running.process.wait(_KILL_S)
        self._running.clear()
        self._dismiss()
        return bad

    def _dismiss(self) -> None:
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            self._guard.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def environment(environ: Mapping[str, str], mark: str) -> dict[str, str]:
    """What the demo's programs see: the person's environment without what would lead them astray, and the mark."""
    kept = {
        name: value for name, value in environ.items() if not name.startswith(_NOT_INHERITED) and name.upper() not in _NAMES_NOT_INHERITED
    }
    return {**kept, **_ENVIRONMENT, MARK: mark}


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that carries the mark, this one and zombies excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            carries = process.pid != os.getpid() and process.environ().get(MARK) == mark
            if carries and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # gone meanwhile, or somebody else's
    return found


def end_all(mark: str, *, spare: int | None = None) -> list[str]:
    """Kill what carries the mark until nothing does, `spare` excepted. What was killed, a line each."""
    killed: dict[int, str] = {}
    deadline_s = time.monotonic() + _KILL_S
    while time.monotonic() < deadline_s:
        left = [process for process in marked(mark) if process.pid != spare]
        if not left:
            break
        for process in left:
            try:
                killed.setdefault(process.pid, f"pid {process.pid}: {' '.join(process.cmdline())[:120]}")
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(left, timeout=1.0)
    return list(killed.values())


def ending(code: int) -> str:
    """How a program ended, for a person."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def tail(log: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a log; none if there is none."""
    try:
        with log.open("rb") as opened:
            opened.seek(max(opened.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
            text = opened.read(_LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [line[:_LINE_CHARS_MAX] for line in text.splitlines() if line.strip()][-lines:]


def guard(mark: str) -> None:
    """Wait until the demo has ended, however, and then end what carries its mark. Signals do not end this wait."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(mark)


if __name__ == "__main__":
    guard(sys.argv[1])
