"""What a what-if compares: the figures of a run as numbers by name.

Decides which figures these are and how they are called. GPUs of sites that are drained cost nothing here: who drains a site for good gives
them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from atoll.model.job import TERMINAL, Job, JobState
from sims.play.scenario import Scenario
from sims.report.comparison import Metric, Unit
from sims.results.figures import quantile_us
from sims.results.rows import KINDS, JobRow, SiteRow
from sims.traces.job import kind_of

GPUS_AN_HOUR: Final = Metric(key="gpus_usd_per_hour", title="GPUs, an hour", unit=Unit.USD)
METRICS: Final = (
    *(Metric(key=f"{name}:{kind}", title=f"{name} {kind}", unit=Unit.SECONDS) for kind in KINDS for name in ("p50", "p99")),
    Metric(key="cold_start_share", title="cold starts", unit=Unit.SHARE),
    Metric(key="deadline_miss_share", title="deadlines missed", unit=Unit.SHARE),
    Metric(key="not_done_share", title="jobs not done", unit=Unit.SHARE),
    Metric(key="usd_per_1000_jobs", title="per 1,000 jobs", unit=Unit.USD),
    GPUS_AN_HOUR,
)


class Rows:
    """A sink that keeps jobs: runs of what-ifs are short."""

    def __init__(self) -> None:
        self.jobs: list[JobRow] = []

    def job(self, row: JobRow) -> None:
        self.jobs.append(row)

    def site(self, row: SiteRow) -> None:
        """Nothing is made of what sites are sampled at."""


def figures_of_run(jobs: Sequence[JobRow], scenario: Scenario) -> dict[str, float]:
    """The figures of a run by the keys of METRICS; one of nothing is not there."""
    done = [row for row in jobs if row.state == JobState.SUCCEEDED]
    return _there(
        {
            **_quantiles([(row.kind, row.ended_us - row.arrival_us) for row in done]),
            "cold_start_share": _share(sum(row.cold for row in jobs), sum(row.started_us >= 0 for row in jobs)),
            "deadline_miss_share": _share(sum(row.deadline_missed for row in jobs), sum(row.deadline_ms > 0 for row in jobs)),
            "not_done_share": _share(len(jobs) - len(done), len(jobs)),
            "usd_per_1000_jobs": _share(sum(row.price_usd_micros for row in jobs) / 1e3, len(done)),
            GPUS_AN_HOUR.key: _gpus_usd_per_hour(scenario),
        }
    )


def figures_of_life(jobs: Sequence[Job]) -> dict[str, float]:
    """The same, as far as jobs tell them that really ran."""
    done = [job for job in jobs if job.state is JobState.SUCCEEDED]
    due = [job for job in jobs if job.state in TERMINAL and job.spec.deadline_ms]
    late = sum(job.state is not JobState.SUCCEEDED or job.ended_us - job.accepted_us > job.spec.deadline_ms * 1_000 for job in due)
    ran = [job.attempts[-1] for job in jobs if job.attempts and job.started_us]
    return _there(
        {
            **_quantiles([(kind_of(job.spec.shape), job.ended_us - job.accepted_us) for job in done]),
            "cold_start_share": _share(sum(attempt.cold for attempt in ran), len(ran)),
            "deadline_miss_share": _share(late, len(due)),
        }
    )


def _quantiles(latencies_us: Iterable[tuple[str, int]]) -> dict[str, float | None]:
    import numpy as np

    by_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for kind, latency_us in latencies_us:
        by_kind[kind].append(latency_us)
    found: dict[str, float | None] = {}
    for kind, several in by_kind.items():
        ordered = np.sort(np.array(several, dtype=np.int64))
        for name, per_mille in (("p50", 500), ("p99", 990)):
            us = quantile_us(ordered, per_mille)
            found[f"{name}:{kind}"] = None if us is None else us / 1e6
    return found


def _gpus_usd_per_hour(scenario: Scenario) -> float:
    paid = [site for site in scenario.sites if site.site_id not in scenario.beginning.drained]
    prices = (
        pool.slots * (pool.usd_micros_per_gpu_hour or scenario.gpus[pool.gpu_type].usd_micros_per_hour)
        for site in paid
        for pool in site.pools
    )
    return sum(prices) / 1e6


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _there(found: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in found.items() if value is not None}
