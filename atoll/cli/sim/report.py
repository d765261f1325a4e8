"""`atoll sim report`: results made into one page, and into what fits a terminal.

Decides the options and the form of `-o json`; what is shown is `sims.report`'s matter, which is loaded when the verb runs.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.exits import CliError, Exit
from atoll.cli.output import Form, note, show_plain
from atoll.cli.session import session
from atoll.model.errors import FieldError

if TYPE_CHECKING:
    from sims.report.comparison import Comparison
    from sims.report.reading import Report


def report(
    results: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders that 'atoll sim run --out' wrote.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", show_default=False, help="The page: one file, which loads nothing.")
    ] = None,
) -> None:
    """Show results side by side: a screen of figures here and, with --out, a page to look at.

    Runs of one policy at one load are put together, one for each seed. Every other policy is compared with the first one given, seed by
    seed; from three seeds on with a confidence interval, and with how often chance alone would do as much.
    """
    from sims.report.reading import read_report

    form = session().form
    if form is Form.NAME:
        raise FieldError("-o", form.value, "table, wide, json or yaml: a report has no name")
    found = read_report(results)
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(found.comparison))
    else:
        from rich.console import Console

        from sims.report.summary import summary

        Console(file=sys.stdout, highlight=False).print(summary(found))
    if out is not None:
        _write(found, out)


def _write(found: Report, out: Path) -> None:
    from sims.report.html import write_page

    if out.is_dir():
        raise FieldError("--out", str(out), "a file, such as report.html; this is a folder")
    try:
        write_page(found, out)
    except OSError as error:
        raise CliError(f"cannot write {out}: {error.strerror}", code=Exit.USAGE) from None
    note(f"wrote {out}")


def plain(comparison: Comparison) -> dict[str, Any]:
    """Results side by side, for programs."""
    runs = [
        {
            "policy": run.metadata.policy,
            "policy_digest": run.metadata.policy_digest,
            "seed": run.metadata.seed,
            "load_milli": run.metadata.load_milli,
            "fastest_load_milli": run.metadata.fastest_load_milli,
            "folder": str(run.result.folder),
            "figures": asdict(run.figures),
            "metrics": dict(run.metrics),
        }
        for group in comparison.groups
        for run in group.runs
    ]
    bases = {group.name: before.name for group in comparison.groups if (before := comparison.baseline_of(group)) is not None}
    differences = [
        {"policy": name, "baseline": bases[name], "metric": metric, **asdict(difference)}
        for (name, metric), difference in comparison.differences.items()
    ]
    return {"runs": runs, "differences": differences}
