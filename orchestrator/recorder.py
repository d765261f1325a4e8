"""Recordings: a snapshot of the core, then every (now, event) with the digest of its Step; and their replay.

Decides the form of a recording and when one ends early: at its size limit, or when the disk cannot keep up. A recording has no
holes. Encoding and writing happen on a thread of their own; the loop only hands frozen values over. Must not know what events mean.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog

from atoll.model.errors import AtollError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.wire.recording import RecordingError, TaggedCodec
from orchestrator.core.events import Event
from orchestrator.core.machine import Machine, restore
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
    """A core begins: what it was made of."""

    version: int
    policy_digest: str = ""
    policy: Policy
    gpus: tuple[GpuType, ...]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One event, and the digest of the Step it led to."""

    now_us: int
    event: Event
    step_sha256: str


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
        return codec().encode(RecordingBegun(version=FORMAT_VERSION, policy_digest=digest, policy=policy, gpus=gpus, snapshot=item))
    now_us, event, step = item
    return codec().encode(Recorded(now_us=now_us, event=event, step_sha256=step_digest(step)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event that led to another Step than was recorded. `line` counts from 1."""

    line: int
    event: Event
    recorded_sha256: str
    replayed: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay found. `ended` is why the recording stopped early, "" if it did not; `torn`: its last line was half written."""

    events: int
    cores: int
    difference: Difference | None
    ended: str
    torn: bool


def replay(path: Path) -> Replayed:
    """Feed a recording to new cores and compare every Step, up to the first that differs. Raises AtollError for a file that is none."""
    machine: Machine | None = None
    events = cores = 0
    with path.open("rb") as source:
        for number, line in enumerate(source, start=1):
            if not line.endswith(b"\n"):
                return Replayed(events=events, cores=cores, difference=None, ended="", torn=True)
            try:
                item = codec().decode(line)
            except RecordingError as error:
                raise AtollError(f"{path}:{number}: {error}") from error
            match item:
                case RecordingBegun(version=version) if version != FORMAT_VERSION:
                    raise AtollError(f"{path}:{number}: version {version} of the format: expected {FORMAT_VERSION}")
                case RecordingBegun(policy=policy, gpus=gpus, snapshot=snapshot):
                    machine = restore(snapshot, policy, {gpu.gpu_type: gpu for gpu in gpus})
                    cores += 1
                case Recorded(now_us=now_us, event=event, step_sha256=recorded) if machine is not None:
                    step = machine.handle(event, now_us)
                    events += 1
                    if step_digest(step) != recorded:
                        difference = Difference(line=number, event=event, recorded_sha256=recorded, replayed=step)
                        return Replayed(events=events, cores=cores, difference=difference, ended="", torn=False)
                case RecordingEnded(reason=reason):
                    return Replayed(events=events, cores=cores, difference=None, ended=reason, torn=False)
                case _:
                    raise AtollError(f"{path}:{number}: a recording begins with a snapshot")
    return Replayed(events=events, cores=cores, difference=None, ended="", torn=False)
