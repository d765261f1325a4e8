"""One attempt on a resident pipeline: generate, encode, store, commit; each step told and logged, each step a place to stop.

Decides what an attempt's result is and which failure is told. Runs in the slot's one thread. Must not know Ray, leases, or
which attempt comes next.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from agents.core.events import AttemptErrored, AttemptFinished, AttemptHalted
from agents.core.outputs import RunAttempt
from agents.engine.encode import EncodedItem, encode_generation
from agents.engine.errors import EngineError, GenerationStoppedError, failure_of
from agents.engine.gang import GangPlace
from agents.engine.images import read_image
from agents.engine.pipeline import LoadedPipeline
from agents.engine.request import GenerationRequest
from agents.objects import StoreError
from agents.results import ArtifactStore, CommittedResult
from agents.runtime.attempt_files import AttemptLog
from agents.runtime.slot_code import SlotCode
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.errors import AtollError, NotFoundError
from atoll.model.ids import AttemptKey, FormId
from atoll.model.job import IMAGE_INPUT
from atoll.model.limits import IMAGE_BYTES_MAX, REASON_CHARS_MAX
from atoll.model.modelspec import Modality

AttemptEnd = AttemptFinished | AttemptErrored | AttemptHalted
NO_TIMES: Final = PhaseTimes()
# A picture took seconds to hours to make: worth a few more tries when its store does not answer at once.
_STORE_PAUSES_S: Final = (0.2, 1.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEnded:
    """A member of a gang that is not its lead has done its share of an attempt, and well; the lead goes on with the result."""

    key: AttemptKey


MemberEnd = AttemptEnd | ShareEnded


class Halt:
    """Whether an attempt should stop, and what its end is then. The first reason counts. Safe for threads."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._end: AttemptErrored | AttemptHalted | None = None

    def now(self, end: AttemptErrored | AttemptHalted) -> None:
        """Stop at the next step, with this end."""
        with self._lock:
            if self._end is None:
                self._end = end
        self._asked.set()

    def asked(self) -> bool:
        """Whether to stop."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past being asked; whether it was."""
        return self._asked.wait(seconds)

    @property
    def end(self) -> AttemptErrored | AttemptHalted | None:
        """The end that was asked for, if any."""
        with self._lock:
            return self._end


class _HaltedError(AtollError):
    """The attempt was told to stop outside of the denoising loop."""


def refusal_of(order: RunAttempt) -> Failure | None:
    """Why this runtime cannot execute such a job at all, if it cannot: what it does not know is refused, not ignored."""
    spec = order.spec
    for field, value, without in (
        ("inputs", ", ".join(one.name for one in spec.inputs if one.name != IMAGE_INPUT) or "known", "known"),
        ("simulated", spec.simulated, False),
    ):
        if value != without:
            return Failure(kind=FailureKind.BAD_INPUT, message=f"{field} is {value}: expected {without} at a real site")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One attempt and its surroundings. `advanced(state, steps_done)` is called in the slot's thread, as `code_held(forms)` is when the
    node has other code than before."""

    order: RunAttempt
    artifacts_url: str
    logs_dir: Path
    halt: Halt
    advanced: Callable[[AttemptState, int], None]
    place: GangPlace | None = None
    code: SlotCode | None = None
    code_held: Callable[[tuple[FormId, ...]], object] | None = None

    def run(self, loaded: LoadedPipeline) -> MemberEnd:
        """Execute to an end; never raises."""
        log = AttemptLog(self.logs_dir, self.order.key)
        start_ns = time.monotonic_ns()
        end: MemberEnd
        try:
            with _python_log_in(log):
                end = self._run(loaded, log)
        except (GenerationStoppedError, _HaltedError) as stopped:
            asked = self.halt.end
            if asked is None:
                assert self.place is not None, "who stops it says how it ends"
                asked = AttemptHalted(key=self.order.key)  # another member was told to stop, and knows why
            end = replace(asked, times=_times(start_ns)) if isinstance(asked, AttemptErrored) else asked
            why = f": {asked.failure.message}" if isinstance(asked, AttemptErrored) else ""
            log.line(f"{stopped}{why}", last=True)
        except Exception as error:  # noqa: BLE001 - whatever a pipeline raises ends this attempt, never the slot
            kind = FailureKind.UPLOAD_FAILED if isinstance(error, StoreError) else FailureKind.INTERNAL
            failure = failure_of(error, kind)
            if isinstance(error, StoreError):
                failure = Failure(kind=kind, message=" ".join(str(error).split())[:REASON_CHARS_MAX])
            log.line(f"failed ({failure.kind}): {failure.message}", last=True)
            log.line("".join(traceback.format_exception(error))[-8000:], last=True)
            end = AttemptErrored(key=self.order.key, failure=failure, times=_times(start_ns))
        finally:
            log.close()
        return end

    def _run(self, loaded: LoadedPipeline, log: AttemptLog) -> AttemptFinished | ShareEnded:
        if self.place is not None and self.place.rank > 0:
            return self._share(loaded, log, self.place)
        order, spec = self.order, self.order.spec
        manifest = loaded.manifest
        slot = order.slot
        log.line(f"attempt {order.key} of request {order.request_id or '-'} in slot {slot.node_id}/{slot.index} on {loaded.device}")
        log.line(f"model {manifest.model_id} {manifest.digest} ({manifest.pipeline_class}, {loaded.precision})")
        log.line(f"shape {spec.shape}, batch {spec.shape.batch}, seed {spec.seed}, prompt of {len(spec.prompt)} characters")
        if spec.adapters:
            log.line("adapters " + ", ".join(f"{use.adapter_id} at {use.scale_milli / 1000:g}" for use in spec.adapters))
        start_ns = time.monotonic_ns()
        folder = self._code_folder(loaded, log)
        prepared_ns = time.monotonic_ns()

        def stepped(done: int, steps: int) -> None:
            log.line(f"step {done}/{steps} at {(time.monotonic_ns() - start_ns) / 1e9:.3f} s")
            self.advanced(AttemptState.RUNNING, done)

        request = GenerationRequest.of_job(spec, image=self._image(log))
        generation = loaded.generate(request, on_step=stepped, should_stop=self.halt.asked, gang=self.place, code=folder)
        compile_us = self._compiled(generation.compile_us, (prepared_ns - start_ns) // 1000, log)
        log.line(f"denoised in {generation.denoise_us / 1e6:.3f} s, decoded in {generation.decode_us / 1e6:.3f} s")
        encoded = encode_generation(
            generation,
            request,
            job=order.key.job_id,
            attempt=order.key.ordinal,
            model=manifest.model_id,
            model_digest=manifest.digest,
            precision=loaded.precision,
            video=manifest.modality is Modality.VIDEO,
            image_digest=spec.image.digest if spec.image is not None else "",
        )
        uploading_ns = time.monotonic_ns()
        self.advanced(AttemptState.UPLOADING, generation.steps_done)
        committed = self._store(encoded, log, partial(_times, start_ns, uploading_ns, compile_us))
        times = _times(start_ns, uploading_ns, compile_us)
        log.line(f"succeeded: run {times.run_us / 1e6:.3f} s, upload {times.upload_us / 1e6:.3f} s", last=True)
        return AttemptFinished(key=order.key, manifest=committed.manifest, times=times)

    def _share(self, loaded: LoadedPipeline, log: AttemptLog, place: GangPlace) -> ShareEnded:
        """What a member does that is not the lead: its part of each step, and nothing else. The lead tells and logs the steps."""
        log.line(f"member {place.rank} of a gang of {place.size} on {loaded.device}, beside slot {self.order.slot.index}")
        request = GenerationRequest.of_job(self.order.spec, image=self._image(log))
        loaded.generate(request, should_stop=self.halt.asked, gang=place)
        return ShareEnded(key=self.order.key)

    def _code_folder(self, loaded: LoadedPipeline, log: AttemptLog) -> Path | None:
        """Where the denoiser's code is kept; None where it runs eager. Tells the phase."""
        form = self.order.form
        folder = self.code.prepare(form, self.artifacts_url, log.line) if form is not None and self.code is not None else None
        compiles = folder is not None and not loaded.has_code(folder)
        self.advanced(AttemptState.COMPILING if compiles else AttemptState.RUNNING, 0)
        return folder

    def _compiled(self, compile_us: int, prepare_us: int, log: AttemptLog) -> int:
        """The generation ran: its code is complete. How long it took to come to it, fetching included; -1 if it was at hand."""
        if self.order.form is None or self.code is None or not compile_us:
            return -1
        self.code.made(self.order.form)
        if self.code_held is not None:
            self.code_held(self.code.forms)
        log.line(f"compiled in {(compile_us + prepare_us) / 1e6:.3f} s")
        return compile_us + prepare_us

    def _image(self, log: AttemptLog) -> Any:
        """The image to begin with, decoded; None without one. FieldError for what is none, EngineError if it cannot be had."""
        wanted = self.order.spec.image
        if wanted is None:
            return None
        for pause_s in (*_STORE_PAUSES_S, None):
            self._stop_if_asked()
            try:
                data = ArtifactStore(self.artifacts_url).get_input(wanted.digest, max_bytes=IMAGE_BYTES_MAX)
            except NotFoundError:
                what = f"input {wanted.name} ({wanted.digest}) is not in the artifact store (any more): upload it and submit again"
                raise EngineError(FailureKind.BAD_INPUT, what) from None
            except StoreError as error:
                if pause_s is None:
                    raise EngineError(FailureKind.FETCH_FAILED, f"input {wanted.name} cannot be read: {error}") from error
                log.line(f"{error}; again in {pause_s} s")
                self.halt.wait(pause_s)
            else:
                strength = self.order.spec.strength_milli / 1000
                log.line(f"begins with image {wanted.digest} of {len(data)} bytes, strength {strength:g}")
                return read_image(data)
        raise AssertionError("the last try returns or raises")

    def _store(self, encoded: tuple[EncodedItem, ...], log: AttemptLog, times: Callable[[], PhaseTimes]) -> CommittedResult:
        """Put every file, then commit; all of it again a few times while the store does not take it."""
        for pause_s in (*_STORE_PAUSES_S, None):
            self._stop_if_asked()
            try:
                store = ArtifactStore(self.artifacts_url)
                artifacts = tuple(self._put(store, item, log) for item in encoded)
                self._stop_if_asked()
                manifest = ResultManifest(key=self.order.key, artifacts=artifacts, seed=self.order.spec.seed, simulated=False)
                # The site's wall clock: retention counts days, and compares it with nothing else.
                now_us = time.time_ns() // 1000
                return store.commit(CommittedResult(manifest=manifest, committed_us=now_us, times=times()))
            except StoreError as error:
                if pause_s is None:
                    raise
                log.line(f"{error}; again in {pause_s} s")
                self.halt.wait(pause_s)
        raise AssertionError("the last try returns or raises")

    def _put(self, store: ArtifactStore, item: EncodedItem, log: AttemptLog) -> Artifact:
        self._stop_if_asked()
        artifact = store.put_bytes(item.data, name=item.name, media_type=item.media_type, pixel_digest=item.pixel_digest)
        log.line(f"stored {artifact.name}, {artifact.bytes} bytes, as {artifact.uri}")
        return artifact

    def _stop_if_asked(self) -> None:
        if self.halt.asked():
            raise _HaltedError("stopped before the result was committed")


def _times(start_ns: int, uploading_ns: int | None = None, compile_us: int = -1) -> PhaseTimes:
    now_ns = time.monotonic_ns()
    if uploading_ns is None:
        return PhaseTimes(run_us=(now_ns - start_ns) // 1000)
    run_us = (uploading_ns - start_ns) // 1000 - max(compile_us, 0)
    return PhaseTimes(compile_us=compile_us, run_us=run_us, upload_us=(now_ns - uploading_ns) // 1000)


class _LogHandler(logging.Handler):
    """Warnings of the libraries, into the attempt's log: they speak of this attempt, the only one in this process."""

    def __init__(self, log: AttemptLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.line(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")


@contextmanager
def _python_log_in(log: AttemptLog) -> Iterator[None]:
    handler = _LogHandler(log)
    # diffusers and transformers keep their loggers to themselves.
    loggers = [logging.getLogger(name) for name in ("", "diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
