"""What a real site keeps on disk about attempts: a bounded log each, and a note while one is open.

    <work dir>/logs/<job>@<ordinal>.log    what an attempt said; written by the slot's process
    <work dir>/open/<job>@<ordinal>        exists from the order to run until the end was taken over; holds the artifact store's URL

Decides names, bounds and how many logs are kept. Must not know Ray, nor what an attempt does.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from atoll.model.errors import FieldError, StateError
from atoll.model.ids import AttemptKey, JobId, Ordinal, parse_name
from atoll.model.limits import ATTEMPTS_PER_JOB_MAX
from atoll.model.shape import parse_int

# A step writes one line of about 60 bytes: 1 MiB holds more steps than any shape allows.
LOG_BYTES_MAX: Final = 1024 * 1024
LINE_CHARS_MAX: Final = 2000
# Room for how it ended, whatever was said before.
_LAST_WORDS_BYTES: Final = 16 * 1024
# At 1 MiB at worst they are 1 GiB; at the usual few KiB, some MB.
LOGS_MAX: Final = 1000
LINES_MAX: Final = 10_000


def file_name(key: AttemptKey) -> str:
    """`<job>@<ordinal>`; FieldError for a key that could lead elsewhere."""
    job = parse_name("job", key.job_id)
    return f"{job}@{parse_int('ordinal', key.ordinal, 1, ATTEMPTS_PER_JOB_MAX)}"


def parse_file_name(name: str) -> AttemptKey | None:
    """The key in a name that `file_name` made; None for any other."""
    job, _, ordinal = name.rpartition("@")
    try:
        key = AttemptKey(job_id=JobId(job), ordinal=Ordinal(int(ordinal)))
        return key if file_name(key) == name else None
    except (ValueError, FieldError):
        return None


class AttemptLog:
    """The log of one attempt, open for writing. Never raises for a full disk: a lost line must not end an attempt."""

    def __init__(self, folder: Path, key: AttemptKey) -> None:
        self._path = folder / f"{file_name(key)}.log"
        self._left = LOG_BYTES_MAX
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] | None = self._path.open("ab", buffering=0)
            self._left -= self._path.stat().st_size
        except OSError:
            self._file = None

    def line(self, text: str, *, last: bool = False) -> None:
        """Append `text`, one line of the file per line of it, with the wall clock's time; `last` may use the reserve."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        for part in text.splitlines() or [""]:
            shown = "".join(character if character.isprintable() else "?" for character in part[:LINE_CHARS_MAX])
            self._write(f"{stamp}Z {shown}\n".encode(), 0 if last else _LAST_WORDS_BYTES)

    def _write(self, data: bytes, reserve: int) -> None:
        if self._file is None or len(data) > self._left - reserve:
            return
        try:
            self._file.write(data)
            self._left -= len(data)
        except OSError:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None


class AttemptFiles:
    """The agent's side of these files."""

    def __init__(self, work_dir: Path) -> None:
        self.logs_dir = work_dir / "logs"
        self._open_dir = work_dir / "open"
        for folder in (self.logs_dir, self._open_dir):
            folder.mkdir(parents=True, exist_ok=True)

    def open(self, key: AttemptKey, artifacts_url: str) -> None:
        """An attempt is about to be ordered."""
        (self._open_dir / file_name(key)).write_text(artifacts_url)

    def settle(self, key: AttemptKey) -> None:
        """The end of an attempt was taken over by who keeps it."""
        (self._open_dir / file_name(key)).unlink(missing_ok=True)

    def open_attempts(self) -> dict[AttemptKey, str]:
        """Attempts whose end nobody has taken over, with the URL of the artifact store they write to."""
        found = {}
        for path in sorted(self._open_dir.iterdir()):
            key = parse_file_name(path.name)
            if key is not None and path.is_file():
                found[key] = path.read_text()[:2000]
        return found

    def tail(self, key: AttemptKey, lines: int) -> tuple[str, ...]:
        """The last lines of an attempt's log, at most `LINES_MAX`; none if there is no log."""
        wanted = parse_int("lines", lines, 0, LINES_MAX)
        try:
            with (self.logs_dir / f"{file_name(key)}.log").open("rb") as source:
                found = deque(source.read(2 * LOG_BYTES_MAX).decode("utf-8", "replace").splitlines(), maxlen=wanted)
        except FileNotFoundError:
            return ()
        return tuple(found)

    def prune(self) -> int:
        """Delete all but the newest `LOGS_MAX` logs; how many went."""
        with os.scandir(self.logs_dir) as entries:
            aged = sorted((entry.stat().st_mtime, entry.path) for entry in entries if entry.name.endswith(".log"))
        excess = aged[: max(0, len(aged) - LOGS_MAX)]
        for _, path in excess:
            Path(path).unlink(missing_ok=True)
        return len(excess)


def lock_folder(folder: Path) -> IO[bytes]:
    """The right to work on a folder, for the life of this process or until closed. StateError while another has it."""
    lock = (folder / "ray.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StateError(f"another agent works on {folder}: give each site a folder of its own") from None
    return lock
