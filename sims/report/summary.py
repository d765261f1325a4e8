"""Results on one screen of a terminal.

Decides what fits: for one policy the kinds of jobs, the shares, and where the seconds went; for several the metrics side by side.
"""

from __future__ import annotations

import math
from typing import Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atoll.model.words import duration
from sims.report import wording
from sims.report.comparison import METRICS, Comparison, Group, Metric
from sims.report.reading import Report
from sims.results.rows import TERMS

_BAR_CHARS: Final = 36
_SPARKS: Final = " ▁▂▃▄▅▆▇█"
_SPARK_CHARS: Final = 60


def summary(report: Report) -> RenderableType:
    """What a person wants to know first."""
    groups = report.comparison.groups
    if len(groups) > 1:
        return Lines(heading(groups), Text(), _compared(report.comparison))
    return Lines(
        heading(groups), Text(), _kinds(groups[0], report), Text(), _shares(groups[0]), Text(), _terms(report), Text(), _busy(report)
    )


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def heading(groups: tuple[Group, ...]) -> Text:
    """What results are of, in a line."""
    runs = [run for group in groups for run in group.runs]
    facts = [
        wording.one_or_many(run.metadata.fleet for run in runs),
        wording.one_or_many(run.metadata.trace for run in runs),
        f"{sum(run.figures.jobs for run in runs):,} jobs in {sum(run.figures.simulated_s for run in runs) / 3600:,.1f} fleet hours",
        wording.one_or_many(wording.load(run.metadata) for run in runs),
    ]
    text = Text(" · ".join(printable(fact) for fact in facts if fact))
    if any(run.metadata.synthetic for run in runs):
        text.append("  synthetic fleet", style="yellow")
    return text


def _kinds(group: Group, report: Report) -> Table:
    table = columns("jobs", "n", "p50", "p99", "mean by term")
    for bar in report.data["seconds"]:
        cells = [
            wording.value(metric, group.mean(metric))
            for metric in METRICS
            if metric.key in {f"p50_s:{bar['kind']}", f"p99_s:{bar['kind']}"}
        ]
        table.add_row(bar["kind"], f"{bar['n']:,}", *cells, duration(round(sum(bar["mean"].values()) * 1e6)))
    return table


def _shares(group: Group) -> Text:
    wanted = ("cold_start_share", "deadline_miss_share", "utilisation", "usd_per_1000_jobs", "pooling_efficiency")
    found = [metric for metric in METRICS if metric.key in wanted and group.mean(metric) is not None]
    text = Text()
    for index, metric in enumerate(found):
        text.append("   " if index else "")
        text.append(f"{metric.title} ")
        text.append(wording.value(metric, group.mean(metric)), style="bold")
    return text


def _terms(report: Report) -> Table:
    """Seconds of all jobs together, by term."""
    sums = {term: sum(bar["mean"][term] * bar["n"] for bar in report.data["seconds"]) for term in TERMS}
    whole = sum(sums.values())
    table = columns("where the seconds went", "share", "")
    for term, seconds in sums.items():
        if seconds:
            table.add_row(term, f"{seconds / whole * 100:.1f} %", Text("█" * round(seconds / whole * _BAR_CHARS), style="cyan"))
    return table


def _busy(report: Report) -> Text:
    """Slots busy over time, of the first run."""
    run = report.data["runs"][0]
    moments = list(zip(*run["utilisation"], strict=True)) if run["utilisation"] else []
    width = -(-len(moments) // _SPARK_CHARS) or 1
    marks = [_mark([share for moment in moments[start : start + width] for share in moment]) for start in range(0, len(moments), width)]
    return Text(f"sites busy  {''.join(marks)}  {wording.value(_UTILISATION, run['busy'])} on average")


def _mark(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    # A little is not nothing: rounded up.
    return _SPARKS[math.ceil(sum(known) / len(known) * (len(_SPARKS) - 1))] if known else " "


def _compared(comparison: Comparison) -> Table:
    present = [metric for metric in METRICS if any(group.by_seed(metric) for group in comparison.groups)]
    table = columns("", *(printable(group.name) for group in comparison.groups))
    table.add_row("seeds", *(str(len(group.runs)) for group in comparison.groups))
    for metric in present:
        table.add_row(metric.title, *(cell(comparison, group, metric) for group in comparison.groups))
    return table


def cell(comparison: Comparison, group: Group, metric: Metric) -> Text:
    """A figure of a policy, and how it differs from the baseline's; with a star where that is hardly chance."""
    text = Text(wording.value(metric, group.mean(metric)))
    difference = comparison.differences.get((group.name, metric.key))
    if difference is not None:
        change = wording.change(metric, difference.baseline_mean, difference.other_mean)
        style = ("green" if wording.is_better(metric, difference) else "red") if difference.is_significant else "dim"
        text.append(f"  {change}{'*' if difference.is_significant else ''}", style=style)
    return text


def columns(*titles: str) -> Table:
    """A table without lines: the first column to the left, figures to the right."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for index, title in enumerate(titles):
        table.add_column(Text(title), justify="left" if index == 0 or not title else "right", no_wrap=True)
    return table


_UTILISATION: Final = next(metric for metric in METRICS if metric.key == "utilisation")
