"""Jobs on their way: a live view on a terminal, plain lines elsewhere; and their files, once they are there.

Decides what is worth a line. Progress goes to standard error, so that standard output holds answers only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from atoll.cli import outlook
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import change, count, duration
from atoll.cli.output import STYLES, note, printable
from atoll.model import limits
from atoll.model.attempt import ENDED, Attempt, AttemptState
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.placement import Awaits

if TYPE_CHECKING:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    from atoll.client import Client, JobChange

# Jobs that a terminal shows one by one; the rest are counted.
_LIVE_LINES: Final = 20
_VERBS: Final = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "was cancelled",
    JobState.EXPIRED: "expired",
}


class View(Protocol):
    """Shows jobs as they change."""

    def __enter__(self) -> View: ...
    def __exit__(self, *ignored: object) -> None: ...
    def changed(self, job: Job) -> None:
        """A job has a new state, phase or step."""


def follow(client: Client, job_ids: Sequence[str], *, timeout_s: float | None = None) -> tuple[Job, ...]:
    """Show these jobs until all have ended; the jobs, in the order of their ids. Raises the SDK's errors, and CliError where what is left
    waits in vain and nobody has said for how long it is waited for."""
    from atoll.client import DeadlineError

    jobs: dict[str, Job] = {}
    try:
        with _view(len(job_ids)) as view:
            for start in range(0, len(job_ids), limits.BATCH_JOBS_MAX):
                part = job_ids[start : start + limits.BATCH_JOBS_MAX]
                for change_ in client.watch(part, until_terminal=True, timeout_s=timeout_s):
                    jobs[change_.job.job_id] = change_.job
                    view.changed(change_.job)
                    if timeout_s is None and change_.job.waits_in_vain:
                        _refuse_in_vain(jobs)
    except DeadlineError:
        if timeout_s is None:
            raise
        left = len(job_ids) - sum(job.state in TERMINAL for job in jobs.values())
        waited = duration(round(timeout_s * 1_000_000))
        message = f"{left} of {count(len(job_ids), 'job')} had not ended after {waited}; nothing was stopped"
        raise CliError(message, code=Exit.TIMEOUT, hint="'atoll jobs watch' takes it up again") from None
    found = [(job_id, _meant(jobs, job_id)) for job_id in job_ids]
    missing = [job_id for job_id, job in found if job is None or job.state not in TERMINAL]
    if missing:
        raise CliError(f"the orchestrator ended the stream before job {missing[0]} had ended", code=Exit.UNAVAILABLE)
    return tuple(job for _, job in found if job is not None)


def _refuse_in_vain(jobs: Mapping[str, Job]) -> None:
    """CliError when nothing is left but jobs that no site can ever run: whoever set no limit would wait for ever."""
    left = [job for job in jobs.values() if job.state not in TERMINAL]
    if not all(job.waits_in_vain for job in left):
        return
    first = left[0]
    others = f", and so {'wait' if len(left) > 2 else 'waits'} {count(len(left) - 1, 'other job')}" if len(left) > 1 else ""
    assert first.deferral is not None, "in vain is told by a deferral"
    message = f"job {first.job_id} waits in vain{others}: {lowered(outlook.nowhere(first.deferral.rejections)).rstrip('.')}"
    hint = f"'atoll jobs explain {first.job_id}' says what would have to change; it stays queued, and with --timeout it is waited for"
    raise CliError(message, hint=hint)


def _meant(jobs: Mapping[str, Job], job_id: str) -> Job | None:
    """The job of this id, or of the only id that begins so: the orchestrator has seen to it that there is one."""
    return jobs.get(job_id) or next((job for name, job in jobs.items() if name.startswith(job_id)), None)


def follow_everything(client: Client, *, timeout_s: float | None = None) -> None:
    """Print a line for each change of any job, until interrupted."""
    changes: Iterator[JobChange] = client.watch(timeout_s=timeout_s)
    view = PlainView(stream_is_answer=True)
    for one in changes:
        view.changed(one.job)


def refuse_failures(jobs: Sequence[Job]) -> None:
    """CliError when one of these jobs has ended without a result."""
    bad = [job for job in jobs if job.state is not JobState.SUCCEEDED]
    if not bad:
        return
    if len(jobs) == 1:
        raise CliError(f"job {bad[0].job_id} {sentence(bad[0])}", hint=f"atoll jobs explain {bad[0].job_id}")
    raise CliError(f"{len(bad)} of {count(len(jobs), 'job')} ended without a result; the first, {bad[0].job_id}, {sentence(bad[0])}")


def save(client: Client, job: Job, out: Path, *, only: str | None = None) -> Iterator[Path]:
    """Fetch a result's files to `out`: a folder, or a file (numbered when there are several). Yields each path once it is there."""
    if job.result is None:
        raise CliError(f"job {job.job_id} {sentence(job)}: it has no files", code=Exit.CONFLICT)
    if job.result.simulated:
        raise CliError(f"job {job.job_id} was simulated: its result has no files", code=Exit.CONFLICT)
    found = [artifact for artifact in job.result.artifacts if only is None or artifact.name == only]
    if not found:
        names = ", ".join(artifact.name for artifact in job.result.artifacts) or "none"
        raise CliError(f"job {job.job_id} has no file {only}: it has {names}", code=Exit.NOT_FOUND)
    for number, artifact in enumerate(found, start=1):
        path = out
        if out.is_dir():
            path = out / f"{job.job_id}-{artifact.name}"
        elif len(found) > 1:
            path = numbered(out, number)
        client.download(job.job_id, path, artifact=artifact.name)
        yield path


def numbered(path: Path, number: int) -> Path:
    """ "out.png" -> "out-3.png"."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def sentence(job: Job) -> str:
    """Where a job stands, for a person: "is running at local, step 3 of 8"."""
    last = job.attempts[-1] if job.attempts else None
    match job.state:
        case JobState.QUEUED:
            return _queued(job)
        case JobState.PLACED | JobState.RUNNING if last is not None:
            return f"is {job.state} at {last.site_id}{_phase(job)}"
        case JobState.SUCCEEDED if last is not None:
            took = last.ended_us - last.leased_us
            kind = " (simulated)" if job.result and job.result.simulated else ""
            off = f" ({change(last.predicted_us, took)})" if last.predicted_us else ""
            return f"succeeded at {last.site_id} in {duration(took)}, predicted {duration(last.predicted_us)}{off}{kind}"
        case _:
            why = f": {job.failure.words}" if job.failure else f": {job.cancel_reason}" if job.cancel_reason else ""
            return printable(f"{_VERBS.get(job.state, f'is {job.state}')}{why}")


def temperature(attempt: Attempt) -> str:
    """How the weights were when it was decided: warm, cold, or loading already."""
    told = attempt.explanation
    if told is not None and told.chosen.awaits is Awaits.LOAD:
        return "loading"
    return "cold" if attempt.cold else "warm"


def _phase(job: Job) -> str:
    last = job.attempts[-1]
    steps = job.spec.shape.steps
    match last.state:
        case AttemptState.LEASED:
            return f" ({temperature(last)}), predicted {duration(last.predicted_us)}"
        case AttemptState.RUNNING:
            return f", step {last.steps_done} of {steps}{_left(job)}" if last.steps_done else _left(job)
        case state if state in ENDED:
            return ""
        case state:
            return f", {state}"


def _left(job: Job) -> str:
    if job.eta is None:
        return ""
    left_us = job.eta.end_p50_us - job.as_of_us
    late = outlook.late_by(job.eta, job.as_of_us)
    return f", done in about {duration(left_us)}" if left_us > 0 else f", {late}" if late else ""


def _queued(job: Job) -> str:
    tried = f" again after {count(len(job.attempts), 'attempt')}" if job.attempts else ""
    why = why_waiting(job)
    awaits = job.deferral is not None and (job.deferral.claim or job.deferral.waits_for)
    return f"is queued{tried}{(', ' if awaits else ': ') if why else ''}{why}"


def why_waiting(job: Job) -> str:
    """What a queued job waits for; "" where it was not looked at yet."""
    deferral = job.deferral
    if deferral is None:
        return ""
    as_of_us = job.as_of_us or deferral.since_us
    if deferral.claim:
        claim = deferral.claim
        left_us = max(claim.begins_us - as_of_us, 0)
        return f"waiting for {claim.slots} GPUs of {claim.node_id} at {claim.site_id}, free in about {duration(left_us)}"
    if deferral.waits_for:
        left_us = max(deferral.since_us + deferral.waits_for.wait_us - as_of_us, 0)
        return f"waiting for {deferral.waits_for.site_id}, free in about {duration(left_us)}"
    return lowered(outlook.nowhere(deferral.rejections)).rstrip(".")


def lowered(sentence: str) -> str:
    """A sentence as part of another one."""
    return sentence[:1].lower() + sentence[1:]


def _waits_for(job: Job) -> object:
    """What it waits for, without how long: that passes by itself."""
    told = job.deferral
    if told is None or told.claim is not None:
        return told and told.claim
    return told.rejections if told.waits_for is None else (told.waits_for.site_id, told.waits_for.pool_id)


class PlainView:
    """One line per change of state or phase; steps are not worth a line."""

    def __init__(self, *, stream_is_answer: bool = False) -> None:
        self._last: dict[str, tuple[object, ...]] = {}
        self._to_output = stream_is_answer

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *ignored: object) -> None:
        return None

    def changed(self, job: Job) -> None:
        """Print a line unless the last one of this job says the same."""
        last = job.attempts[-1] if job.attempts else None
        kind = (job.state, len(job.attempts), last.state if last else None, _waits_for(job))
        if self._last.get(job.job_id) == kind:
            return
        self._last[job.job_id] = kind
        line = f"job/{job.job_id} {sentence(job)}"
        if self._to_output:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        else:
            note(line)


class LiveView:
    """A table that is drawn again as jobs move, and one line that counts them."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._jobs: dict[str, Job] = {}
        self._total = total
        self._live = Live(console=Console(stderr=True, highlight=False), refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._live.__exit__(None, None, None)

    def changed(self, job: Job) -> None:
        """Draw it again."""
        self._jobs[job.job_id] = job
        self._live.update(self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, show_header=False, pad_edge=False)
        for _ in range(3):
            drawn.add_column(no_wrap=True, overflow="ellipsis")
        moving = [job for job in self._jobs.values() if job.state not in TERMINAL]
        shown = (moving or list(self._jobs.values()))[:_LIVE_LINES]
        for job in shown:
            drawn.add_row(Text(f"job/{job.job_id}"), Text(sentence(job), style=STYLES.get(job.state.value, "")), _bar(job))
        if self._total > 1:
            ended = len(self._jobs) - len(moving)
            drawn.add_row(Text(f"{ended} of {count(self._total, 'job')} ended", style="bold"))
        return drawn


def _bar(job: Job) -> ProgressBar | str:
    from rich.progress_bar import ProgressBar

    last = job.attempts[-1] if job.attempts else None
    if job.state is not JobState.RUNNING or last is None or not last.steps_done:
        return ""
    return ProgressBar(total=job.spec.shape.steps, completed=last.steps_done, width=20)


def _view(total: int) -> View:
    return LiveView(total) if sys.stderr.isatty() else PlainView()
