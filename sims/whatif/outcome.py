"""What a change changes: each figure as it is and as it would be, over the seeds, and how sure that is.

Decides what is claimed. Each figure is judged by itself, as its interval is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sims.report import wording
from sims.report.comparison import Metric
from sims.study.paired import PAIRS_MIN, Difference, compare
from sims.whatif.figures import GPUS_AN_HOUR, METRICS
from sims.whatif.pairs import Variant


class Verdict(StrEnum):
    """What may be said of a figure's change."""

    BETTER = "better"
    WORSE = "worse"
    CHANCE = "may be chance"
    SAME = "the same"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One figure: its means over seeds, None where it was not there; and the difference, where both were there at enough seeds.

    `exact`: there is no chance in it.
    """

    metric: Metric
    now: float | None
    then: float | None
    difference: Difference | None
    exact: bool = False

    @property
    def verdict(self) -> Verdict:
        """What may be said of it."""
        found = self.difference
        if found is None:
            return Verdict.UNKNOWN
        if found.mean == found.low == found.high == 0:
            return Verdict.SAME
        if not found.is_significant and not self.exact:
            return Verdict.CHANCE
        return Verdict.BETTER if wording.is_better(self.metric, found) else Verdict.WORSE


def outcomes(figures: Mapping[Variant, Mapping[int, Mapping[str, float]]]) -> tuple[Outcome, ...]:
    """Every figure that any run has, in the order of METRICS."""
    by_metric = {metric: {variant: _by_seed(figures[variant], metric) for variant in Variant} for metric in METRICS}
    pairs = {metric.key: (one[Variant.NOW], one[Variant.THEN]) for metric, one in by_metric.items()}
    known = {key: compare(now, then) for key, (now, then) in pairs.items() if len(now.keys() & then.keys()) >= PAIRS_MIN}
    return tuple(
        Outcome(
            metric=metric,
            now=_mean(one[Variant.NOW]),
            then=_mean(one[Variant.THEN]),
            difference=known.get(metric.key),
            exact=metric is GPUS_AN_HOUR,
        )
        for metric, one in by_metric.items()
        if any(one.values())
    )


def _by_seed(figures: Mapping[int, Mapping[str, float]], metric: Metric) -> dict[int, float]:
    return {seed: found[metric.key] for seed, found in sorted(figures.items()) if metric.key in found}


def _mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
