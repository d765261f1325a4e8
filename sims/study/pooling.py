"""Pooling efficiency: how much of the load that the ideal could carry in time a policy carries in time.

Decides when a job is in time, which jobs count, and where the highest load lies. Must not know how a run is made: it is given a function
that tells the share of jobs in time at a load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import tee
from typing import Final

from atoll.model.errors import FieldError
from sims.study.ideal import IdealJob, Rule, ideal

# A job is in time when it ends within twice its execution on the reference GPU, and this: the wait that a person takes for nothing.
ALLOWANCE_US: Final = 10_000_000
IN_TIME_MILLI: Final = 950
# Twice the capacity: beyond it no schedule has more than about half of the jobs in time.
LOAD_MAX_MILLI: Final = 2_000
# One run for each halving: 2,000 is found to the hundredth in eight of them, and seeds differ by more than that.
_TOLERANCE_MILLI: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledLoad:
    """The highest load with enough jobs in time, and every load that was tried on the way. `at_limit`: the highest tried was still met."""

    load_milli: int
    at_limit: bool
    tried: tuple[tuple[int, float], ...]


def due_us(reference_us: int) -> int:
    """By when, from its arrival, a job must have ended that takes so long on the reference GPU."""
    return 2 * reference_us + ALLOWANCE_US


def is_servable(job: IdealJob, slots: Mapping[str, int]) -> bool:
    """Whether some GPU of the fleet, if it were free, would have the job in time. No other job counts, for a policy or for the ideal."""
    return any(
        execution_us <= job.due_us and slots.get(gpu_type, 0) >= job.gang_size for gpu_type, execution_us in job.execution_us.items()
    )


def share_in_time(jobs: Iterable[IdealJob], ended_us: Iterable[int | None], slots: Mapping[str, int], *, from_us: int = 0) -> float:
    """Of the jobs that can be in time, the share that is; `ended_us` in their order, None: never. Of no jobs, all are.

    Only those count that arrive at `from_us` or later.
    """
    counted = met = 0
    for job, end_us in zip(jobs, ended_us, strict=True):
        if job.arrival_us >= from_us and is_servable(job, slots):
            counted += 1
            met += end_us is not None and end_us - job.arrival_us <= job.due_us
    return met / counted if counted else 1.0


def ideal_share(jobs: Iterable[IdealJob], slots: Mapping[str, int], rule: Rule, *, from_us: int = 0) -> float:
    """The share in time under the ideal, by one rule; of the jobs that arrive at `from_us` or later."""
    scheduled, judged = tee(jobs)
    ends = (None if run is None else run.ended_us for run in ideal(scheduled, slots, rule))
    return share_in_time(judged, ends, slots, from_us=from_us)


def highest_load(
    share_met: Callable[[int], float],
    *,
    low_milli: int = 0,
    high_milli: int = LOAD_MAX_MILLI,
    tolerance_milli: int = _TOLERANCE_MILLI,
    in_time_milli: int = IN_TIME_MILLI,
) -> PooledLoad:
    """The highest load, in per mille of capacity, at which so many jobs are in time; found by halving, each load tried once.

    Takes it that more load never has more jobs in time. Where chance breaks that, a load is found at which the share crosses the line, and
    `tried` shows it. 0, or `low_milli`, where even the smallest load tried is not met.
    """
    if not 0 <= low_milli < high_milli:
        raise FieldError("low_milli", low_milli, f"zero or more and less than high_milli, {high_milli}")
    if tolerance_milli < 1:
        raise FieldError("tolerance_milli", tolerance_milli, "at least 1")
    tried: list[tuple[int, float]] = []

    def is_met(load_milli: int) -> bool:
        share = share_met(load_milli)
        tried.append((load_milli, share))
        return share * 1000 >= in_time_milli

    met_milli, unmet_milli = low_milli, high_milli
    if is_met(high_milli):
        return PooledLoad(load_milli=high_milli, at_limit=True, tried=tuple(tried))
    while unmet_milli - met_milli > tolerance_milli:
        middle_milli = (met_milli + unmet_milli) // 2
        if is_met(middle_milli):
            met_milli = middle_milli
        else:
            unmet_milli = middle_milli
    return PooledLoad(load_milli=met_milli, at_limit=False, tried=tuple(sorted(tried)))


def pooling_efficiency(policy: PooledLoad, ideal_load: PooledLoad) -> float:
    """The load that a policy carries over that of the ideal."""
    if ideal_load.load_milli <= 0:
        raise FieldError("ideal_load", ideal_load.load_milli, "a load at which the ideal has enough jobs in time; there is none")
    return policy.load_milli / ideal_load.load_milli
