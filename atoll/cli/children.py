"""Child processes that live as long as this one: started in sessions of their own, told to end, and ended if they do not.

Decides how long each may take. A child hears SIGTERM also when this process is killed, so that none is left behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

from atoll.cli.output import note

# An agent ends its Ray cluster, an orchestrator makes durable what it has admitted: seconds each.
_GRACE_S: Final = 25.0
_POLL_S: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1
_PARENT_VARIABLE: Final = "ATOLL_PARENT_PID"


class Stopped(Exception):  # noqa: N818 - no error: somebody wants it to end
    """SIGTERM or SIGINT came."""


class Children:
    """Starts children and ends them, last started first."""

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> Children:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, _stop)
        return self

    def __exit__(self, *ignored: object) -> None:
        # A second Ctrl-C means now.
        for number in self._before:
            signal.signal(number, self._kill)
        for name, child in reversed(self._running):
            _end(name, child)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what `signal` itself had answered

    def start(self, name: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start this command line with these arguments and more of an environment; it logs to where this process does."""
        command = [sys.executable, "-m", "atoll.cli", *arguments]
        # No code of ours between fork and exec: other threads may hold any lock, gRPC's among them.
        environment = {**os.environ, **(variables or {}), _PARENT_VARIABLE: str(os.getpid())}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
        self._running.append((name, child))
        return child

    def ended(self) -> tuple[str, int] | None:
        """Name and exit status of a child that has ended by itself."""
        for name, child in self._running:
            status = child.poll()
            if status is not None:
                return name, status
        return None

    def wait(self, *watched: subprocess.Popen[bytes], timeout_s: float | None = None) -> bool:
        """Whether one of these has ended: waits until one has, or for so long. Raises Stopped."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not any(child.poll() is not None for child in watched):
            left_s = _POLL_S if deadline_s is None else min(deadline_s - time.monotonic(), _POLL_S)
            if left_s <= 0:
                return False
            time.sleep(left_s)
        return True

    def drop(self, child: subprocess.Popen[bytes]) -> None:
        """Forget a child that has ended; whatever it left behind in its session goes with it."""
        _signal_session(child, signal.SIGKILL)
        self._running = [(name, one) for name, one in self._running if one is not child]

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        for _, child in self._running:
            _signal_session(child, signal.SIGKILL)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def end_with_parent() -> None:
    """In a child, first thing: hear SIGTERM when the process that started it is gone, however that ended."""
    parent = os.environ.pop(_PARENT_VARIABLE, "")
    if not parent:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it was gone before we asked to be told
        os.kill(os.getpid(), signal.SIGTERM)


def _end(name: str, child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        note(f"the {name} has not ended within {_GRACE_S:.0f} s and is killed")
    # Whatever the child left behind in its session goes with it.
    _signal_session(child, signal.SIGKILL)
    child.wait()


def _signal_session(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended
