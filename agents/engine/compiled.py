"""Compiled denoisers: a pipeline's transformer or UNet runs as code that is made for the shape at hand, below one folder.

Decides what of a pipeline is compiled, where the compiler keeps what it makes, and how long compiling took. Where a model's blocks repeat,
they are compiled and not the whole: each once, which takes a seventh of the time at the same speed. Shapes are compiled as exact sizes: a
form's code then is the same whatever ran before it, so that it can be found again under its key.

The same seed gives nearly the same pixels as without: fused operations round differently. On the tiny pipelines no channel of a pixel
moves by more than `PIXEL_TOLERANCE` of 255.

Limits: a pipeline that does not pad its prompts (Qwen-Image, say) compiles anew for each length of a prompt. One that is told to stop while
it compiles stops at the end of the step after. Must not know keys of code, stores or jobs. Torch is imported when something is compiled.
"""

from __future__ import annotations

import copyreg
import importlib
import importlib.metadata
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from agents.engine.errors import EngineError
from atoll.model.attempt import FailureKind
from atoll.model.compiled import Environment

PIXEL_TOLERANCE: Final = 2
_DENOISERS: Final = ("transformer", "transformer_2", "unet")
# What inductor and Triton read when they look for their files.
_FOLDER_VARIABLES: Final = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
# Torch keeps eight variants of a function and then falls back to interpreting it, silently. A block has one per form and width: of 16
# forms a process keeps the code, then it begins anew, and takes what it needs from the folders again.
FORMS_IN_PROCESS: Final = 16
_VARIANTS_MAX: Final = 256


class CompileWatch:
    """How long compiling took during one generation."""

    def __init__(self) -> None:
        self.compile_us = 0
        self._since_ns = 0

    def started(self, _: Any) -> None:
        """Torch begins to compile something."""
        self._since_ns = time.perf_counter_ns()

    def ended(self, _: Any) -> None:
        """It is made."""
        self.compile_us += (time.perf_counter_ns() - self._since_ns) // 1_000


class CompiledCode:
    """What this process runs as compiled code. One per process, as torch's own tables are."""

    def __init__(self) -> None:
        self._installed: set[int] = set()
        self._running: dict[tuple[int, Path], None] = {}  # by the first denoiser of a pipeline
        self._last: Path | None = None

    def runs(self, pipeline: Any, folder: Path) -> bool:
        """Whether the pipeline ran by the code of this folder before."""
        return (id(next(iter(_denoisers(pipeline)), None)), folder) in self._running

    @contextmanager
    def running(self, pipeline: Any, folder: Path | None, watch: CompileWatch) -> Iterator[None]:
        """Meanwhile the pipeline's denoisers run as code that is kept in `folder`; without one as they are.

        EngineError(EXECUTION_FAILED) from within if the compiler fails: a result made otherwise than was asked for is none.
        """
        denoisers = _denoisers(pipeline)
        import torch

        if folder is None:
            if not any(id(denoiser) in self._installed for denoiser in denoisers):
                yield
                return
            with torch.compiler.set_stance("force_eager"):
                yield
            return
        if not denoisers:
            raise EngineError(FailureKind.BAD_INPUT, f"{type(pipeline).__name__} has no denoiser that could be compiled")
        _import_compiler()
        import torch._dynamo.callback as callbacks

        here = (id(denoisers[0]), folder)
        self._turn_to(here)
        self._install(denoisers)
        handler = callbacks.callback_handler
        handler.register_start_callback(watch.started)
        handler.register_end_callback(watch.ended)
        try:
            with _environment(folder), torch._dynamo.config.patch(recompile_limit=_VARIANTS_MAX, accumulated_recompile_limit=_VARIANTS_MAX):
                yield
        finally:
            handler.remove_start_callback(watch.started)
            handler.remove_end_callback(watch.ended)
        self._running[here] = None

    def forget(self, pipeline: Any) -> None:
        """A pipeline leaves: what was compiled for its modules goes with them."""
        gone = {id(denoiser) for denoiser in _denoisers(pipeline)}
        self._installed -= gone
        self._running = {here: None for here in self._running if here[0] not in gone}

    def _install(self, denoisers: list[Any]) -> None:
        for denoiser in denoisers:
            if id(denoiser) in self._installed:
                continue
            if getattr(denoiser, "_repeated_blocks", None):
                denoiser.compile_repeated_blocks(dynamic=False)
            else:
                denoiser.compile(dynamic=False)
            self._installed.add(id(denoiser))

    def _turn_to(self, here: tuple[int, Path]) -> None:
        """To another folder, or the first: what inductor remembers (libraries, headers) lies in a folder before it."""
        import torch
        from torch._inductor.utils import clear_caches

        if len(self._running) >= FORMS_IN_PROCESS and here not in self._running:
            torch.compiler.reset()
            self._running = {}
        if self._last != here[1]:
            clear_caches()
        self._last = here[1]


def _denoisers(pipeline: Any) -> list[Any]:
    return [found for name in _DENOISERS if (found := getattr(pipeline, name, None)) is not None]


def _import_compiler() -> None:
    """Torch's compiler, which is imported with it only in part."""
    with warnings.catch_warnings():
        # It uses what torch itself is about to retire.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
    import torch

    # The compiler finds its files by hashes of pickles, and a pickled memory format names whichever module first imported `torch`: in
    # another program, or after other imports, nothing would be found. With a name of its own it is the same everywhere.
    copyreg.pickle(torch.memory_format, _reduce_memory_format)


def _reduce_memory_format(found: Any) -> tuple[Any, tuple[str]]:
    return _memory_format, (str(found).removeprefix("torch."),)


def _memory_format(name: str) -> Any:
    import torch

    return getattr(torch, name)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _FOLDER_VARIABLES}
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"), TRITON_CACHE_DIR=str(folder / "triton"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_compiler(device: str) -> None:
    """EngineError(LOAD_FAILED) saying what is missing unless this host can compile for the device."""
    on_cpu = device == "cpu"
    variable, names = ("CXX", ("g++",)) if on_cpu else ("CC", ("gcc", "clang"))
    wanted = (os.environ[variable],) if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in wanted):
        kind = "C++" if on_cpu else "C"
        what = f"a compiled model needs a {kind} compiler, and {' or '.join(wanted)} is not on this host's PATH"
        raise EngineError(FailureKind.LOAD_FAILED, f"{what}: install one (or name it in {variable}), or add the model without --compile")


def environment_of(device: str) -> Environment:
    """What compiles here, and for which processor. Imports torch."""
    import torch

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    processor = _cpu() if device == "cpu" else str(torch.cuda.get_device_name(device))
    return Environment(torch=str(torch.__version__), triton=triton, cuda=str(torch.version.cuda or ""), processor=processor)


def _cpu() -> str:
    """The processor's instructions: code is made for all that it has, and faults where one is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    named = "\n".join((platform.machine(), *sorted(flags.split())))
    return f"{platform.machine()}-{sha256(named.encode()).hexdigest()[:16]}"
