"""Recordings: a snapshot of the core, then every (now, event) with the digest of its Step. `replaying` reads them.

Decides the form of a recording and when one ends early: at its size limit, or when the disk cannot keep up. A recording has no
holes. Encoding and writing happen on a thread of their own; the loop only hands frozen values over. Must not know what events mean.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog

from atoll import __version__
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.wire.recording import RecordingError, TaggedCodec
from orchestrator.core.events import Event
from orchestrator.core.outputs import Step
from orchestrator.core.placement.policy import Policy
from orchestrator.core.snapshot import Snapshot

_log = structlog.get_logger(__name__)

FORMAT_VERSION: Final = 1
BYTES_MAX: Final = 10 * 1024**3
# Events handed over and not yet written: a few seconds of a busy fleet. More means that the disk is not keeping up.
_BACKLOG_MAX: Final = 50_000
# How long an end waits for the disk.
_CLOSE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingBegun:
    """A core begins: what it was made of, by which version of the program."""

    version: int
    program: str = ""
    policy_digest: str = ""
    policy: Policy
    gpus: tuple[GpuType, ...]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One event, and the Step it led to: its digest, and what it was made of."""

    now_us: int
    event: Event
    step_sha256: str
    step_outline: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingEnded:
    """Nothing was recorded after this, though the program went on."""

    reason: str


@cache
def codec() -> TaggedCodec:
    """Reads and writes the lines of a recording, and Steps for their digest."""
    return TaggedCodec((RecordingBegun, Recorded, RecordingEnded, Step))


def step_digest(step: Step) -> str:
    """sha256, hex, of the Step's canonical text."""
    return sha256(codec().encode(step)).hexdigest()


def step_outline(step: Step) -> str:
    """Of what kinds a Step's records, commands and decisions are, in their order: what people compare where digests differ."""
    parts = ("record", step.records), ("command", step.commands), ("decision", step.decisions)
    return "; ".join(f"{name}s {', '.join(_counted(type(one).__name__ for one in several))}" for name, several in parts if several)


def _counted(names: Iterable[str]) -> list[str]:
    return [name if number == 1 else f"{number} {name}" for name, number in Counter(names).items()]


class Recorder:
    """Writes one recording. Raises OSError when the file cannot be made."""

    def __init__(self, path: Path, *, policy: Policy, gpus: dict[GpuTypeId, GpuType], bytes_max: int = BYTES_MAX) -> None:
        self._file = path.open("xb")
        self._policy = policy
        self._gpus = tuple(gpus.values())
        self._bytes_max = bytes_max
        self._backlog: queue.Queue[Snapshot | tuple[int, Event, Step] | None] = queue.Queue(_BACKLOG_MAX)
        self._ended = ""
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def began(self, snapshot: Snapshot) -> None:
        """A core begins; also again, after it was dropped and loaded."""
        self._hand_over(snapshot)

    def record(self, now_us: int, event: Event, step: Step) -> None:
        """An event was handled."""
        self._hand_over((now_us, event, step))

    def close(self) -> None:
        """Write what was handed over, and end."""
        if self._thread.is_alive():
            try:
                self._backlog.put(None, timeout=_CLOSE_S)
            except queue.Full:
                return  # a disk that hangs; the thread is a daemon and goes with the process
        self._thread.join(_CLOSE_S)

    def _hand_over(self, item: Snapshot | tuple[int, Event, Step]) -> None:
        if self._ended:
            return
        try:
            self._backlog.put_nowait(item)
        except queue.Full:
            self._end("writing did not keep up")

    def _write(self) -> None:
        """The thread: encode and write what is handed over; if that ends early, say so in the last line."""
        written = 0
        with self._file:
            try:
                while (item := self._backlog.get()) is not None and not self._ended:
                    written += self._file.write(_encoded(item, self._policy, self._gpus) + b"\n")
                    if self._backlog.empty():
                        self._file.flush()
                    if written > self._bytes_max:
                        self._end(f"the limit of {self._bytes_max} bytes was reached")
                if self._ended:
                    self._file.write(codec().encode(RecordingEnded(reason=self._ended)) + b"\n")
            except OSError as error:
                self._end(f"the disk refused: {error.strerror}")
            except (RecordingError, TypeError) as error:
                self._end(f"a value has no canonical text: {error}")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = reason
            _log.error("recording_ended", reason=reason)


def _encoded(item: Snapshot | tuple[int, Event, Step], policy: Policy, gpus: tuple[GpuType, ...]) -> bytes:
    if isinstance(item, Snapshot):
        digest = policy.identity.digest
        return codec().encode(
            RecordingBegun(version=FORMAT_VERSION, program=__version__, policy_digest=digest, policy=policy, gpus=gpus, snapshot=item)
        )
    now_us, event, step = item
    return codec().encode(Recorded(now_us=now_us, event=event, step_sha256=step_digest(step), step_outline=step_outline(step)))
