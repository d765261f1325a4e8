"""Many policies on a screen: a table for each load, a line for each policy, and then what is known of the differences.

Decides what fits a line: the means over seeds, and how they differ from those of the policy that was given first. With enough seeds a
second table says where each difference lies and how often chance alone would do as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from sims.report import wording
from sims.report.comparison import METRICS, Comparison, Group, Metric
from sims.report.summary import columns, heading, printable
from sims.study.paired import Difference

# What is compared in every line; the page and -o json have all of them.
_HEADLINES: Final = ("mean_s", "p99_s:", "cold_start_share", "deadline_miss_share", "usd_per_1000_jobs", "pooling_efficiency")


def standings(comparison: Comparison) -> RenderableType:
    """Tables, load by load."""
    groups = comparison.groups
    parts: list[RenderableType] = [heading(groups)]
    for load_milli in dict.fromkeys(group.load_milli for group in groups):
        of_load = [group for group in groups if group.load_milli == load_milli]
        metrics = [metric for metric in METRICS if metric.key.startswith(_HEADLINES) and any(group.by_seed(metric) for group in of_load)]
        drawn = columns(wording.load(of_load[0].runs[0].metadata), "seeds", *(metric.title for metric in metrics))
        for group in of_load:
            cells = [_value(comparison, group, metric) for metric in metrics]
            drawn.add_row(printable(group.policy), str(len(group.runs)), *cells)
        parts += [Text(), drawn]
        found = list(_differences(comparison, of_load, metrics))
        if found:
            known = columns("compared with the first, seed by seed", "", "change", "95 % interval", "by chance")
            for row in found:
                known.add_row(*row)
            parts += [Text(), known]
    return Lines(*parts)


def _value(comparison: Comparison, group: Group, metric: Metric) -> Text:
    found = comparison.differences.get((group.name, metric.key))
    text = wording.value(metric, group.mean(metric))
    return Text(text) if found is None or not found.is_significant else Text(f"{text}*", style=_style(metric, found))


def _style(metric: Metric, found: Difference) -> str:
    return ("green" if wording.is_better(metric, found) else "red") if found.is_significant else "dim"


def _differences(comparison: Comparison, groups: list[Group], metrics: list[Metric]) -> Iterator[tuple[Text | str, ...]]:
    for group in groups:
        for metric in metrics:
            found = comparison.differences.get((group.name, metric.key))
            if found is None or not found.mean:
                continue
            change = wording.change(metric, found.baseline_mean, found.other_mean)
            mark = "*" if found.is_significant else ""
            shown = Text(f"{change}{mark}", style=_style(metric, found))
            yield printable(group.policy), metric.title, shown, wording.interval(metric, found), wording.chance(found)
