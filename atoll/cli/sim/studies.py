"""What `atoll sim compare` and `atoll sim sweep` have in common: who does the work, how far it is, and how the answer looks.

Decides the options of the work and the form of `-o json`; what a study is made of is `sims.study`'s matter, loaded when a verb runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count
from atoll.cli.output import Form, note, say, show_plain
from atoll.cli.session import session
from atoll.cli.sim import world
from atoll.cli.sim.report import plain
from atoll.model.errors import FieldError

if TYPE_CHECKING:
    from sims.report.comparison import Metric
    from sims.study.running import Study
    from sims.study.sweeping import Outcome, Plan
    from sims.study.tasks import Task

_FILE_CHARS: Final = 200

Workers = Annotated[str | None, typer.Option("--workers", metavar="N", show_default=False, help="Processes. (default: one for each core)")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", show_default=False, help="Work on this Ray cluster in their place: HOST:PORT, auto or local."),
]
Ideal = Annotated[
    bool, typer.Option("--ideal", help="Also find how much of the load that the ideal carries each policy does; ten runs more for each.")
]
Ablate = Annotated[bool, typer.Option("--ablate", help="Also the first policy without each term of its cost, and each part, one by one.")]


def conduct(study: Study, plan: Plan, out: Path | None, workers: str | None, ray: str | None) -> None:
    """Do what is left of a study, and show what came of it. Interrupted, it leaves a folder from which the same command goes on."""
    from sims.study.cluster import ClusterError, do_on_cluster
    from sims.study.sweeping import conduct as conducted
    from sims.study.workers import WORKERS_MAX, cores, do_here

    form = session().form
    if form is Form.NAME:
        raise FieldError("-o", form.value, "table, wide, json or yaml: a study has no name")
    if ray is not None and workers is not None:
        raise CliError("--workers is given with --ray: expected one of them", code=Exit.USAGE)
    hands = arguments.whole("--workers", workers, 1, WORKERS_MAX, cores())

    world.note_if_short(study, (*plan.loads_milli, 1_000 if plan.ideal else 0))
    with _folder(out) as folder:

        def work(tasks: Sequence[Task]) -> None:
            with _bar(study, tasks) as bar:
                if ray is None:
                    do_here(study, tasks, folder, hands, bar.heard)
                else:
                    do_on_cluster(study, tasks, folder, ray, bar.heard)

        try:
            found = conducted(study, plan, folder, work)
        except ClusterError as error:
            raise CliError(str(error), code=Exit.UNAVAILABLE) from None
        except KeyboardInterrupt:
            if out is not None:
                note(f"what is done is kept in {out}; the same command goes on from there")
            raise
        _show(found, form, plan)
    if out is not None:
        note(f"wrote {count(len(found.folders), 'result')} to {out}")


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with TemporaryDirectory(prefix="atoll-sim-") as folder:
            yield Path(folder)
        return
    if out.exists() and not out.is_dir():
        raise FieldError("--out", str(out), "a folder, or a name that is free")
    yield out


# --- how far it is --------------------------------------------------------------------------------------------------------------


class _Progress:
    """Jobs played, of all that the tasks are about to play."""

    def __init__(self, study: Study, tasks: Sequence[Task], drawn: Any) -> None:
        from sims.study.tasks import work_of

        self._work = {task.place: work_of(study, task) for task in tasks}
        self._played: dict[str, int] = {}
        self._done = 0
        self._drawn = drawn
        self._line = drawn.add_task("", total=sum(self._work.values())) if drawn is not None else None

    def heard(self, task: Task, jobs: int | None) -> None:
        whole = self._work[task.place]
        self._played[task.place] = whole if jobs is None else min(jobs, whole)
        self._done += jobs is None
        if self._drawn is not None:
            said = f"{self._done} of {count(len(self._work), 'run')}"
            self._drawn.update(self._line, completed=sum(self._played.values()), description=said)


@contextmanager
def _bar(study: Study, tasks: Sequence[Task]) -> Iterator[_Progress]:
    if not sys.stderr.isatty():
        yield _Progress(study, tasks, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True, get_time=time.monotonic) as drawn:
        yield _Progress(study, tasks, drawn)


# --- what came of it ------------------------------------------------------------------------------------------------------------


def _show(found: Outcome, form: Form, plan: Plan) -> None:
    from sims.report.reading import read_comparison

    comparison = read_comparison(found.folders)
    by = plan.tune.by if plan.tune is not None else None
    if form in {Form.JSON, Form.YAML}:
        jobs = sum(run.figures.jobs for group in comparison.groups for run in group.runs)
        show_plain(form, {"digest": found.digest, "jobs": jobs, **plain(comparison), "tuned": _tuned(found, by)})
        return
    from rich.console import Console

    from sims.report.standings import standings

    # In a file lines are as long as they are.
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _FILE_CHARS).print(standings(comparison))
    say("")
    for line in _tuned_lines(found, by):
        say(line)
    say(f"digest {found.digest}")


def _tuned(found: Outcome, by: Metric | None) -> list[dict[str, Any]]:
    from orchestrator.core.placement.policy_file import differences

    return [
        {
            "policy": one.base.name,
            "best": one.best.name,
            "by": by.key if by is not None else "",
            "settings": {key: value for key, value, _ in differences(one.best)},
            "tried": [
                {"policy": policy.name, **{key: value for key, value, _ in differences(policy)}, "value": value}
                for policy, value in one.tried
            ],
        }
        for one in found.tuned
    ]


def _tuned_lines(found: Outcome, by: Metric | None) -> Iterator[str]:
    from orchestrator.core.placement.policy_file import differences
    from sims.report import wording

    for one in found.tuned:
        changed = ", ".join(f"{key} {value}" for key, value, _ in differences(one.best)) or "as it is"
        best = min if by is None or by.lower_is_better else max
        value = wording.value(by, best(value for _, value in one.tried)) if by is not None else ""
        yield f"{one.base.name}: best of {count(len(one.tried), 'setting')}, {by.title if by is not None else ''} {value}: {changed}"
