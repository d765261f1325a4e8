"""The figures of a run, from the rows it left: quantiles by kind, shares, money, seconds by term.

Decides what each figure counts. What arrived during the warm-up is in none of them, and neither are samples of that time. Latency is from
arrival to the end, of jobs that succeeded; a job that did not is in `states`, and in the misses if it had a deadline. Knows columns, and
neither how they were made nor how figures are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from atoll.model.job import JobState
from sims.results.rows import KINDS, TERMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sims.results.parquet import Result

Columns = Mapping[str, "NDArray[Any]"]

JOB_COLUMNS: Final = (
    "kind", "arrival_us", "started_us", "ended_us", "state", "cold", "deadline_ms", "deadline_missed", "price_usd_micros",
    *(f"{term}_us" for term in TERMS),
)  # fmt: skip
SITE_COLUMNS: Final = (
    "at_us", "site_id", "slots", "slots_busy", "cold_starts", "evictions", "fetched_bytes", "egress_bytes", "usd_micros",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """One kind of job: how many succeeded, and how long they took from arrival to end. None: there was none."""

    n: int
    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run in a few numbers. A share of nothing is None, not zero."""

    digest: str
    jobs: int
    states: Mapping[str, int]
    simulated_s: float
    wall_s: float
    jobs_per_wall_s: float | None
    classes: Mapping[str, ClassFigures]
    cold_start_share: float | None  # of the jobs that ran
    deadline_miss_share: float | None  # of the jobs that have one
    usd_per_1000_jobs: float | None  # what all jobs cost, failed ones too, per 1,000 that succeeded
    utilisation: float | None  # slots busy, of slots
    evictions: int
    egress_bytes: int
    terms_s: Mapping[str, float]  # of jobs that succeeded, per job


def figures(result: Result) -> Figures:
    """The figures of a result."""
    return figures_of(result, measured_jobs(result), measured_sites(result))


def measured_jobs(result: Result, *more: str) -> Columns:
    """The columns that figures need, and `more`, of the jobs that arrived after the warm-up."""
    columns = result.job_columns(*JOB_COLUMNS, *more)
    return _where(columns, columns["arrival_us"] >= result.metadata.warm_up_us)


def measured_sites(result: Result) -> Columns:
    """As above, of the samples of sites; one at the very end of the warm-up is of the warm-up."""
    columns = result.site_columns(*SITE_COLUMNS)
    return _where(columns, columns["at_us"] > result.metadata.warm_up_us)


def figures_of(result: Result, jobs: Columns, sites: Columns) -> Figures:
    """The figures of columns that were read already."""
    import numpy as np

    metadata = result.metadata
    done = jobs["state"] == JobState.SUCCEEDED
    states, counts = np.unique(jobs["state"].astype(str), return_counts=True)
    wall_s = metadata.wall_us / 1e6
    count, succeeded = len(done), int(done.sum())
    return Figures(
        digest=metadata.digest,
        jobs=count,
        states={str(state): int(number) for state, number in zip(states, counts, strict=True)},
        simulated_s=metadata.simulated_us / 1e6,
        wall_s=wall_s,
        jobs_per_wall_s=_ratio(count, wall_s),
        classes=classes(jobs),
        cold_start_share=_ratio(int(jobs["cold"].sum()), int((jobs["started_us"] >= 0).sum())),
        deadline_miss_share=_ratio(int(jobs["deadline_missed"].sum()), int((jobs["deadline_ms"] > 0).sum())),
        usd_per_1000_jobs=_ratio(int(jobs["price_usd_micros"].sum()) / 1e3, succeeded),
        utilisation=_ratio(int(sites["slots_busy"].sum()), int(sites["slots"].sum())),
        evictions=int(sites["evictions"].sum()),
        egress_bytes=int(sites["egress_bytes"].sum()),
        terms_s={term: _mean_s(jobs[f"{term}_us"][done]) or 0.0 for term in TERMS},
    )


def latencies_us(jobs: Columns, kind: str) -> NDArray[Any]:
    """From arrival to end of every job of a kind that succeeded, in ascending order."""
    import numpy as np

    chosen = (jobs["state"] == JobState.SUCCEEDED) & (jobs["kind"] == kind)
    return np.sort(jobs["ended_us"][chosen] - jobs["arrival_us"][chosen])


def classes(jobs: Columns) -> dict[str, ClassFigures]:
    """Figures of each kind that there was."""
    present = set(jobs["kind"].tolist())
    return {kind: _class(latencies_us(jobs, kind)) for kind in (*KINDS, *sorted(present - set(KINDS))) if kind in present}


def quantile_us(ordered: NDArray[Any], per_mille: int) -> int | None:
    """The smallest value that so many of 1,000 do not exceed: one that a job really had, whatever their number."""
    if not len(ordered):
        return None
    return int(ordered[max(-(-len(ordered) * per_mille // 1000) - 1, 0)])


def _class(ordered: NDArray[Any]) -> ClassFigures:
    def quantile_s(per_mille: int) -> float | None:
        found = quantile_us(ordered, per_mille)
        return None if found is None else found / 1e6

    return ClassFigures(n=len(ordered), mean_s=_mean_s(ordered), p50_s=quantile_s(500), p90_s=quantile_s(900), p99_s=quantile_s(990))


def _where(columns: Columns, chosen: NDArray[Any]) -> Columns:
    return {name: column[chosen] for name, column in columns.items()}


def _mean_s(us: NDArray[Any]) -> float | None:
    # Summed as integers: the same on every machine, in whatever order a library adds.
    return int(us.sum()) / len(us) / 1e6 if len(us) else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
