"""Folders of results made into what a page and a terminal show, one folder in memory at a time.

Decides the order: as given, the first policy being what others are compared with. Must not know how anything looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.model.errors import FieldError
from sims.report.charts import chart_data, curves_of, run_data
from sims.report.comparison import Comparison, compared, run_of
from sims.results.parquet import read_result


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Results side by side, and the data of their charts."""

    comparison: Comparison
    data: dict[str, Any]


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """Their figures alone, without what charts need."""
    return compared([run_of(read_result(folder))[0] for folder in folders])


def read_report(folders: Sequence[Path]) -> Report:
    """The report of these results. An error names the folder and the file that is not a result."""
    if not folders:
        raise FieldError("results", [], "at least one folder that `atoll sim run --out` wrote")
    results = [read_result(folder) for folder in folders]
    runs, curves, drawn = [], [], []
    for result in results:
        run, jobs, sites = run_of(result)
        runs.append(run)
        curves.append(curves_of(jobs))
        drawn.append(run_data(run, jobs, sites))
    comparison = compared(runs)
    place = {id(run): index for index, run in enumerate(runs)}
    of_group = {group.name: [place[id(run)] for run in group.runs] for group in comparison.groups}
    shown = [{"group": name, **drawn[index]} for name, indices in of_group.items() for index in indices]
    data = chart_data(comparison.groups, {name: [curves[index] for index in indices] for name, indices in of_group.items()}, shown)
    return Report(comparison=comparison, data=data)
