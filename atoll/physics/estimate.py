"""An execution's time, by stage, with what it was computed from.

Decides the bounds that no fit may break: weights must be read, no peak is exceeded, and a narrow format never slows a GPU down. Must not
know sites, queues or what was measured there: corrections are learned elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from atoll.model import limits
from atoll.model.gpu import CPU
from atoll.model.shape import Precision
from atoll.physics import flops
from atoll.physics.coefficients import Coefficients, Spread, effect_milli, joined, situation, stages_ns
from atoll.physics.peaks import peak_flops, used_precision, weight_bits
from atoll.physics.terms import Extent, Run, Stage, class_of, denoise_keys, device_key, gang_key, part_keys

_US_NS: Final = 1_000
_US: Final = 1_000_000
# beta: achieved share of the memory bandwidth; streaming reads of weights reach it on every generation.
_BETA_MILLI: Final = 750
# No pipeline was measured above 0.9 of a dense peak (H20, whose peak is small beside its memory): what others gained adds up to no more.
_PEAK_SHARE_MAX_MILLI: Final = 900
DEVICE_LEVEL: Final = "GPU type"
_LEVEL_NAMES: Final = {
    "matmul": "all",
    "kernels": "kernels",
    "device": DEVICE_LEVEL,
    "class": "class",
    "device-class": "GPU type and class",
    "stack": "stack",
    "device-stack": "GPU type and stack",
    "precision": "precision",
    "family": "family",
    "offloaded": "offloaded",
    "gang": "gang",
}
# Levels of one chain, each within the one before; the others hold across GPU types.
_ETA_LEVELS: Final = frozenset({"all", DEVICE_LEVEL, "GPU type and class", "GPU type and stack"})
# Where nothing was left out to learn a spread from: a third either way.
_SPREAD: Final = Spread(low_milli=-300, high_milli=300)
_WIDER: Final = {Precision.FP4: Precision.FP8, Precision.FP8: Precision.BF16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of the hierarchy: its effect, in thousandths of a logarithm of time, and how many rows spoke for it."""

    name: str
    of: str
    effect_milli: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Microseconds by stage; `low_us` and `high_us` bound the middle 80 % of what actual times were, for rows never seen."""

    text_us: int
    denoise_us: int
    decode_us: int
    overhead_us: int
    gang_us: int
    low_us: int
    high_us: int
    flops: int
    eta_milli: int  # share of the dense peak that denoising reaches
    eta_level: str  # the narrowest level of GPU type, class and stack that rows spoke for
    levels: tuple[Level, ...]
    gang_speedup_milli: int

    @property
    def total_us(self) -> int:
        """All of it."""
        return max(self.text_us + self.denoise_us + self.decode_us + self.overhead_us + self.gang_us, 1)


def stages_us(coefficients: Coefficients, run: Run) -> dict[Stage, int]:
    """Microseconds by stage, each rounded down for itself."""
    return {stage: ns // _US_NS for stage, ns in _bounded_ns(coefficients, run).items()}


def _bounded_ns(coefficients: Coefficients, run: Run) -> dict[Stage, int]:
    """Nanoseconds by stage. What one stage gives another takes to the nanosecond, so that only their sum may be rounded without a faster
    GPU ever seeming slower."""
    found = stages_ns(coefficients, run)
    wider = used_precision(run.gpu, run.precision)
    while wider in _WIDER:
        # What is narrow may always be computed wide.
        wider = used_precision(run.gpu, _WIDER[wider])
        wide = stages_ns(coefficients, replace(run, precision=wider))
        found[Stage.DENOISE] = min(found[Stage.DENOISE], wide[Stage.DENOISE])
        found[Stage.GANG] = min(found[Stage.GANG], wide[Stage.GANG])
    for stage, least_ns in (*_reads_ns(run), (Stage.DENOISE, _computes_ns(run))):
        found[stage] = max(found[stage], least_ns) if found[stage] else 0
    device_ns = found[Stage.DENOISE] + found[Stage.OVERHEAD] + found[Stage.GANG]
    found[Stage.OVERHEAD] += joined(device_ns, found.pop(Stage.HOST)) - device_ns
    return found


def predict_us(coefficients: Coefficients, run: Run) -> int:
    """Microseconds of a run; at least 1, at most `PREDICTED_US_MAX`. A throughput is told per result."""
    return min(_predicted_us(coefficients, run), limits.PREDICTED_US_MAX)


def _predicted_us(coefficients: Coefficients, run: Run) -> int:
    total = sum(_bounded_ns(coefficients, run).values()) // _US_NS
    return max(total // run.shape.batch if run.extent is Extent.THROUGHPUT else total, 1)


def estimate(coefficients: Coefficients, run: Run) -> Estimate:
    """All that can be said of a run, however long it takes: people are told what decisions take for never."""
    stages = stages_us(coefficients, run)
    total = max(sum(stages.values()), 1)
    levels = levels_of(coefficients, run)
    spread = coefficients.spreads.get(situation(run, device_key(run.gpu) in coefficients.rows), _SPREAD)
    alone = _predicted_us(coefficients, replace(run, gang_size=1, guidance_split=False, ring=1))
    spoken_for = [level for level in levels if level.rows and level.name in _ETA_LEVELS]
    return Estimate(
        text_us=stages[Stage.TEXT],
        denoise_us=stages[Stage.DENOISE],
        decode_us=stages[Stage.DECODE],
        overhead_us=stages[Stage.OVERHEAD],
        gang_us=stages[Stage.GANG],
        low_us=round(total * math.exp(spread.low_milli / 1_000)),
        high_us=round(total * math.exp(spread.high_milli / 1_000)),
        flops=flops.generation_flops(run.model.physics, run.shape),
        eta_milli=_denoise_eta_milli(run, stages[Stage.DENOISE]),
        eta_level=_told(spoken_for[-1]) if spoken_for else "physics alone",
        levels=levels,
        gang_speedup_milli=1_000 * alone // total,
    )


def levels_of(coefficients: Coefficients, run: Run) -> tuple[Level, ...]:
    """The hierarchy for this run, from the broadest: all, GPU type, class, stack, precision, family, gang."""
    if run.gpu.gpu_type == CPU:
        return ()
    precision = used_precision(run.gpu, run.precision)
    keys = denoise_keys(device_key(run.gpu), class_of(run.model), run.model.family, run.stack, precision, run.offloaded)
    gang = (gang_key(run),) if run.gang_size > 1 else ()
    return tuple(_level(coefficients, key) for key in (*part_keys("matmul", run.stack), *keys, *gang))


def _told(level: Level) -> str:
    return f"{' '.join(filter(None, (level.name, level.of)))} ({level.rows} {'row' if level.rows == 1 else 'rows'})"


def _level(coefficients: Coefficients, key: str) -> Level:
    level, _, of = key.partition(":")
    if level == "matmul" and of:
        level = "kernels"
    if level == "device":
        of = of.partition(":")[0]  # without the architecture
    return Level(
        name=_LEVEL_NAMES[level],
        of=of.replace(":", " "),
        effect_milli=effect_milli(coefficients, key),
        rows=coefficients.rows.get(key, 0),
    )


def _denoise_eta_milli(run: Run, denoise_us: int) -> int:
    peak = peak_flops(run.gpu, run.precision) * run.gang_size
    return min(round(Fraction(1_000 * _denoise_flops(run) * _US, peak * max(denoise_us, 1))), 1_000)


def _denoise_flops(run: Run) -> int:
    shape = run.shape
    return flops.forward_flops(run.model.physics, shape) * shape.steps * shape.cfg_passes * shape.batch


def _computes_ns(run: Run) -> int:
    """Time below which denoising cannot fall: that of its FLOPs."""
    peak = max(peak_flops(run.gpu, run.precision) * run.gang_size * _PEAK_SHARE_MAX_MILLI // 1_000, 1)
    return _denoise_flops(run) * 10**9 // peak


def _reads_ns(run: Run) -> list[tuple[Stage, int]]:
    """Times below which no stage can fall: its weights are read once per pass, on every GPU of a gang."""
    physics, shape, gpu = run.model.physics, run.shape, run.gpu
    precision = used_precision(gpu, run.precision)
    wide = max(weight_bits(precision), 16)
    streamed = max(gpu.memory_bytes_per_s * _BETA_MILLI // 1_000, 1)
    # Passes without guidance batching read the weights once each; results of a batch share a read.
    reads = (
        (Stage.TEXT, physics.text_params * wide),
        (Stage.DENOISE, physics.denoiser_params * weight_bits(precision) * shape.steps * shape.cfg_passes),
        (Stage.DECODE, physics.vae_params * wide * shape.batch),
    )
    return [(stage, bits * 10**9 // (8 * streamed)) for stage, bits in reads]
