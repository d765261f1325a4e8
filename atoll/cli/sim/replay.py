"""`atoll sim replay`: a recording of a live orchestrator, decided again; up to a moment, of which one job is explained.

Decides how a moment is named and what is said of it. The replay itself is `orchestrator.replaying`'s matter, which is loaded when the verb
runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments, explain
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count, duration
from atoll.cli.output import Form, note, say, show_plain
from atoll.cli.session import session
from atoll.cli.sim.counting import counted
from atoll.model.errors import FieldError, NotFoundError, quoted

if TYPE_CHECKING:
    from atoll.model.job import Job
    from orchestrator.replaying import Replay, Replayed

_UNTIL_RULE: Final = "a step such as 1200, a time since it began such as 12m30s, fleet time such as 812345678us, or a job such as job/ID"
_FLEET_TIME: Final = re.compile(r"(\d{1,18})us\Z")
_STEP: Final = re.compile(r"\d{1,15}\Z")
_JOB: Final = re.compile(r"(job/)?([A-Za-z0-9][A-Za-z0-9._-]{3,127})(?:/(\d{1,6}))?\Z")
# A day of a recording is long; a month of one fits no disk.
_SINCE_MS_MAX: Final = 366 * 86_400_000
# Of jobs that are meant by one beginning, so many are named.
_NAMED_MOST: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Until:
    """The moment that was asked for: one of these, or the end."""

    text: str = ""
    step: int | None = None
    since_us: int | None = None
    at_us: int | None = None
    job: str = ""
    ordinal: int = 1

    def over(self, began_us: int, number: int, now_us: int) -> bool:
        """Whether an event is after it."""
        if self.step is not None:
            return number > self.step
        time_us = self.time_us(began_us)
        return time_us is not None and now_us > time_us

    def time_us(self, began_us: int) -> int | None:
        """Its fleet time, where it is one."""
        return began_us + self.since_us if self.since_us is not None else self.at_us


@dataclass(slots=True, kw_only=True)
class _Notebook:
    """Jobs whose ids begin with what was asked for, as they were last published: a few of them, where more than one may be meant."""

    beginning: str
    jobs: dict[str, Job] = field(default_factory=dict)

    def note(self, one: Replayed) -> None:
        from orchestrator.core.outputs import PublishJob

        if not self.beginning:
            return
        if one.step is None:
            known = (entry.job for entry in one.machine.context.state.jobs.values())
        else:
            known = (command.job for command in one.step.commands if isinstance(command, PublishJob))
        for job in known:
            if job.job_id.startswith(self.beginning) and (
                job.job_id == self.beginning or job.job_id in self.jobs or len(self.jobs) <= _NAMED_MOST
            ):
                self.jobs[job.job_id] = job

    def one(self) -> Job:
        """The job. NotFoundError where there is none, FieldError where several may be meant."""
        exact = self.jobs.get(self.beginning)
        if exact is not None or len(self.jobs) == 1:
            return exact or next(iter(self.jobs.values()))
        if not self.jobs:
            raise NotFoundError("job", self.beginning, "at that moment of the recording")
        some = ", ".join(sorted(self.jobs)[:_NAMED_MOST])
        raise FieldError("JOB", self.beginning, f"the beginning of one job's id; so begin {some}")


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording: what 'atoll orchestrator --record FILE' wrote.")],
    *,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="WHEN",
            show_default=False,
            help="Stop after this step (1200), at this time since it began (12m30s), at this fleet time (812345678us), or when this job "
            "was first placed (job/ID; its second attempt: job/ID/2). (default its end)",
        ),
    ] = "",
    explain_: Annotated[
        str, typer.Option("--explain", metavar="JOB", show_default=False, help="Why it was where it was. (default the job of --until)")
    ] = "",
    site: Annotated[str, typer.Option("--site", metavar="SITE", show_default=False, help="What this site offered it.")] = "",
) -> None:
    """Decide again what a live orchestrator decided, from its recording: each step must be what was recorded.

    The first one that is not ends the replay with exit code 1: it is of other code, or the file was changed. With a job it then says why
    the job was where it was at that moment, as 'atoll jobs explain' does.
    """
    from orchestrator.replaying import DifferentStepError, Replay

    goal = _until(until)
    wanted = _JOB.match(explain_) if explain_ else None
    if explain_ and wanted is None:
        raise FieldError("--explain", explain_, "the id of a job, or at least four characters of its beginning")
    notebook = _Notebook(beginning=wanted[2] if wanted else goal.job)
    placing = _Notebook(beginning=goal.job)
    if site and not notebook.beginning:
        raise CliError("--site is given without a job: expected --explain JOB", code=Exit.USAGE)
    form = session().form
    if form is Form.NAME and not notebook.beginning:
        raise FieldError("-o", form.value, "table, wide, json or yaml: a replay has no name")
    running = Replay(file)
    try:
        began_us, last, reached = _run(running, goal, (notebook, placing))
    except DifferentStepError as error:
        raise CliError(str(error), code=Exit.FAILED, hint=error.hint) from error
    if not reached:
        ends = f"step {last.number}, {duration(last.now_us - began_us)} after it began, and what is asked for is later or not in it"
        raise CliError(f"--until is {quoted(until)}: the recording ends at {ends}", code=Exit.NOT_FOUND)
    if notebook.beginning:
        _say_where(form, running, last, began_us)
        _explain(form, notebook.one(), last, goal.time_us(began_us) or last.now_us, site)
    else:
        _show(form, file, running, last, began_us)


def _run(running: Replay, goal: _Until, notebooks: tuple[_Notebook, ...]) -> tuple[int, Replayed, bool]:
    """(when it began, the last step that was replayed, whether that is where it was to stop)."""
    began_us: int | None = None
    last: Replayed | None = None
    passed = False

    def over(number: int, now_us: int) -> bool:
        nonlocal passed
        assert began_us is not None, "a recording begins with a core"
        passed = goal.over(began_us, number, now_us)
        return passed

    for one in counted(running.run(over), "replayed", kind="steps"):
        last = one
        if began_us is None:
            began_us = one.now_us
            at_us = goal.time_us(began_us)
            if at_us is not None and at_us < began_us:
                raise FieldError("--until", goal.text, f"not before the recording begins, at {began_us}us")
        for notebook in notebooks:
            notebook.note(one)
        if goal.job and any(len(job.attempts) >= goal.ordinal for job in notebooks[-1].jobs.values()):
            return began_us, one, True
    assert last is not None and began_us is not None, "a replay yields a core or raises"
    return began_us, last, passed or not goal.text or last.number == goal.step


def _until(text: str) -> _Until:
    if not text:
        return _Until()
    if _STEP.match(text):
        return _Until(text=text, step=int(text))
    fleet_time = _FLEET_TIME.match(text)
    if fleet_time:
        return _Until(text=text, at_us=int(fleet_time[1]))
    if arguments.is_duration(text):
        return _Until(text=text, since_us=arguments.duration_ms("--until", text, low_ms=0, high_ms=_SINCE_MS_MAX) * 1_000)
    job = _JOB.match(text)
    if job is None:
        raise FieldError("--until", text, _UNTIL_RULE)
    return _Until(text=text, job=job[2], ordinal=max(int(job[3] or 1), 1))


def _say_where(form: Form, running: Replay, last: Replayed, began_us: int) -> None:
    event = f" ({type(last.event).__name__})" if last.event is not None else ""
    where = f"after step {last.number}{event}, {duration(last.now_us - began_us)} after the recording began"
    if form in {Form.TABLE, Form.WIDE}:
        say(f"{where}; all {count(running.events, 'step')} as recorded")
    else:
        note(where)


def _explain(form: Form, job: Job, last: Replayed, now_us: int, site: str) -> None:
    from atoll.model.ids import SiteId, parse_name
    from orchestrator.core.outputs import Refusal
    from orchestrator.explaining import explain as explained

    site_id = SiteId(parse_name("--site", site.removeprefix("site/"))) if site else None
    state = last.machine.context.state
    if site_id is not None and site_id not in state.sites:
        raise NotFoundError("site", site_id, f"it had {', '.join(sorted(state.sites))}")
    entry = state.jobs.get(job.job_id)
    found = explained(last.machine, job if entry is None else entry.job, now_us, site_id)
    if isinstance(found, Refusal):
        raise CliError(found.message, code=Exit.CONFLICT)
    explain.answer(form, found, site_id or "")


def _show(form: Form, file: Path, running: Replay, last: Replayed, began_us: int) -> None:
    took_us = last.now_us - began_us
    if form in {Form.JSON, Form.YAML}:
        show_plain(
            form,
            {
                "file": str(file),
                "steps": running.events,
                "cores": running.cores,
                "as_recorded": True,
                "began_us": began_us,
                "until_us": last.now_us,
                "ended": running.ended,
                "torn": running.torn,
            },
        )
        return
    cores = f", of {running.cores} cores one after the other" if running.cores > 1 else ""
    say(f"{file}: {count(running.events, 'step')} in {duration(took_us)} of fleet time{cores}, all as recorded")
    if running.ended:
        say(f"  It ended before its orchestrator did: {running.ended}.")
    if running.torn:
        say("  Its last line was half written, and is left out.")
