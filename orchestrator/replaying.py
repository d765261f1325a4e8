"""Recordings played again: a new core for each that began, every event handled anew, every Step compared with what was recorded.

Decides what a recording must look like and when it is at its end. A file is hostile until it has been read: whatever is wrong with it ends
the replay with one error that names the line. Must not know what events mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atoll import __version__
from atoll.catalog.decoding import NotTextError, refuse_packed
from atoll.model.errors import AtollError, FieldError, SourceError
from atoll.wire.recording import RecordingError
from orchestrator.core.events import Event
from orchestrator.core.machine import Machine, restore
from orchestrator.core.outputs import Step
from orchestrator.recorder import FORMAT_VERSION, Recorded, RecordingBegun, RecordingEnded, codec, step_digest, step_outline

# The snapshot of a fleet with 100,000 jobs under way and the keys of a million that have ended is half of it; no other line comes near.
LINE_BYTES_MAX: Final = 1024**3


class DifferentStepError(AtollError):
    """An event led to another Step than was recorded. `step` counts from 1; `expected` and `found` say what each was."""

    def __init__(self, where: str, *, step: int, now_us: int, event: str, expected: str, found: str, program: str) -> None:
        super().__init__(f"{where}: step {step} ({event}) is not what was recorded: expected {expected}; found {found}")
        self.step = step
        self.now_us = now_us
        self.event = event
        self.expected = expected
        self.found = found
        self.program = program

    @property
    def hint(self) -> str:
        """Why that may be; "" where nothing is known."""
        if self.program and self.program != __version__:
            return f"it was recorded by version {self.program}; this is {__version__}, and may decide otherwise"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The core after one event; `event` and `step` None: it has just begun. `number` counts events from 1."""

    number: int
    now_us: int
    machine: Machine
    event: Event | None = None
    step: Step | None = None


class Replay:
    """One recording. `ended`: why it stopped before the program did, "" if it did not; `torn`: its last line was half written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.events = 0
        self.cores = 0
        self.ended = ""
        self.torn = False

    def run(self, over: Callable[[int, int], bool] | None = None) -> Iterator[Replayed]:
        """Every event in its order, until one of which `over` (its number and fleet time) is true.

        Raises DifferentStepError for the first other Step, SourceError for a file that is no recording, FieldError for a packed one.
        """
        machine: Machine | None = None
        program = ""
        for number, item in self._items():
            match item:
                case RecordingBegun():
                    machine, program = self._begun(number, item), item.program
                    self.cores += 1
                    yield Replayed(number=self.events, now_us=item.snapshot.now_us, machine=machine)
                case Recorded() if machine is not None:
                    if over is not None and over(self.events + 1, item.now_us):
                        return
                    self.events += 1
                    step = self._handled(number, item, machine, program)
                    yield Replayed(number=self.events, now_us=item.now_us, machine=machine, event=item.event, step=step)
                case RecordingEnded() if machine is not None:
                    self.ended = item.reason
                    return
                case _:
                    raise self._wrong(number, type(item).__name__, "a snapshot, with which a recording begins")
        if machine is None:
            raise self._wrong(1, "cut off" if self.torn else "nothing", "a recording of 'atoll orchestrator --record'")

    def _items(self) -> Iterator[tuple[int, object]]:
        """Lines, read. A last line without its end is what a crash leaves, and no error."""
        try:
            with self._path.open("rb") as source:
                number = 0
                while line := source.readline(LINE_BYTES_MAX):
                    number += 1
                    if number == 1:
                        refuse_packed(line)
                    if not line.endswith(b"\n"):
                        if len(line) == LINE_BYTES_MAX:
                            raise self._wrong(number, "longer", f"at most {LINE_BYTES_MAX} bytes")
                        self.torn = True
                        return
                    try:
                        yield number, codec().decode(line)
                    except RecordingError as error:
                        raise SourceError(str(self._path), number, error.path or "the line", error.value, error.expected) from None
        except OSError as error:
            raise AtollError(f"{self._path} cannot be read: {error.strerror}") from None
        except NotTextError as error:
            raise FieldError("recording", str(self._path), str(error)) from None

    def _begun(self, number: int, item: RecordingBegun) -> Machine:
        if item.version != FORMAT_VERSION:
            raise self._wrong(number, item.version, f"version {FORMAT_VERSION} of the format", "version")
        try:
            return restore(item.snapshot, item.policy, {gpu.gpu_type: gpu for gpu in item.gpus})
        except Exception as error:  # what a snapshot contradicts itself in may fail anywhere
            raise self._wrong(number, f"{type(error).__name__}: {error}", "one that a core can be made of", "the snapshot") from error

    def _handled(self, number: int, item: Recorded, machine: Machine, program: str) -> Step:
        where, event = f"{self._path}:{number}", type(item.event).__name__
        expected = _told(item.step_outline, item.step_sha256)
        try:
            step = machine.handle(item.event, item.now_us)
            digest = step_digest(step)
        except Exception as error:
            found = f"that the core fails with {type(error).__name__}: {error}"
            raise DifferentStepError(
                where, step=self.events, now_us=item.now_us, event=event, expected=expected, found=found, program=program
            ) from error
        if digest != item.step_sha256:
            found = _told(step_outline(step), digest)
            raise DifferentStepError(
                where, step=self.events, now_us=item.now_us, event=event, expected=expected, found=found, program=program
            )
        return step

    def _wrong(self, number: int, value: object, expected: str, field: str = "the line") -> SourceError:
        return SourceError(str(self._path), number, field, value, expected)


def _told(outline: str, digest: str) -> str:
    return f"{outline or 'nothing'} (sha256 {digest[:12]})"
