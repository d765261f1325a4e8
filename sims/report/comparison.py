"""Several results side by side: which runs are of one policy, what each measured, and how the policies differ.

Decides the metrics of the table and who is compared with whom: runs of one policy at one load form a group, and each group is compared with
the first one given of the same load, seed by seed. Knows figures, and not how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model.errors import FieldError
from sims.results.figures import Columns, Figures, figures_of, measured_jobs, measured_sites
from sims.results.parquet import Metadata, Result
from sims.results.rows import KINDS
from sims.study.paired import PAIRS_MIN, Difference, adjusted, compare


class Unit(StrEnum):
    """How a metric reads."""

    SECONDS = "s"
    SHARE = "%"
    USD = "$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One column of the table."""

    key: str
    title: str
    unit: Unit
    lower_is_better: bool = True


METRICS: Final = (
    Metric(key="mean_s", title="mean latency", unit=Unit.SECONDS),
    *(Metric(key=f"p50_s:{kind}", title=f"p50 {kind}", unit=Unit.SECONDS) for kind in KINDS),
    *(Metric(key=f"p99_s:{kind}", title=f"p99 {kind}", unit=Unit.SECONDS) for kind in KINDS),
    Metric(key="cold_start_share", title="cold starts", unit=Unit.SHARE),
    Metric(key="deadline_miss_share", title="deadlines missed", unit=Unit.SHARE),
    Metric(key="usd_per_1000_jobs", title="per 1,000 jobs", unit=Unit.USD),
    Metric(key="utilisation", title="slots busy", unit=Unit.SHARE, lower_is_better=False),
    Metric(key="pooling_efficiency", title="pooling efficiency", unit=Unit.SHARE, lower_is_better=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One result with its figures; a metric that it does not have is not in `metrics`."""

    result: Result
    figures: Figures
    metrics: Mapping[str, float]

    @property
    def metadata(self) -> Metadata:
        return self.result.metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one policy at one load, one for each seed, in order of seeds."""

    name: str
    policy: str  # as the name, but without the load
    load_milli: int
    runs: tuple[Run, ...]

    def mean(self, metric: Metric) -> float | None:
        """Over the seeds that have it."""
        values = self.by_seed(metric).values()
        return sum(values) / len(values) if values else None

    def by_seed(self, metric: Metric) -> dict[int, float]:
        return {run.metadata.seed: run.metrics[metric.key] for run in self.runs if metric.key in run.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All groups, and the differences that there are enough seeds for: (group, metric key) -> difference from the group's baseline."""

    groups: tuple[Group, ...]
    differences: Mapping[tuple[str, str], Difference]

    def baseline_of(self, group: Group) -> Group | None:
        """What a group is compared with; None for that itself."""
        first = next(one for one in self.groups if one.load_milli == group.load_milli)
        return None if first is group else first


def run_of(result: Result) -> tuple[Run, Columns, Columns]:
    """A result with its figures, and the columns of jobs and of sites they come from."""
    jobs = measured_jobs(result, "gpu_type", "site_id")
    sites = measured_sites(result)
    found = figures_of(result, jobs, sites)
    return Run(result=result, figures=found, metrics=_metrics(result.metadata, found)), jobs, sites


def compared(runs: Sequence[Run]) -> Comparison:
    """The runs in groups, and the groups compared."""
    groups = _groups(runs)
    comparison = Comparison(groups=groups, differences={})
    differences: dict[tuple[str, str], Difference] = {}
    for load_milli in dict.fromkeys(group.load_milli for group in groups):
        of_load = [group for group in groups if group.load_milli == load_milli]
        for metric in METRICS:
            pairs = {
                group.name: (before.by_seed(metric), group.by_seed(metric))
                for group in of_load
                if (before := comparison.baseline_of(group)) is not None
            }
            known = {name: compare(*pair) for name, pair in pairs.items() if len(pair[0].keys() & pair[1].keys()) >= PAIRS_MIN}
            differences.update({(name, metric.key): one for name, one in adjusted(known).items()})
    return Comparison(groups=groups, differences=differences)


def _metrics(metadata: Metadata, found: Figures) -> dict[str, float]:
    succeeded = sum(one.n for one in found.classes.values())
    values: dict[str, float | None] = {
        "mean_s": sum((one.mean_s or 0) * one.n for one in found.classes.values()) / succeeded if succeeded else None,
        "cold_start_share": found.cold_start_share,
        "deadline_miss_share": found.deadline_miss_share,
        "usd_per_1000_jobs": found.usd_per_1000_jobs,
        "utilisation": found.utilisation,
        "pooling_efficiency": metadata.pooled_load_milli / metadata.ideal_load_milli if metadata.ideal_load_milli else None,
    }
    for kind, one in found.classes.items():
        values |= {f"p50_s:{kind}": one.p50_s, f"p99_s:{kind}": one.p99_s}
    return {key: value for key, value in values.items() if value is not None}


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    members: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        metadata = run.metadata
        mates = members.setdefault((metadata.policy, metadata.policy_digest, metadata.load_milli), [])
        twin = next((one for one in mates if one.metadata.seed == metadata.seed), None)
        if twin is not None:
            raise FieldError(
                "results", str(run.result.folder), f"another seed than {metadata.seed}, which {twin.result.folder} has of the same policy"
            )
        mates.append(run)
    return tuple(
        Group(
            name=_name(key, members),
            policy=_policy(key, members),
            load_milli=key[2],
            runs=tuple(sorted(mates, key=lambda run: run.metadata.seed)),
        )
        for key, mates in members.items()
    )


def _name(key: tuple[str, str, int], keys: Iterable[tuple[str, str, int]]) -> str:
    """As short as tells it from the others."""
    loads = len({other[2] for other in keys}) > 1
    return f"{_policy(key, keys)}{f' at load {key[2] / 1000:g}' if loads else ''}"


def _policy(key: tuple[str, str, int], keys: Iterable[tuple[str, str, int]]) -> str:
    policy, digest, _ = key
    several = len({other[1] for other in keys if other[0] == policy}) > 1
    return f"{policy}{f' ({digest[:8]})' if several else ''}"
