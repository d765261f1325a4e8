"""One model from several sources at once: which of them brings which bytes, and who takes over from one that is slow or fails.

Decides the shares: each source takes a part of what nobody has taken, the smaller the less is left; one that has nothing left to take
takes over from the one that would be last, as much as it brings sooner. A source that fails is given up and its part is free again. A file
is believed when all of it has the digest that the manifest says, read back from the disk in order while the rest still comes; if it has
not, every peer that gave something of it is given up, and it comes again. Nothing is written of a part that another has taken over.
Must not know the cache's layout, quotas or who asked.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents import ranges
from agents.engine.manifest import ManifestFile
from agents.origins import CHUNK_BYTES, FetchError, Origin, read_some, write_error
from agents.parts import EARLIER, File, Part, left_s
from atoll.model.attempt import FailureKind

_MIB: Final = 1024 * 1024
# A request costs a round trip, some 50 ms at 160 MB/s: a part is no smaller, if the file has as much.
_PART_BYTES_MIN: Final = 8 * _MIB
# What is read at once. As little as that is lost when another takes over.
_READ_BYTES: Final = _MIB
# Taking over costs a request too: not for what would be there as soon.
_WORTH_S: Final = 0.25
# Silent for so long: what is left of its part is another's, all of it.
_STALLED_S: Final = 2.0
_TICK_S: Final = 0.1
# How long one who was given up, or is not needed any more, is waited for. It writes nothing, and ends when its source is silent too long.
_FAREWELL_S: Final = 0.5
# Whatever a peer did wrong, the others go on. A full disk or a stop is nobody's fault.
_SOURCES_FAULT: Final = frozenset({FailureKind.FETCH_FAILED, FailureKind.BAD_WEIGHTS})


@dataclass(slots=True)
class _Worker:
    """One source. `origin`: it is the origin store, of which only a failure of the last source is told."""

    number: int
    source: Origin
    origin: bool
    part: Part | None = None
    came: int = 0
    busy_s: float = 0.0
    failed: FetchError | None = None
    thread: threading.Thread | None = None


class ParallelFetch:
    """A fetch of some files by several sources. `peers` and, if given, `origin` begin at once; `reserve` does when all others have failed.

    `gave_up` hears of each peer that is left.
    """

    def __init__(
        self,
        files: tuple[ManifestFile, ...],
        partial: Path,
        peers: list[Origin],
        origin: Origin,
        *,
        origin_too: bool,
        gave_up: Callable[[Origin, FetchError], None],
    ) -> None:
        self._partial = partial
        self._gave_up = gave_up
        self._changed = threading.Condition()
        self._over = False
        self._writing = 0
        self._counted = 0
        self._error: FetchError | None = None
        self._files = self._open(files)
        self._todo = [(file, start, end) for file in self._files for start, end in ranges.missing(file.there, file.spec.bytes)]
        self._workers = [_Worker(number, peer, origin=False) for number, peer in enumerate(peers)]
        last = _Worker(len(peers), origin, origin=True)
        self._reserve = None if origin_too else last
        if origin_too:
            self._workers.append(last)

    @property
    def peer_bytes(self) -> int:
        """Bytes of verified files that peers gave."""
        origin = next((worker.number for worker in self._workers if worker.origin), -1)
        return sum(size for file in self._files if file.verified for number, size in file.given.items() if number not in (EARLIER, origin))

    def run(self, on_bytes: Callable[[int], None]) -> int:
        """Bring everything; the bytes that came over. `on_bytes` hears them, also those that were there, and may raise to end it."""
        try:
            for worker in list(self._workers):
                self._start(worker)
            threading.Thread(target=self._read_earlier, name="weights-reader", daemon=True).start()
            while not self._watch(on_bytes):
                pass
        finally:
            self._close()
        return sum(worker.came for worker in self._workers)

    # --- the caller's thread --------------------------------------------------------------------------------------------------------

    def _open(self, files: tuple[ManifestFile, ...]) -> list[File]:
        held = ranges.held(self._partial, files)
        found = []
        for file in files:
            target = self._partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            there = held[file.path]
            one = File(spec=file, descriptor=os.open(target, os.O_RDWR | os.O_CREAT, 0o644), there=there)
            size = sum(end - start for start, end in there)
            if size:
                one.given[EARLIER] = size
                self._counted += size
            found.append(one)
        return found

    def _start(self, worker: _Worker) -> None:
        # A daemon: one that hangs in a read of a silent source does not keep the process.
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=f"weights-source-{worker.number}", daemon=True)
        worker.thread.start()

    def _watch(self, on_bytes: Callable[[int], None]) -> bool:
        """Tell what came; whether all is there. The error that ends everything is raised."""
        with self._changed:
            self._changed.wait(_TICK_S)
            counted, self._counted = self._counted, 0
            done = all(file.verified for file in self._files)
            error = self._error
            alive = [worker for worker in self._workers if worker.failed is None]
        on_bytes(counted)
        if error is not None:
            raise error
        if not done and not alive:
            if self._reserve is None:
                failed = next((worker.failed for worker in reversed(self._workers) if worker.failed is not None), None)
                assert failed is not None, "whoever is not alive has failed"
                raise failed
            worker, self._reserve = self._reserve, None
            self._workers.append(worker)
            self._start(worker)
        return done

    def _close(self) -> None:
        with self._changed:
            self._over = True
            # From here on nothing more is claimed, and what is claimed is written.
            parts = [worker.part for worker in self._workers if worker.part is not None]
            self._changed.notify_all()
            while self._writing:
                self._changed.wait()
        for part in parts:
            self._note(part)
        until_s = time.monotonic() + _FAREWELL_S
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(until_s - time.monotonic(), 0))
        for file in self._files:
            with file.reading:
                os.close(file.descriptor)
                file.descriptor = -1

    # --- a source's thread ----------------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        try:
            while (part := self._take(worker)) is not None:
                self._bring(worker, part)
                if not self._over:
                    self._read_back(part.file)
        except FetchError as error:
            self._fail(worker, error)
        except OSError as error:
            self._fail(worker, write_error(error, self._partial))
        except Exception as error:  # noqa: BLE001 - whatever a client of some store raises, the other sources go on
            self._fail(worker, FetchError(FailureKind.FETCH_FAILED, f"{worker.source.url}: {type(error).__name__}: {error}"))

    def _take(self, worker: _Worker) -> Part | None:
        """The next part of a source; None when there is nothing more to do."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                if self._over or self._error is not None or worker.failed is not None or all(file.verified for file in self._files):
                    return None
                part = self._free_part(now_s) or self._taken_over(worker, now_s)
                if part is not None:
                    worker.part = part
                    return part
                self._changed.wait(_TICK_S)

    def _free_part(self, now_s: float) -> Part | None:
        if not self._todo:
            return None
        left = sum(end - start for _, start, end in self._todo)
        sources = sum(worker.failed is None for worker in self._workers)
        file, start, end = self._todo.pop(0)
        size = max(left // (2 * sources), _PART_BYTES_MIN)
        if end - start > size + _PART_BYTES_MIN:
            self._todo.insert(0, (file, start + size, end))
            end = start + size
        return Part(file, start, end, start, now_s, now_s)

    def _taken_over(self, worker: _Worker, now_s: float) -> Part | None:
        """Some of the part that would be there last, if this source has it sooner."""
        parts = [other.part for other in self._workers if other is not worker and other.part is not None and other.failed is None]
        found = max(parts, key=lambda part: left_s(part, now_s), default=None)
        if found is None or left_s(found, now_s) < _WORTH_S:
            return None
        left = found.end - found.claimed
        own = worker.came / worker.busy_s if worker.busy_s > 0 else 0.0
        theirs = (found.claimed - found.start) / max(now_s - found.begun_s, 1e-3)
        kept = int(left * theirs / (own + theirs)) if own > 0 and theirs > 0 else left // 2
        if now_s - found.heard_s > _STALLED_S or kept < _READ_BYTES:
            kept = 0
        start, end = found.claimed + kept, found.end
        if start >= end:
            return None
        found.end = start
        return Part(found.file, start, end, start, now_s, now_s)

    def _bring(self, worker: _Worker, part: Part) -> None:
        where = f"{worker.source.url}/{part.file.spec.path}"
        with worker.source.open_range(part.file.spec.path, part.start, part.end) as source:
            while part.claimed < part.end:
                chunk = read_some(source, min(_READ_BYTES, part.end - part.claimed), where, worker.source.heard)
                if not chunk:
                    problem = f"ends after {part.claimed} of {part.file.spec.bytes} bytes, which the manifest says"
                    raise FetchError(FailureKind.FETCH_FAILED, f"{where}: {problem}")
                if not self._write(worker, part, chunk):
                    break
        self._finish(worker, part)

    def _write(self, worker: _Worker, part: Part, chunk: bytes) -> bool:
        """Put what came where it belongs, as far as the part is still this source's own. Whether there is more to bring."""
        with self._changed:
            at, size = part.claimed, min(len(chunk), part.end - part.claimed)
            if self._over or size <= 0 or worker.failed is not None:
                return False
            part.claimed, part.heard_s = at + size, time.monotonic()
            self._writing += 1
        try:
            done = 0
            while done < size:
                done += os.pwrite(part.file.descriptor, memoryview(chunk)[done:size], at + done)
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()
        with self._changed:
            part.file.there = ranges.merged((*part.file.there, (at, at + size)))
            part.file.given[worker.number] = part.file.given.get(worker.number, 0) + size
            worker.came += size
            self._counted += size
        if part.file.first_gap - part.file.hashed >= CHUNK_BYTES:
            self._read_back(part.file)
        return True

    def _finish(self, worker: _Worker, part: Part) -> None:
        with self._changed:
            worker.part = None
            worker.busy_s += max(time.monotonic() - part.begun_s, 1e-6)
            over = self._over
            if part.claimed < part.end:  # it was given up meanwhile
                self._todo.append((part.file, part.claimed, part.end))
            self._changed.notify_all()
        if not over:
            self._note(part)

    def _note(self, part: Part) -> None:
        if part.claimed > part.start:
            with suppress(OSError):  # what is not noted is fetched again
                ranges.note(self._partial, part.file.spec.path, part.start, part.claimed)

    def _fail(self, worker: _Worker, error: FetchError) -> None:
        """A source is given up, and what it has not brought is free again; or, if it is no fault of a source, everything ends."""
        with self._changed:
            part, worker.part = worker.part, None
            if self._over:
                return
            worker.failed = error
            if error.kind not in _SOURCES_FAULT:
                self._error = error
            elif part is not None and part.claimed < part.end:
                self._todo.append((part.file, part.claimed, part.end))
            self._changed.notify_all()
        if part is not None:
            self._note(part)
        if not worker.origin and error.kind in _SOURCES_FAULT:
            self._gave_up(worker.source, error)

    # --- what came is looked at -------------------------------------------------------------------------------------------------------

    def _read_earlier(self) -> None:
        """Files of which nothing is missing have nobody else who would look at them."""
        try:
            for file in self._files:
                if not ranges.missing(file.there, file.spec.bytes):
                    self._read_back(file)
        except (FetchError, OSError) as error:
            with self._changed:
                self._error = error if isinstance(error, FetchError) else write_error(error, self._partial)
                self._changed.notify_all()

    def _read_back(self, file: File) -> None:
        """Read a file on in order, as far as it is there; whoever finds another at it leaves it to that one, but for the end."""
        while True:
            with self._changed:
                whole = file.there == [(0, file.spec.bytes)] or not file.spec.bytes
            if not file.reading.acquire(blocking=whole):
                return
            try:
                if file.verified or file.descriptor < 0:
                    return
                self._hash(file)
                if file.hashed < file.spec.bytes:
                    return
                if file.digest.hexdigest() == file.spec.sha256:
                    os.fsync(file.descriptor)
                    with self._changed:
                        file.verified = True
                        self._changed.notify_all()
                    return
                self._doubt(file)
            finally:
                file.reading.release()

    def _hash(self, file: File) -> None:
        while not self._over:
            with self._changed:
                until = file.first_gap
            if file.hashed >= until:
                return
            data = os.pread(file.descriptor, min(CHUNK_BYTES, until - file.hashed), file.hashed)
            if not data:
                raise FetchError(FailureKind.FETCH_FAILED, f"{self._partial / file.spec.path}: shorter than it was a moment ago")
            file.digest.update(data)
            file.hashed += len(data)

    def _doubt(self, file: File) -> None:
        """The whole file is not what the manifest says: it comes again, without the peers that gave something of it. If an earlier try left
        something of it, that may be what is wrong: then all may try once more."""
        problem = f"sha256 {file.digest.hexdigest()} instead of {file.spec.sha256}, which the manifest says"
        told: list[tuple[Origin, FetchError]] = []
        with self._changed:
            givers = [] if EARLIER in file.given else [one for one in self._workers if one.number in file.given]
            for one in givers:
                error = FetchError(FailureKind.BAD_WEIGHTS, f"{one.source.url}/{file.spec.path}: {problem}")
                if one.origin:
                    self._error = error if len(givers) == 1 else self._error
                elif one.failed is None:
                    one.failed = error
                    told.append((one.source, error))
            file.given, file.there, file.hashed, file.digest = {}, [], 0, hashlib.sha256()
            self._counted -= file.spec.bytes
            os.ftruncate(file.descriptor, 0)
            self._todo.insert(0, (file, 0, file.spec.bytes))
            self._changed.notify_all()
        for source, failure in told:
            self._gave_up(source, failure)
