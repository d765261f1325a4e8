"""`atoll sim sweep`: a study that a file describes, on all cores or on a cluster, and from where it was stopped.

Decides how the file's words become what the command line's do; what is done with them is in `studies`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from atoll.cli.exits import CliError, Exit
from atoll.cli.sim import studies, world
from atoll.cli.sim.trace import Dense, RowsMax, SkipBad
from atoll.cli.textfile import read_text
from atoll.model.errors import FieldError, SourceError

if TYPE_CHECKING:
    from sims.study.sweep_file import StudyText, TuneText
    from sims.study.sweeping import Tune

T = TypeVar("T")


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is studied: a file in YAML; the page on simulation shows one.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", show_default=False, help="Where results are kept. (default: FILE without its ending)"),
    ] = None,
    ablate: studies.Ablate = False,
    workers: studies.Workers = None,
    ray: studies.Ray = None,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
) -> None:
    """Do the study of a file: policies, each at its best setting if so asked, x loads x seeds.

    What the folder holds already is not run again: stopped at any moment, even by a kill, the same command goes on. Half a run is none.
    """
    from dataclasses import replace

    from sims.study.sweep_file import FILE_BYTES_MAX
    from sims.study.sweeping import POLICIES_MAX, Plan, checked

    folder = out if out is not None else file.with_suffix("")
    if folder == file:
        raise FieldError("FILE", str(file), "a name that ends in .yaml, or --out")
    asked = _parsed(read_text(file, FILE_BYTES_MAX), str(file))
    asked = replace(asked, ablate=asked.ablate or ablate)
    plan = Plan(
        policies=_of_file(asked, str(file), lambda: world.policies("--policies", ",".join(asked.policies), POLICIES_MAX)),
        loads_milli=_of_file(asked, str(file), lambda: world.loads_milli("--loads", ",".join(asked.loads) or None)),
        seeds=tuple(range(asked.seeds)),
        ideal=asked.ideal,
        ablate=asked.ablate,
        tune=_of_file(asked, str(file), lambda: _tune(asked.tune)),
    )
    given = world.World(trace=Path(asked.trace), skip_bad=skip_bad, rows_max=rows_max, dense=dense, **asked.world)
    study = _of_file(asked, str(file), given.study)
    studies.conduct(study, checked(study, plan), folder, workers, ray)


def _parsed(text: str, file_name: str) -> StudyText:
    from atoll.catalog.problems import SourceErrors
    from sims.study.sweep_file import parse_study

    try:
        return parse_study(text, file_name)
    except SourceErrors as error:
        first, *more = [str(one) for one in error.errors]
        raise CliError(first, code=Exit.USAGE, more=tuple(more)) from None


def _of_file(asked: StudyText, file_name: str, read: Callable[[], T]) -> T:
    """What is wrong with an option was written in the file, and is said of it."""
    try:
        return read()
    except FieldError as error:
        key = error.field.removeprefix("--").replace("-", "_")
        if key not in asked.lines:
            raise
        raise SourceError(file_name, asked.lines[key], key, error.value, error.expected) from None


def _tune(text: TuneText | None) -> Tune | None:
    from sims.study.sweeping import Tune, metric_of

    if text is None:
        return None
    return Tune(
        by=metric_of(text.by),
        budget=text.budget,
        load_milli=world.load_milli("--tune", text.load or None),
        seeds=text.seeds,
        grid=text.grid,
        grids=dict(text.grids),
    )
