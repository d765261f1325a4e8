"""The processes of one Ray cluster of this host: kept on record, recognised by a later agent, ended whole.

Decides which processes are the cluster's, so that none is left behind and none of another's is touched. Must not know how a
cluster is started.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

# In the environment of every process of a cluster; covers the moment before the first one's pid is on record.
MARK_VARIABLE: Final = "ATOLL_RAY_CLUSTER"
_MARK_CHARS: Final = 32
_POLL_S: Final = 0.1
_KILL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProcesses:
    """A cluster's processes. The first one leads their session; `start_ticks` (since boot: no clock can be set back under it)
    tells it from a later process of the same number. `pid` 0: not started, or not on record yet."""

    mark: str
    address: str
    pid: int = 0
    start_ticks: int = 0

    def write(self, path: Path) -> None:
        """Keep the record; whole or not at all."""
        value = {"mark": self.mark, "address": self.address, "pid": self.pid, "start_ticks": self.start_ticks}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> ClusterProcesses | None:
        """The record at `path`; None if there is none, or the file is not one."""
        try:
            value = json.loads(path.read_text())
            found = cls(mark=value["mark"], address=value["address"], pid=value["pid"], start_ticks=value["start_ticks"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        texts = isinstance(found.mark, str) and len(found.mark) == _MARK_CHARS and isinstance(found.address, str)
        numbers = all(isinstance(number, int) and number >= 0 for number in (found.pid, found.start_ticks))
        return found if texts and numbers else None

    def head(self) -> psutil.Process | None:
        """The first process, if it runs."""
        if self.pid == 0 or start_ticks_of(self.pid) != self.start_ticks:
            return None
        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        return process if runs(process) else None

    def members(self) -> list[psutil.Process]:
        """All of them that run, also those whose parents died.

        Ray's helpers wipe their environment when they take their names, and the mark with it; their session they keep. While
        it has a process, the kernel gives its number to no other.
        """
        number_reused = self.pid != 0 and start_ticks_of(self.pid) not in (None, self.start_ticks)
        session = self.pid if self.pid and not number_reused else None
        found = []
        for process in psutil.process_iter():
            try:
                in_session = session is not None and os.getsid(process.pid) == session
                if (in_session or process.environ().get(MARK_VARIABLE) == self.mark) and runs(process):
                    found.append(process)
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue  # another user's, or gone
        return found

    def end(self, grace_s: float) -> None:
        """SIGTERM to the first process, which ends the others; SIGKILL to whatever the grace did not end. Blocks."""
        deadline_s = time.monotonic() + grace_s
        head = self.head()
        if head is not None:
            _signal(head, signal.SIGTERM)
            while runs(head) and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
            # Workers end a moment after the raylet: they notice by its socket.
            while (left := self.members()) and time.monotonic() < deadline_s:
                psutil.wait_procs(left, timeout=_POLL_S)
        left = self.members()
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=_KILL_TIMEOUT_S)
        if self.pid:
            _reap(self.pid)


def start_ticks_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything; 20 fields after it comes the start.
    return int(stat.rpartition(b")")[2].split()[19])


def runs(process: psutil.Process) -> bool:
    """Whether a process is there and more than a name in the process table."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # just ended by itself


def _reap(pid: int) -> None:
    """Take the first process's exit status, if it was this process's child: no zombie stays."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # an earlier agent's child, or reaped before
