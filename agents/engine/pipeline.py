"""Loads diffusers pipelines from local folders and generates with them, observed and stoppable at each step.

Decides how a pipeline is loaded (safetensors, offline, no remote code), measured, called and freed. Must not know
Ray, jobs or files of results. Torch and diffusers are imported when an `Engine` is made, not before.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agents.engine.adapters import AdapterSet
from agents.engine.calling import parameters_of, plan_call, shape_rule
from agents.engine.compiled import CompiledCode, CompileWatch
from agents.engine.errors import BadWeightsError, EngineError, GenerationStoppedError
from agents.engine.gang import GangPlace, breaks_gang, together
from agents.engine.images import image_sibling, place_image
from agents.engine.manifest import INDEX_NAME, READ_BYTES, ModelManifest, check_pipeline_class, verify_folder
from agents.engine.quiet import prepare_environment, quiet_loading
from agents.engine.request import AdapterFile, GeneratedItem, Generation, GenerationRequest, LoadReport
from agents.engine.steps import StepWatch, now_us
from atoll.model.attempt import FailureKind
from atoll.model.errors import AtollError, FieldError, StateError
from atoll.model.ids import AdapterId
from atoll.model.shape import Precision

_DTYPES: Final = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}
_DEVICE = re.compile(r"(cpu|cuda(:[0-9]{1,2})?)\Z")
_VARIANT = re.compile(r".*\.(fp16|bf16|fp32)(-[0-9]{5}-of-[0-9]{5})?\.safetensors\Z")


class Engine:
    """Loads pipelines into this process. One per process: it sets the threads and the environment of torch."""

    def __init__(self, *, threads: int = 1) -> None:
        prepare_environment(threads)
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self.code = CompiledCode()

    def load(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        precision: Precision = Precision.FP32,
        verify_digests: bool = False,
    ) -> LoadedPipeline:
        """The pipeline of a model folder, resident on `device` in `precision`.

        The folder is checked against its manifest first; contents are hashed again only with `verify_digests` (they
        were when they were fetched). BadWeightsError for an unsound folder, FieldError for a device or precision
        that is not there, EngineError(OUT_OF_MEMORY or LOAD_FAILED) else; after any of them nothing stays in memory.
        """
        self._check_device(device)
        if precision not in _DTYPES:
            raise FieldError("precision", precision, f"one of {', '.join(_DTYPES)}, which this engine computes in")
        manifest = verify_folder(folder, digests=verify_digests)
        check_pipeline_class(manifest)
        try:
            return self._load(folder, manifest, device, precision)
        except AtollError:
            raise
        except Exception as error:
            self.release_memory()
            raise self._engine_error(error, FailureKind.LOAD_FAILED, f"cannot load {manifest.model_id}") from error

    def _load(self, folder: Path, manifest: ModelManifest, device: str, precision: Precision) -> LoadedPipeline:
        import diffusers

        start_us = now_us()
        disk_before = _disk_bytes()
        read_bytes = _read_all(folder, manifest)
        disk_bytes = min(read_bytes, max(0, _disk_bytes() - disk_before))
        read_us = now_us() - start_us
        with quiet_loading():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(folder),
                dtype=getattr(self._torch, _DTYPES[precision]),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                variant=_variant(manifest),
            )
        if "prompt" not in parameters_of(pipeline) or not hasattr(getattr(pipeline, "scheduler", None), "step"):
            problem = f"{manifest.pipeline_class} takes no prompt or has no scheduler"
            raise BadWeightsError(INDEX_NAME, problem, "a text-to-image or text-to-video pipeline")
        pipeline.set_progress_bar_config(disable=True)
        init_us = now_us() - start_us - read_us
        moved_bytes, move_us = self._move(pipeline, device)
        report = LoadReport(
            read_bytes=read_bytes,
            disk_bytes=disk_bytes,
            read_us=read_us,
            init_us=init_us,
            moved_bytes=moved_bytes,
            move_us=move_us,
            resident_bytes=_tensor_bytes(pipeline),
        )
        return LoadedPipeline(self, pipeline, manifest=manifest, device=device, precision=precision, report=report)

    def _move(self, pipeline: Any, device: str) -> tuple[int, int]:
        """(bytes, microseconds) of bringing the pipeline to the device; (0, 0) on a CPU."""
        if device == "cpu":
            return 0, 0
        size = _tensor_bytes(pipeline)
        self._torch.cuda.synchronize(device)
        start_us = now_us()
        pipeline.to(device)
        self._torch.cuda.synchronize(device)
        return size, now_us() - start_us

    def _check_device(self, device: str) -> None:
        if not _DEVICE.match(device):
            raise FieldError("device", device, "'cpu', 'cuda' or 'cuda:N'")
        count = self._torch.cuda.device_count() if device != "cpu" else 0
        index = int(device.partition(":")[2] or 0)
        if device != "cpu" and index >= count:
            raise FieldError("device", device, f"'cpu' or one of the {count} CUDA devices of this process")

    def _engine_error(self, error: Exception, kind: FailureKind, what: str) -> EngineError:
        """`error` of torch, diffusers or transformers as Atoll reports it."""
        text = f"{what}: {type(error).__name__}: {error}"
        if isinstance(error, (MemoryError, self._torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            kind = FailureKind.OUT_OF_MEMORY
        return EngineError(kind, text)

    def release_memory(self) -> None:
        """Give freed memory back: Python's, CUDA's cache, and the C heap's free pages."""
        gc.collect()
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


class LoadedPipeline:
    """A pipeline resident on a device. `generate` is for one caller at a time; `unload` ends its life."""

    def __init__(
        self,
        engine: Engine,
        pipeline: Any,
        *,
        manifest: ModelManifest,
        device: str,
        precision: Precision,
        report: LoadReport,
    ) -> None:
        self._engine = engine
        self._torch = engine._torch
        self._pipeline = pipeline
        self._from_image: Any = None  # the pipeline's form that begins with an image, once it was needed
        self._adapters = AdapterSet(pipeline, name=manifest.model_id)
        self._busy = threading.Lock()
        self.manifest = manifest
        self.device = device
        self.precision = precision
        self.report = report
        # What is loaded on it, active or not, sorted; and parameters and buffers, those of adapters included. Read by other threads.
        self.adapters: tuple[AdapterId, ...] = ()
        self.resident_bytes = report.resident_bytes
        self.shape_rule = shape_rule(pipeline)

    def has_code(self, folder: Path) -> bool:
        """Whether the code that is kept in this folder runs in this process already."""
        return self._engine.code.runs(self._pipeline, folder)

    def adapt(self, files: Sequence[AdapterFile], unload: Sequence[AdapterId] = ()) -> None:
        """Take adapters off, then put others on, inactive until a request names them.

        BadWeightsError for a file that is not what it should be, EngineError(BAD_INPUT) for an adapter of another base, or
        OUT_OF_MEMORY; what was loaded before stays usable. StateError while a generation runs or after `unload`.
        """
        with self._at_work("is generating: its adapters stay as they are"):
            try:
                self._adapt(files, unload)
            finally:
                self.adapters = tuple(sorted(self._adapters.digests))
                self.resident_bytes = _tensor_bytes(self._pipeline)

    def _adapt(self, files: Sequence[AdapterFile], unload: Sequence[AdapterId]) -> None:
        for adapter_id in unload:
            self._adapters.unload(adapter_id)
        if unload:
            self._engine.release_memory()
        for file in files:
            try:
                self._adapters.load(file.adapter_id, file.path, file.digest)
            except AtollError:
                raise
            except Exception as error:
                self._engine.release_memory()
                what = f"cannot load adapter {file.adapter_id}"
                raise self._engine._engine_error(error, FailureKind.LOAD_FAILED, what) from error

    @contextmanager
    def _at_work(self, otherwise: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise StateError(f"{self.manifest.model_id} {otherwise}")
        try:
            if self._pipeline is None:
                raise StateError(f"{self.manifest.model_id} was unloaded")
            yield
        finally:
            self._busy.release()

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_step: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        gang: GangPlace | None = None,
        code: Path | None = None,
    ) -> Generation:
        """Make what `request` asks. Equal requests on equal hardware and software give equal pixels.

        `on_step(done, steps)` is called in this thread after each step; `should_stop` is asked before and after
        each, and a True ends in GenerationStoppedError with the pipeline usable. FieldError for what the pipeline
        cannot make, EngineError(BAD_INPUT, OUT_OF_MEMORY or EXECUTION_FAILED) else; StateError while another call
        runs or after `unload`.

        With `gang` the members of that gang make it together: each is called with an equal request and its own place,
        only the lead's answer has items. EngineError(RUNTIME_LOST) when another member is gone.

        With `code` the denoiser runs compiled, by code that is kept in that folder and made at the first call for it. The pixels are
        those without up to `compiled.PIXEL_TOLERANCE`.
        """
        request.check()
        with self._at_work("is generating already: one call at a time"):
            pipeline = self._pipeline
            if request.image is not None:
                pipeline = self._from_image = self._from_image or image_sibling(self._pipeline)
            call = plan_call(pipeline, request)
            arguments = dict(call.arguments)
            if request.image is not None:
                arguments["image"] = place_image(request.image, request.shape)
            if gang is not None and gang.rank > 0:
                arguments["output_type"] = "latent"
            with together(gang, pipeline, self.shape_rule, request, call.guidance, self.device, should_stop) as stop:
                partial = request.image is not None
                watch = StepWatch(pipeline, request.shape.steps, on_step, stop, self._synchronize, partial=partial)
                compiling = CompileWatch()
                with self._adapters.active(dict(request.adapters)), self._engine.code.running(pipeline, code, compiling):
                    made = self._generate(pipeline, request, arguments, call.guidance, watch)
                compile_us = min(compiling.compile_us, made.denoise_us)
                return replace(made, compile_us=compile_us, denoise_us=made.denoise_us - compile_us)

    def _generate(
        self, pipeline: Any, request: GenerationRequest, arguments: dict[str, Any], guidance: float | None, watch: StepWatch
    ) -> Generation:
        seeds = [request.seed + index for index in range(request.shape.batch)]
        # Noise is drawn on the CPU: the same numbers whatever the device.
        generators = [self._torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments["generator"] = generators if len(generators) > 1 else generators[0]
        if self.device != "cpu":
            self._torch.cuda.reset_peak_memory_stats(self.device)
        try:
            watch.begin()
            with watch.attached(arguments):
                output = pipeline(**arguments)
        except (GenerationStoppedError, AtollError):
            raise
        except Exception as error:
            kind = FailureKind.EXECUTION_FAILED
            if isinstance(error, (ValueError, TypeError, AssertionError)) and watch.steps_done == 0:
                kind = FailureKind.BAD_INPUT  # diffusers checks inputs before the first step, and says so with these
            elif breaks_gang(error):
                kind = FailureKind.RUNTIME_LOST
            failure = self._engine._engine_error(error, kind, f"{self.manifest.model_id} failed")
            self._engine.release_memory()
            raise failure from error
        end_us = now_us()
        denoise_us, step_us = watch.times_us(end_us)
        return Generation(
            items=() if arguments["output_type"] == "latent" else self._items(output, request, seeds),
            guidance=guidance,
            steps_done=watch.steps_done,
            denoise_us=denoise_us,
            decode_us=end_us - watch.begin_us - denoise_us,
            step_us=step_us,
            peak_device_bytes=0 if self.device == "cpu" else int(self._torch.cuda.max_memory_allocated(self.device)),
        )

    def _items(self, output: Any, request: GenerationRequest, seeds: list[int]) -> tuple[GeneratedItem, ...]:
        """The output as items, checked to be what was asked: a pipeline that rounds sizes must not pass unnoticed."""
        made = getattr(output, "frames", None) if self.shape_rule.video else getattr(output, "images", None)
        made = list(made) if made is not None else []
        if made and not isinstance(made[0], (list, tuple)):
            made = [made] if self.shape_rule.video and len(seeds) == 1 else [[image] for image in made]
        shape = request.shape
        sizes = {(*frame.size, len(frames)) for frames in made for frame in frames}
        if len(made) != len(seeds) or sizes != {(shape.width, shape.height, shape.frames)}:
            what = f"{len(made)} results of (width, height, frames) {sorted(sizes)[:3]}"
            raise EngineError(FailureKind.BAD_INPUT, f"{self.manifest.pipeline_class} made {what} instead of {len(seeds)} of {shape}")
        return tuple(
            GeneratedItem(frames=tuple(frame.convert("RGB") for frame in frames), seed=seed)
            for frames, seed in zip(made, seeds, strict=True)
        )

    def _synchronize(self) -> None:
        if self.device != "cpu":
            self._torch.cuda.synchronize(self.device)

    def unload(self) -> None:
        """Free the memory. Idempotent; StateError while a generation runs."""
        if not self._busy.acquire(blocking=False):
            raise StateError(f"{self.manifest.model_id} is generating: stop it before it is unloaded")
        try:
            if self._pipeline is not None:
                self._pipeline.remove_all_hooks()
                self._engine.code.forget(self._pipeline)
                self._pipeline = self._from_image = None
                self._adapters = AdapterSet(None, name=self.manifest.model_id)
                self.adapters, self.resident_bytes = (), 0
                self._engine.release_memory()
        finally:
            self._busy.release()


def _read_all(folder: Path, manifest: ModelManifest) -> int:
    """Read every file once, in order: the disk at its best, and the loader then finds it all in the page cache."""
    buffer = memoryview(bytearray(READ_BYTES))
    total = 0
    for file in manifest.files:
        with (folder / file.path).open("rb", buffering=0) as source:
            while count := source.readinto(buffer):
                total += count
    return total


def _disk_bytes() -> int:
    """Bytes that this process has caused to be read from disks; 0 where the kernel does not say."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^read_bytes: (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _variant(manifest: ModelManifest) -> str | None:
    """The variant ('fp16') if all weights of the folder are of one; None for plain names."""
    weights = [file.path for file in manifest.files if file.path.endswith(".safetensors")]
    variants = {found.group(1) if (found := _VARIANT.match(path)) else None for path in weights}
    return variants.pop() if len(variants) == 1 else None


def _tensor_bytes(pipeline: Any) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    sizes: dict[int, int] = {}
    for component in pipeline.components.values():
        for tensors in (getattr(component, "parameters", None), getattr(component, "buffers", None)):
            if callable(tensors):
                sizes.update({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors()})
    return sum(sizes.values())
