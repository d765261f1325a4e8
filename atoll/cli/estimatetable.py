"""How an estimate is printed: seconds by part, what of it is a substitute, whether it fits and what would make it fit.

Decides the words and units. What is asked and predicted is somebody else's matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from atoll.cli.figures import count, seconds, size
from atoll.cli.output import Form, printable, say, show_plain, table
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.shape import Shape
from atoll.model.splits import check_gang
from atoll.physics.estimate import DEVICE_LEVEL, Estimate
from atoll.physics.memory import fitting, needed_bytes, peak_bytes
from atoll.physics.peaks import used_precision
from atoll.physics.stack import used_stack
from atoll.physics.terms import Run

_US: Final = 1_000_000
# GPU types that would do: the smallest are the cheapest, and one of some is to be had.
_TYPES_SHOWN: Final = 3


def show_estimate(form: Form, run: Run, found: Estimate, gpus: Iterable[GpuType]) -> None:
    """Print what was predicted; `gpus`: where it might be done, if it does not fit where it was asked for."""
    larger = [] if _fits(run) else _larger(run, gpus)
    match form:
        case Form.JSON | Form.YAML:
            show_plain(form, _estimate_plain(run, found, larger))
        case Form.NAME:
            say(f"{found.total_us / _US:.6f}")
        case Form.TABLE | Form.WIDE:
            _estimate_table(run, found, larger, wide=form is Form.WIDE)


def _parts(found: Estimate) -> dict[str, int]:
    return {
        "text": found.text_us,
        "denoise": found.denoise_us,
        "decode": found.decode_us,
        "overhead": found.overhead_us,
        "exchange": found.gang_us,
    }


def _estimate_plain(run: Run, found: Estimate, larger: Sequence[GpuType]) -> dict[str, Any]:
    shape = run.shape
    return {
        "model": run.model.model_id,
        "width": shape.width,
        "height": shape.height,
        "frames": shape.frames,
        "steps": shape.steps,
        "cfg_passes": shape.cfg_passes,
        "batch": shape.batch,
        "gpu": run.gpu.gpu_type,
        "gpus": run.gang_size,
        "precision": run.precision.value,
        "computed_precision": used_precision(run.gpu, run.precision).value,
        "supported": run.gpu.supports(run.precision),
        "stack": run.stack.value,
        "stack_supported": used_stack(run.stack, run.gpu.arch) is run.stack,
        "fits": _fits(run),
        "memory_bytes": needed_bytes(run.model, shape),
        "would_fit": None if _fits(run) else _would_fit_plain(run, larger),
        "weights_bytes": run.model.resident_bytes,
        "activations_bytes": peak_bytes(run.model, shape),
        "gpu_memory_bytes": run.gpu.memory_bytes,
        "seconds": found.total_us / _US,
        "low_seconds": found.low_us / _US,
        "high_seconds": found.high_us / _US,
        "parts": {name: us / _US for name, us in _parts(found).items()},
        "flops": found.flops,
        "eta": found.eta_milli / 1_000,
        "eta_level": found.eta_level,
        "levels": [
            {"level": level.name, "of": level.of, "effect": level.effect_milli / 1_000, "rows": level.rows} for level in found.levels
        ],
        "gang_speedup": found.gang_speedup_milli / 1_000,
    }


def _estimate_table(run: Run, found: Estimate, larger: Sequence[GpuType], *, wide: bool) -> None:
    shape = run.shape
    passes = count(shape.cfg_passes, "pass", "passes")
    results = f", {shape.batch} results" if shape.batch > 1 else ""
    where = f"{run.gang_size} {run.gpu.gpu_type}" if run.gang_size > 1 else run.gpu.gpu_type
    pixels = str(shape).rpartition("/")[0]
    steps = count(shape.steps, "step")
    say(f"{run.model.model_id}: {pixels}, {steps} of {passes}{results}, {run.precision.value}, {run.stack.value}, on {where}")
    if not _fits(run):
        say(f"  {_memory(run)}")
        say(f"  {_remedies(run, larger)}")
    rows = [[name, seconds(us)] for name, us in _parts(found).items() if us] + [["in all", seconds(found.total_us)]]
    table(["PART", "SECONDS"], rows, frozenset({1}), indent="  ")
    say(f"  {_range(found)}")
    say(f"  {found.flops / 1e12:.1f} TFLOP; denoising reaches {found.eta_milli / 1_000:.3f} of the dense peak; known by: {found.eta_level}")
    if _fits(run):
        say(f"  {_memory(run)}")
    computed = used_precision(run.gpu, run.precision)
    if not run.gpu.supports(run.precision):
        lacks = f"{run.gpu.gpu_type} has no units for {run.precision.value}"
        say(f"  {lacks}: no such job is placed there, and the figure is that of {computed.value}")
    elif computed is not run.precision:
        wider = f"{run.gpu.gpu_type} computes {run.precision.value} in {computed.value}"
        say(f"  {wider}, and that is the figure; --precision fp16 may be quicker")
    used = used_stack(run.stack, run.gpu.arch)
    if used is not run.stack:
        where = f"{run.gpu.gpu_type} is {run.gpu.arch}"
        say(f"  FlashAttention 3 and cuDNN's attention run on Hopper only, and {where}: the figure is that of {used.value}")
    if run.gang_size > 1:
        say(f"  {found.gang_speedup_milli / 1_000:.2f} times as fast as one GPU")
        try:
            check_gang(run.model, shape, run.gang_size)
        except FieldError as error:
            say(f"  no such job is placed: {printable(str(error).replace('gang_size', '--gpus', 1))}")
    if wide:
        rows = [[level.name, level.of, f"{level.effect_milli / 1_000:+.3f}", str(level.rows)] for level in found.levels]
        table(["LEVEL", "OF", "LOG OF TIME", "ROWS"], rows, frozenset({2, 3}), indent="  ")


def _fits(run: Run) -> bool:
    return needed_bytes(run.model, run.shape) <= run.gpu.memory_bytes


def _memory(run: Run) -> str:
    """Whether the model fits, and what takes how much. A gang splits the work; each of its GPUs holds the whole model."""
    weights, activations = size(run.model.resident_bytes), size(peak_bytes(run.model, run.shape))
    each = "each GPU" if run.gang_size > 1 else "the GPU"
    takes = f"weights of {weights} and activations of {activations} take {size(needed_bytes(run.model, run.shape))}"
    if _fits(run):
        return f"it fits: {takes} of the {size(run.gpu.memory_bytes)} of {each}"
    return f"it does not fit: {takes}, and {each} has {size(run.gpu.memory_bytes)}: no such job is placed there"


def _larger(run: Run, gpus: Iterable[GpuType]) -> list[GpuType]:
    """Types that hold it and have units for its precision, the smallest first."""
    need = needed_bytes(run.model, run.shape)
    held = (gpu for gpu in gpus if gpu.memory_bytes >= need and gpu.supports(run.precision))
    return sorted(held, key=lambda gpu: (gpu.memory_bytes, gpu.gpu_type))


def _remedies(run: Run, larger: Sequence[GpuType]) -> str:
    """What would make it fit. Neither a gang nor a precision does: each of its GPUs holds all weights, as they are stored."""
    shown = ", ".join(f"{gpu.gpu_type} ({size(gpu.memory_bytes)})" for gpu in larger[:_TYPES_SHOWN])
    elsewhere = f"another GPU type, such as {shown}{', ...' if larger[_TYPES_SHOWN:] else ''}" if larger else ""
    if run.model.resident_bytes >= run.gpu.memory_bytes:
        helps = f"what helps is {elsewhere}" if larger else "no type of the catalogue holds them"
        return f"the weights alone are too large for it; no smaller shape, gang or other precision helps; {helps}"
    changes = [_less(run.shape, less) for less in fitting(run.model, run.shape, run.gpu.memory_bytes)]
    found = [*changes, *([elsewhere] if larger else [])]
    if not found:
        return (
            "the weights fit, the activations do not, and no smaller picture, film or batch alone would; no type of the catalogue holds it"
        )
    return f"the weights fit, the activations do not; what helps is {', or '.join(found)}"


def _less(shape: Shape, less: Shape) -> str:
    """The option by which a shape is smaller."""
    if less.batch < shape.batch:
        return f"--batch {less.batch}"
    return f"--frames {less.frames}" if less.frames < shape.frames else f"--size {less.width}x{less.height}"


def _would_fit_plain(run: Run, larger: Sequence[GpuType]) -> dict[str, Any]:
    found = fitting(run.model, run.shape, run.gpu.memory_bytes)
    shapes = [{"width": one.width, "height": one.height, "frames": one.frames, "batch": one.batch} for one in found]
    return {"shapes": shapes, "gpus": [gpu.gpu_type for gpu in larger]}


def _range(found: Estimate) -> str:
    """Where most runs lie. What was said of GPU types before theirs were measured is all that is known of one without a row."""
    spread = f"{seconds(found.low_us)} to {seconds(found.high_us)} s"
    if any(level.rows for level in found.levels if level.name == DEVICE_LEVEL):
        return f"80 % of such runs took {spread}"
    return f"nobody measured a run on this type: 80 % should take {spread}, as of other types before theirs were measured"
