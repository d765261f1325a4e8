"""How good predictions are: errors and their quantiles, sources (or models, or GPU types) left out one at a time, and the baseline to beat.

Decides what an error is: |predicted / actual - 1|. Must not know files or how figures are printed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, assert_never

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.physics import flops
from atoll.physics.calibration import Observation, fit
from atoll.physics.coefficients import Coefficients, Spread, situation
from atoll.physics.estimate import predict_us
from atoll.physics.peaks import peak_flops
from atoll.physics.terms import Extent, Run, device_key

_NEAR: Final = 0.25
_TENTHS: Final = (0.1, 0.9)


class LeaveOut(StrEnum):
    """What is left out together: rows that share it are predicted by a fit to those that do not."""

    SOURCE = "source"
    MODEL = "model"
    GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An observation and what was predicted for it. `device_seen`: whether its GPU type was among the rows learned from."""

    observation: Observation
    predicted_us: int
    device_seen: bool = True

    @property
    def error(self) -> float:
        """|predicted / actual - 1|."""
        return abs(self.predicted_us / self.observation.actual_us - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Errors of some rows: their median and 90th percentile, and the share within a quarter."""

    rows: int
    median: float
    p90: float
    within_quarter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Predictions of every row by three estimators that never saw its source (or model, or GPU type)."""

    ours: tuple[Judged, ...]
    flat: tuple[Judged, ...]  # ours without the arguments from outside for stacks, classes and precisions
    baseline: tuple[Judged, ...]  # one efficiency per GPU type


def quality(judged: Sequence[Judged]) -> Quality | None:
    """Quantiles of the errors; None of no rows."""
    if not judged:
        return None
    errors = sorted(one.error for one in judged)
    return Quality(
        rows=len(errors),
        median=_quantile(errors, 0.5),
        p90=_quantile(errors, 0.9),
        within_quarter=sum(error <= _NEAR for error in errors) / len(errors),
    )


def grouped(judged: Iterable[Judged], key: Callable[[Run], str]) -> dict[str, Quality]:
    """Quality by what `key` says of a run, in order of it."""
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[key(one.observation.run)].append(one)
    return {name: good for name in sorted(groups, key=_numbers_by_size) if (good := quality(groups[name])) is not None}


def judge(observations: Iterable[Observation], coefficients: Coefficients) -> tuple[Judged, ...]:
    """Predictions by these coefficients."""
    return tuple(Judged(observation=one, predicted_us=predict_us(coefficients, one.run)) for one in observations)


def compare(
    observations: Sequence[Observation],
    gpus: Mapping[GpuTypeId, GpuType],
    *,
    others: Sequence[Observation] = (),
    what: LeaveOut = LeaveOut.SOURCE,
) -> LeftOut:
    """Each source (or model, or GPU type) predicted from the rest alone, by ours and by what ours must beat. `others` are rows of other
    tables to learn from. The baseline is that of one table: where that has other rows, it looks at them only."""
    return LeftOut(
        ours=leave_out(observations, gpus, others=others, what=what),
        flat=leave_out(observations, gpus, others=others, what=what, flat=True),
        baseline=tuple(
            Judged(observation=one, predicted_us=_by_efficiency(one.run, inside or anywhere))
            for (inside, outside), (anywhere, _) in zip(_folds(observations, (), what), _folds(observations, others, what), strict=True)
            for one in outside
        ),
    )


def leave_out(
    observations: Sequence[Observation],
    gpus: Mapping[GpuTypeId, GpuType],
    *,
    others: Sequence[Observation] = (),
    what: LeaveOut = LeaveOut.SOURCE,
    flat: bool = False,
) -> tuple[Judged, ...]:
    """Each source (or model, or GPU type) predicted from the rest alone: everything is fitted again without it."""
    found: list[Judged] = []
    whole = fit([*observations, *others], gpus, flat=flat).effects_milli
    for inside, outside in _folds(observations, others, what):
        coefficients = fit(inside, gpus, flat=flat, near=whole)
        found += [
            Judged(
                observation=one,
                predicted_us=predict_us(coefficients, one.run),
                device_seen=device_key(one.run.gpu) in coefficients.rows,
            )
            for one in outside
        ]
    return tuple(found)


def spreads(left_out: Iterable[Judged]) -> dict[str, Spread]:
    """How far actual times lie from predictions by the other sources: on one GPU, on a gang, on a GPU type that no other row has."""
    situations: defaultdict[str, list[float]] = defaultdict(list)
    for one in left_out:
        situations[situation(one.observation.run, one.device_seen)].append(math.log(one.observation.actual_us / one.predicted_us))
    return {name: _spread(sorted(situations[name])) for name in sorted(situations)}


def _spread(residuals: Sequence[float]) -> Spread:
    low, high = (_quantile(residuals, part) for part in _TENTHS)
    return Spread(low_milli=min(round(1_000 * low), 0), high_milli=max(round(1_000 * high), 0))


def achieved_share(run: Run, actual_us: int) -> Fraction:
    """FLOPs a second of each GPU, as a share of its dense peak."""
    return Fraction(_work(run) * 1_000_000, peak_flops(run.gpu, run.precision) * run.gang_size * actual_us)


def named(observation: Observation, what: LeaveOut) -> str:
    """The source, model or GPU type of a row."""
    match what:
        case LeaveOut.SOURCE:
            return observation.source
        case LeaveOut.MODEL:
            return observation.run.model.model_id
        case LeaveOut.GPU:
            return observation.run.gpu.gpu_type
    assert_never(what)


def _folds(
    observations: Sequence[Observation], others: Sequence[Observation], what: LeaveOut
) -> Iterator[tuple[list[Observation], list[Observation]]]:
    """Rows to learn from, and those to predict that share a name with none of them."""
    for name in sorted({named(one, what) for one in observations}):
        inside = [one for one in (*observations, *others) if named(one, what) != name]
        yield inside, [one for one in observations if named(one, what) == name]


def _numbers_by_size(name: str) -> tuple[int, str]:
    return int(name) if name.isdecimal() else 0, name


def _by_efficiency(run: Run, inside: Sequence[Observation]) -> int:
    """The baseline: the median share of the peak that the other rows of this GPU type achieve (of all types, if there is none).

    For a run on one GPU the other rows on one GPU; that is its better form.
    """
    alike = [one for one in inside if run.gang_size > 1 or one.run.gang_size == 1]
    same = [one for one in alike if one.run.gpu.gpu_type == run.gpu.gpu_type]
    shares = sorted(achieved_share(one.run, one.actual_us) for one in same or alike or inside)
    share = (shares[(len(shares) - 1) // 2] + shares[len(shares) // 2]) / 2
    return max(int(_work(run) * 1_000_000 / (peak_flops(run.gpu, run.precision) * run.gang_size * share)), 1)


def _work(run: Run) -> int:
    if run.extent is Extent.DECODING:
        return flops.decode_flops(run.model.physics, run.shape) * run.shape.batch
    if run.extent is not Extent.DENOISING:
        return flops.generation_flops(run.model.physics, run.shape)
    return flops.forward_flops(run.model.physics, run.shape) * run.shape.steps * run.shape.cfg_passes * run.shape.batch


def _quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` of the ordered values lie, between neighbours in proportion."""
    position = part * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
