"""Published times -> effects: one fit for all levels, in which each effect is drawn towards what physics expected.

Decides the prior of every effect and how strongly it holds. Must not know files, nor who asks: rows come as `Observation`s.

The fit is the most probable set of effects if each is normal around its prior and each row's logarithm of time is normal around its
prediction with heavy tails. For an effect seen in n rows that is the familiar shrinkage n / (n + k) towards the level above, with
k = (spread of a row / spread of the effect)^2; with effects that overlap (GPU type, class, stack, precision, family) it is the joint one.
It is found by Gauss and Newton with weights that fall for rows far off, in plain floats, always in the same order; only the result is
rounded, to thousandths. A source counts for the square root of its rows, and of no more than 100: one table of 32 charts is not 32
witnesses, and a sweep of 700 settings on two machines is no more than 10.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import GpuTypeId
from atoll.physics.coefficients import EFFECT_MAX_MILLI, JOIN_POWER, UNLISTED, Coefficients, Spread
from atoll.physics.leastsquares import Matrix, solve
from atoll.physics.stack import TRAITS, Stack
from atoll.physics.terms import GANG, Run, Stage, Term, device_key, terms

# Spread of one row around a good prediction: the same setting published twice differs by 3 to 15 %.
_ROW_SPREAD: Final = 0.10
# A source with more rows counts as one with so many: past that they tell of their machines and not of others.
_SOURCE_ROWS_MAX: Final = 100
# Beyond this many spreads a row's weight falls as 1 / distance.
_ROBUST_BEYOND: Final = 1.5
# Gauss and Newton settle in some twenty steps, the weights of rows far off among them; the bound is for rows that contradict each other.
_ROUNDS_MAX: Final = 40
_SETTLED: Final = 1e-4
_STEP_MAX: Final = 0.7

# H100's dense peak per watt of its board; the nominal shares of `terms` are for it. The less power stands behind a unit of peak, the
# smaller the share a GPU holds: 0.84 at 0.43 TFLOP/s per watt (L20), 0.44 at 0.78 (A100), 0.3 at 2.1 (GB200): the square root of it.
_NOMINAL_FLOPS_PER_WATT: Final = 989e12 / 700
_DENSITY_EXPONENT: Final = 0.5
# No pipeline is expected to hold more than 0.85 of a peak, however much power stands behind it; nominal is 0.4.
_DENSITY_MIN: Final = -0.75
# No fused attention and no 16-bit accumulation paths that today's kernels are tuned for: what unfused attention costs on newer types.
_OLD_ARCHS: Final = {"Volta": 0.4, "Turing": 0.4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A published time of a run, and who published it."""

    run: Run
    actual_us: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Where an effect is expected, and how far off that may be; in logarithms of time."""

    mean: float
    spread: float


# Effects with a name of their own. Those of nominal constants are wide: the fit may move each by a third.
_NAMED: Final[dict[str, Prior]] = {
    "matmul": Prior(mean=0.0, spread=0.3),
    "attention": Prior(mean=0.0, spread=0.3),
    "stream": Prior(mean=0.0, spread=0.4),
    "decode": Prior(mean=0.0, spread=0.4),
    # 0.09 s for an image of 1024 x 1024 and 2.1 s for 81 frames of 832 x 480 on Hopper: 2 to 2.5 times less than published times ask for.
    "decode:cudnn": Prior(mean=-0.8, spread=0.2),
    "launch": Prior(mean=0.0, spread=0.3),
    "host": Prior(mean=0.0, spread=0.4),
    "exchange": Prior(mean=0.0, spread=0.3),
    "all-to-all": Prior(mean=0.0, spread=0.4),
    "ring": Prior(mean=0.0, spread=0.4),
    "ring-link": Prior(mean=0.0, spread=0.4),
    "merge": Prior(mean=0.0, spread=0.4),
    "link": Prior(mean=0.0, spread=0.4),
    "host-link": Prior(mean=0.0, spread=0.4),
    # Waiting for weights from host memory overlaps with computing.
    "offloaded": Prior(mean=0.07, spread=0.1),
    # Convolutions change layouts and fill tensor units worse: 0.286 / 0.444 of the peak on A100, 0.249 / 0.377 on H100.
    "class:unet": Prior(mean=0.35, spread=0.3),
    "class:linear": Prior(mean=0.0, spread=0.3),
    # Casts and scales around narrow products: LightX2V and torchao gain a tenth to a fifth from twice the peak.
    "precision:fp8": Prior(mean=0.42, spread=0.2),
    "precision:fp4": Prior(mean=0.92, spread=0.2),
    # fp32 peaks count plain units, which dense products fill better than tensor units.
    "precision:fp32": Prior(mean=-0.26, spread=0.2),
}
_LEVELS: Final[dict[str, Prior]] = {
    "device": Prior(mean=0.0, spread=0.2),
    "class": Prior(mean=0.0, spread=0.1),
    "device-class": Prior(mean=0.0, spread=0.1),
    "device-stack": Prior(mean=0.0, spread=0.1),
    "family": Prior(mean=0.0, spread=0.1),
    # What is left of a gang once its exchange is told apart: 0.03, for with more freedom gangs of sources left out were met worse.
    "gang": Prior(mean=0.0, spread=0.03),
    # Kernels of one stack against those of all, by kind, and each for itself: cuDNN's attention and its decoding take half of what others
    # take, its launches no less. Narrower, and what a newer library gained in products is taken for a faster GPU by everybody else's rows.
    "matmul": Prior(mean=0.0, spread=0.5),
    "attention": Prior(mean=0.0, spread=0.5),
    "stream": Prior(mean=0.0, spread=0.5),
    "launch": Prior(mean=0.0, spread=0.5),
    "host": Prior(mean=0.0, spread=0.5),
}
# Without what is argued above for stacks, classes, precisions and types: everything may be anything. Shown beside the rest, for honesty.
_FLAT_SPREAD: Final = 0.35


def prior_of(key: str, gpus: Mapping[GpuTypeId, GpuType], *, flat: bool = False) -> Prior:
    """What is expected of an effect before any row was seen. `flat`: without the arguments from outside."""
    level, _, rest = key.partition(":")
    if level == "device":
        return _device_prior(rest, gpus, flat=flat)
    if level == "stack":
        traits = TRAITS[Stack(rest)]
        return Prior(mean=0.0, spread=_FLAT_SPREAD) if flat else Prior(mean=traits.prior_milli / 1_000, spread=traits.spread_milli / 1_000)
    known = _NAMED.get(key)
    if known is None:
        return _LEVELS[level]
    return Prior(mean=0.0, spread=max(known.spread, _FLAT_SPREAD)) if flat and known.mean else known


def _device_prior(rest: str, gpus: Mapping[GpuTypeId, GpuType], *, flat: bool) -> Prior:
    name, _, arch = rest.rpartition(":")
    gpu = gpus.get(GpuTypeId(name))
    mean = 0.0
    if gpu is not None and gpu.board_watts:
        mean = max(_DENSITY_EXPONENT * math.log(gpu.fp16_flops / gpu.board_watts / _NOMINAL_FLOPS_PER_WATT), _DENSITY_MIN)
    if not flat:
        mean += _OLD_ARCHS.get(arch, 0.0)
    return Prior(mean=mean, spread=_LEVELS["device"].spread)


_Parts = tuple[tuple[float, tuple[int, ...]], ...]
_ASIDE: Final = frozenset({Stage.TEXT, Stage.DECODE})


@dataclass(frozen=True, slots=True)
class _Row:
    """An observation as the fit reads it: parts as seconds with places of their effects; those beside denoising, those of the GPU while it
    denoises, those of the host meanwhile."""

    aside: _Parts
    device: _Parts
    host: _Parts
    log_actual: float
    weight: float


def fit(
    observations: Sequence[Observation],
    gpus: Mapping[GpuTypeId, GpuType],
    *,
    flat: bool = False,
    spreads: Mapping[str, Spread] | None = None,
    near: Mapping[str, int] | None = None,
) -> Coefficients:
    """Effects of these rows (all of them; the caller leaves out what is not for fitting) and of the priors of everything else known.

    `near`: effects in thousandths of a fit to nearly the same rows. Beginning there takes a third of the steps and ends in the same place.
    """
    rows, seen = _read(observations)
    priors = [prior_of(key, gpus, flat=flat) for key in seen]
    begun = near or {}
    values = [begun[key] / 1_000 if key in begun else prior.mean for key, prior in zip(seen, priors, strict=True)]
    for _ in range(_ROUNDS_MAX):
        better = _improved(values, rows, priors)
        moved = max((abs(new - old) for new, old in zip(better, values, strict=True)), default=0.0)
        values = better
        if moved < _SETTLED:
            break
    effects = {key: _milli(prior_of(key, gpus, flat=flat).mean) for key in _expected(gpus)}
    # No gang computes faster than its share, whatever its rows say.
    effects |= {key: _milli(max(value, 0.0) if key.startswith(GANG) else value) for key, value in zip(seen, values, strict=True)}
    effects |= _unlisted(effects, gpus)
    return Coefficients(effects_milli=dict(sorted(effects.items())), rows=seen, spreads=spreads or {})


def _expected(gpus: Mapping[GpuTypeId, GpuType]) -> list[str]:
    """Effects of which something is known without any row."""
    listed = [device_key(gpu) for gpu in gpus.values() if gpu.gpu_type != CPU]
    return [*_NAMED, *listed, *(f"stack:{stack}" for stack in Stack if TRAITS[stack].prior_milli)]


def _read(observations: Sequence[Observation]) -> tuple[list[_Row], dict[str, int]]:
    broken_down = [terms(observation.run) for observation in observations]
    seen = Counter(key for parts in broken_down for key in {key: None for part in parts for key in part.effects})
    place = {key: number for number, key in enumerate(sorted(seen))}
    of_source = Counter(observation.source for observation in observations)
    rows = [
        _Row(
            aside=_parts(parts, place, lambda stage: stage in _ASIDE),
            device=_parts(parts, place, lambda stage: stage not in _ASIDE and stage is not Stage.HOST),
            host=_parts(parts, place, lambda stage: stage is Stage.HOST),
            log_actual=math.log(observation.actual_us / 1e6),
            weight=math.sqrt(min(of_source[observation.source], _SOURCE_ROWS_MAX)) / of_source[observation.source],
        )
        for observation, parts in zip(observations, broken_down, strict=True)
        if parts
    ]
    return rows, dict(sorted(seen.items()))


def _parts(parts: Iterable[Term], place: Mapping[str, int], belongs: Callable[[Stage], bool]) -> _Parts:
    return tuple((part.base_ns / 1e9, tuple(place[key] for key in part.effects)) for part in parts if belongs(part.stage))


def _improved(values: list[float], rows: list[_Row], priors: list[Prior]) -> list[float]:
    """One step of Gauss and Newton."""
    size = len(values)
    matrix: Matrix = [[0.0] * size for _ in range(size)]
    right = [0.0] * size
    factors: dict[tuple[int, ...], float] = {}
    for row in rows:
        total, shares = _predicted(row, values, factors)
        residual = row.log_actual - math.log(total)
        weight = row.weight / _ROW_SPREAD**2
        if abs(residual) > _ROBUST_BEYOND * _ROW_SPREAD:
            weight *= _ROBUST_BEYOND * _ROW_SPREAD / abs(residual)
        for place, share in shares:
            scaled = weight * share
            right[place] += scaled * residual
            line = matrix[place]
            # The lower triangle is all that is read.
            for other, other_share in shares:
                if other > place:
                    break
                line[other] += scaled * other_share
    for place, prior in enumerate(priors):
        pull = 1.0 / prior.spread**2
        matrix[place][place] += pull
        right[place] += pull * (prior.mean - values[place])
    steps = solve(matrix, right)
    return [value + min(max(step, -_STEP_MAX), _STEP_MAX) for value, step in zip(values, steps, strict=True)]


def _predicted(row: _Row, values: list[float], factors: dict[tuple[int, ...], float]) -> tuple[float, list[tuple[int, float]]]:
    """Seconds, and by effect the share of them that it scales. `factors` remembers what these values make of the same effects."""
    scaled: defaultdict[int, float] = defaultdict(float)
    aside, device, host = (_scaled(parts, values, factors) for parts in (row.aside, row.device, row.host))
    aside_s, device_s, host_s = (sum(seconds for seconds, _ in parts) for parts in (aside, device, host))
    # What `coefficients.joined` does in whole numbers; of the longer one's seconds nearly all count, of the shorter one's nearly none.
    longer_s = max(device_s, host_s)
    ratio = (device_s / longer_s) ** JOIN_POWER + (host_s / longer_s) ** JOIN_POWER if longer_s else 1.0
    joined_s = longer_s * ratio ** (1 / JOIN_POWER)
    total = aside_s + joined_s
    for parts, counted in ((aside, 1.0), (device, _counted(device_s, joined_s)), (host, _counted(host_s, joined_s))):
        for seconds, places in parts:
            for place in places:
                scaled[place] += seconds * counted
    return total, [(place, seconds / total) for place, seconds in sorted(scaled.items())]


def _scaled(parts: _Parts, values: list[float], factors: dict[tuple[int, ...], float]) -> list[tuple[float, tuple[int, ...]]]:
    found: list[tuple[float, tuple[int, ...]]] = []
    for base, places in parts:
        factor = factors.get(places)
        if factor is None:
            factor = factors[places] = math.exp(sum([values[place] for place in places]))
        found.append((base * factor, places))
    return found


def _counted(seconds: float, joined_s: float) -> float:
    return (seconds / joined_s) ** (JOIN_POWER - 1) if joined_s else 0.0


def _milli(value: float) -> int:
    return round(1_000 * min(max(value, -EFFECT_MAX_MILLI / 1_000), EFFECT_MAX_MILLI / 1_000))


def _unlisted(effects: Mapping[str, int], gpus: Mapping[GpuTypeId, GpuType]) -> dict[str, int]:
    """Effects of types that no table lists: the middle of the listed ones of an architecture, and of all."""
    by_arch: defaultdict[str, list[int]] = defaultdict(list)
    for gpu in gpus.values():
        if gpu.gpu_type != CPU:
            for name in (gpu.arch, ""):
                by_arch[name].append(effects[device_key(gpu)])
    return {UNLISTED + arch: sorted(found)[(len(found) - 1) // 2] for arch, found in sorted(by_arch.items())}
