"""How long a GPU really denoises and decodes, against what `atoll costs predict` says of it.

Decides what is timed: the loop of denoising with its launches, and decoding to pixels on the device; neither prompts nor files. A first
call of two steps warms up (kernels are loaded, their plans made) and does not count. Where fewer steps than the model's are timed, the
median step stands for the others. Must not know which models there are.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from atoll.model.gpu import GpuType
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics.estimate import estimate
from atoll.physics.fitted import FITTED
from atoll.physics.stack import ENGINE_COMPILED, ENGINE_STACK, used_stack
from atoll.physics.terms import Run
from tests.gpu.subjects import Built, Subject, build

_SOURCE = "measured by this project's gpu-check"
_WARM_STEPS = 2


def measure(subject: Subject, spec: ModelSpec, gpu: GpuType, device: str, *, compiled: bool = False, tiny: bool = False) -> dict[str, Any]:
    """One model: what was predicted, what it took, and what was computed."""
    import torch

    begun_s = time.perf_counter()
    built = build(subject, device, tiny=tiny)
    _synchronize(torch, device)
    built_s = time.perf_counter() - begun_s
    shape = spec.default_shape
    if tiny:
        shape = replace(shape, width=128, height=128, frames=9 if shape.frames > 1 else 1, steps=4)
    if compiled:
        _compile(built)
    first = _call(torch, subject, built, shape, _WARM_STEPS, device)
    if compiled:
        _call(torch, subject, built, shape, _WARM_STEPS, device)
    steps = min(subject.steps, shape.steps)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    called = _call(torch, subject, built, shape, steps, device)
    ends_s = called.ends_s
    each_s = [later - earlier for earlier, later in itertools.pairwise(ends_s)]
    step_s = statistics.median(each_s[1:] or each_s)
    whole_s = ends_s[-1] - ends_s[0] if steps == shape.steps else step_s * shape.steps
    stack = used_stack(ENGINE_COMPILED if compiled else ENGINE_STACK, gpu.arch)
    run = Run(model=spec, shape=shape, gpu=gpu, precision=Precision.BF16, stack=stack)
    found = estimate(FITTED, run)
    predicted_s = (found.denoise_us + found.overhead_us) / 1e6
    return {
        "model": subject.model_id,
        "gpu": gpu.gpu_type,
        "stack": stack.value,
        "optimisation": "compile" if compiled else "eager",
        "shape": _plain(shape),
        "denoiser_params": built.denoiser_params,
        "build_s": built_s,
        "first_step_extra_s": first.ends_s[1] - first.ends_s[0] - step_s,
        "first_decode_extra_s": first.decode_s - called.decode_s,
        "finite": called.finite,
        "steps_timed": steps,
        "step_s": step_s,
        "step_s_all": each_s,
        "denoise_s": whole_s,
        "denoise_predicted_s": predicted_s,
        "denoise_ratio": whole_s / predicted_s,
        "predicted_low_high_s": [found.low_us / 1e6, found.high_us / 1e6],
        "eta_level": found.eta_level,
        "tflops": found.flops / 1e12,
        "decode_s": called.decode_s if subject.decodes else None,
        "decode_predicted_s": found.decode_us / 1e6,
        "peak_bytes": 0 if device == "cpu" else int(torch.cuda.max_memory_allocated()),
        "peak_predicted_bytes": spec.resident_bytes + spec.activation_bytes,
        "denoiser_and_vae_bytes": _bytes(built),
        "outside_torch_bytes": 0 if device == "cpu" else _outside_torch_bytes(torch),
    }


def spec_of(subject: Subject, models: tuple[ModelSpec, ...]) -> ModelSpec:
    """What the catalogue says of it."""
    return next(model for model in models if model.model_id == ModelId(subject.model_id))


def as_rows(found: dict[str, Any], card: str) -> list[dict[str, Any]]:
    """In the columns of `atoll/data/latencies.csv`, for `atoll costs check`: denoising, and decoding where it was timed. Whatever the card,
    the source is one: its rows share software and way of timing, so they are left out together."""
    times = {"denoise_s": found["denoise_s"], "decode_s": found["decode_s"]}
    return [_row(found, card, metric, seconds) for metric, seconds in times.items() if seconds is not None]


def _row(found: dict[str, Any], card: str, metric: str, seconds: float) -> dict[str, Any]:
    shape = found["shape"]
    timed = f"; {found['steps_timed']} of {shape['steps']} steps timed" if metric == "denoise_s" else ""
    return {
        "model": found["model"],
        "resolution": f"{shape['width']}x{shape['height']}",
        "frames": shape["frames"],
        "steps": shape["steps"],
        "cfg_forwards": shape["cfg_passes"],
        "batch": shape["batch"],
        "precision": "bf16",
        "optimisation": f"{found['optimisation']}; cuDNN attention on Hopper",
        "gpu": found["gpu"],
        "n_gpus": 1,
        "parallelism": "",
        "seconds": f"{seconds:.4f}",
        "metric": metric,
        "split": "holdout",
        "source": _SOURCE,
        "note": f"one {card}; random weights{timed}",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Called:
    """`ends_s`: the begin, then the end of each step. `finite`: whether the last step gave numbers; None where it was not shown."""

    ends_s: list[float]
    decode_s: float
    finite: bool | None


def _call(torch: Any, subject: Subject, built: Built, shape: Shape, steps: int, device: str) -> _Called:
    marks = _Marks(torch, device)
    last: list[Any] = []

    def step_ended(_pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        marks.set()
        last[:] = [tensors["latents"]] if "latents" in tensors else []
        return tensors

    arguments = {
        **built.arguments,
        "width": shape.width,
        "height": shape.height,
        "num_inference_steps": steps,
        "generator": torch.Generator("cpu").manual_seed(1),
        "output_type": "pt" if subject.decodes else "latent",
    }
    if shape.frames > 1:
        arguments["num_frames"] = shape.frames
    watched = _Watched(built.pipeline, step_ended, arguments)
    marks.set()
    with torch.inference_mode(), watched:
        built.pipeline(**arguments)
    marks.set()
    *ends_s, ended_s = marks.seconds()
    finite = bool(torch.isfinite(last[0]).all()) if last else None
    return _Called(ends_s=ends_s, decode_s=ended_s - ends_s[-1], finite=finite)


class _Marks:
    """Instants in the device's own order of work, so that the host need not wait for it at each step, as it does not in real use."""

    def __init__(self, torch: Any, device: str) -> None:
        self._torch = torch
        self._device = device
        self._set: list[Any] = []
        _synchronize(torch, device)

    def set(self) -> None:
        """Everything that was begun before has ended by this mark."""
        if self._device == "cpu":
            self._set.append(time.perf_counter())
            return
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        self._set.append(event)

    def seconds(self) -> list[float]:
        """Of each mark, after the first."""
        first = self._set[0]
        if self._device == "cpu":
            return [mark - first for mark in self._set]
        self._torch.cuda.synchronize()
        return [first.elapsed_time(mark) / 1e3 for mark in self._set]


class _Watched:
    """Hears of each step by the pipeline's callback, or through its scheduler where it has none."""

    def __init__(self, pipeline: Any, told: Any, arguments: dict[str, Any]) -> None:
        from agents.engine.calling import parameters_of

        self._scheduler = None if "callback_on_step_end" in parameters_of(pipeline) else pipeline.scheduler
        self._told = told
        if self._scheduler is None:
            arguments["callback_on_step_end"] = told

    def __enter__(self) -> None:
        if self._scheduler is None:
            return
        original = self._scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._told(None, 0, None, {})
            return result

        self._scheduler.step = step

    def __exit__(self, *_: object) -> None:
        if self._scheduler is not None:
            del self._scheduler.step


def _compile(built: Built) -> None:
    """As Atoll's workers do: the blocks that repeat."""
    denoiser = getattr(built.pipeline, "transformer", None) or built.pipeline.unet
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(dynamic=False)
    else:
        denoiser.compile(dynamic=False)


def _synchronize(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _bytes(built: Built) -> int:
    parts = [part for part in built.pipeline.components.values() if hasattr(part, "parameters")]
    return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.parameters())


def _outside_torch_bytes(torch: Any) -> int:
    """What the process holds beside torch's own pool: the context, kernels that were loaded, libraries' work space."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def _plain(shape: Shape) -> dict[str, int]:
    names = ("width", "height", "frames", "steps", "cfg_passes", "batch")
    return {name: getattr(shape, name) for name in names}


def forget(device: str) -> None:
    """Give the memory of the last model back before the next is built."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
