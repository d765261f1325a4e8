"""`atoll jobs`: list, get, watch, cancel, explain, logs, download."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments, deadletters, explain, outlook, progress
from atoll.cli.exits import CliError, Exit, code_of, hint_of
from atoll.cli.figures import NONE, change, count, duration, size
from atoll.cli.output import Column, Form, Listing, note, printable, say, show_list, show_one, show_plain
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.cli.verbs import Noun
from atoll.model import limits
from atoll.model.attempt import Attempt
from atoll.model.errors import FieldError
from atoll.model.job import TERMINAL, Job, JobState

if TYPE_CHECKING:
    from atoll.client import ClientError

# Refusals of one command that a screen has room for.
_REFUSED_SHOWN: Final = 10

app = typer.Typer(cls=Noun, name="jobs", help="Follow jobs, ask why they are where they are, fetch their results.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job or the beginning of it, with or without 'job/'.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs or their beginnings, with or without 'job/'.")]


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    deadletters.add_to(app)
    root.add_typer(app)


def _last(job: Job) -> Attempt | None:
    return job.attempts[-1] if job.attempts else None


def _site(job: Job) -> str:
    last = _last(job)
    return last.site_id if last and job.state is not JobState.QUEUED else NONE


def _weights(job: Job) -> str:
    last = _last(job)
    return NONE if last is None else progress.temperature(last)


def _predicted(job: Job) -> str:
    last = _last(job)
    return duration(last.predicted_us) if last else NONE


def _eta(job: Job) -> str:
    """When half of such jobs are done, of one that is on its way, or by how much it is later."""
    if job.eta is None:
        return NONE
    if job.eta.end_p50_us > job.as_of_us:
        return f"in {duration(job.eta.end_p50_us - job.as_of_us)}"
    return outlook.late_by(job.eta, job.as_of_us) or "now"


def _took(job: Job) -> str:
    last = _last(job)
    return duration(last.ended_us - last.leased_us) if last and last.ended_us else NONE


def _age(job: Job) -> str:
    """Since it was accepted, which tells of one that waits for how long."""
    return duration(job.as_of_us - job.accepted_us) if job.as_of_us > job.accepted_us else NONE


def _off(job: Job) -> str:
    last = _last(job)
    if last is None or not last.ended_us or job.state is not JobState.SUCCEEDED:
        return NONE
    return change(last.predicted_us, last.ended_us - last.leased_us)


def _files(job: Job) -> str:
    if job.result is None:
        return NONE
    if job.result.simulated:
        return "(simulated)"
    return ", ".join(f"{artifact.name} {size(artifact.bytes)}" for artifact in job.result.artifacts)


def _with(job: Job) -> str:
    """Adapters with their scales, and the image that it begins with."""
    found = [f"{use.adapter_id}:{use.scale_milli / 1_000:g}" for use in job.spec.adapters]
    if job.spec.image is not None:
        found.append(f"image at {job.spec.strength_milli / 1_000:g}")
    return ", ".join(found) or NONE


def _why(job: Job) -> str:
    """Of one that ended without a result, and of one that waits."""
    if job.state is JobState.QUEUED:
        return progress.why_waiting(job) or NONE
    return job.failure.words if job.failure else job.cancel_reason or NONE


JOBS: Listing[Job] = Listing(
    kind="job",
    ref=lambda job: job.job_id,
    columns=(
        Column(title="JOB", cell=lambda job: job.job_id),
        Column(title="MODEL", cell=lambda job: job.spec.model_id),
        Column(title="STATE", cell=lambda job: job.state.value),
        Column(title="SITE", cell=_site),
        Column(title="WEIGHTS", cell=_weights),
        Column(title="PREDICTED", cell=_predicted, right=True),
        Column(title="ETA", cell=_eta, right=True),
        Column(title="TOOK", cell=_took, right=True),
        Column(title="OFF", cell=_off, right=True, wide=True),
        Column(title="TRIES", cell=lambda job: str(len(job.attempts)), right=True),
        Column(title="AGE", cell=_age, right=True),
        Column(title="PRIORITY", cell=lambda job: job.spec.priority.value, wide=True),
        Column(title="SHAPE", cell=lambda job: str(job.spec.shape), wide=True),
        Column(title="WITH", cell=_with, wide=True),
        Column(title="SEED", cell=lambda job: str(job.spec.seed), wide=True, right=True),
        Column(title="TENANT", cell=lambda job: job.spec.tenant, wide=True),
        Column(title="FILES", cell=_files, wide=True),
        Column(title="WHY", cell=_why, wide=True),
        Column(title="PROMPT", cell=lambda job: job.spec.prompt, wide=True),
    ),
)


def job_id(text: str) -> str:
    """The id in "job/ID" or "ID"; whether it is one is checked where it is sent."""
    return text.removeprefix("job/")


@verb(
    app,
    "list",
    epilog="""
    atoll jobs list
    atoll jobs list --state running,placed -o wide
    atoll jobs list --model flux.1-schnell --state queued
    atoll jobs list --dead
    atoll jobs list --failure out_of_memory,runtime_lost --limit 0 -o json | jq '.[].failure'
    """,
)
def list_jobs(
    *,
    state: Annotated[list[str] | None, typer.Option("--state", metavar="STATE", help="Only these states; may be repeated.")] = None,
    dead: deadletters.DeadOption = False,
    failure: deadletters.FailureOption = None,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", show_default=False, help="Only this model's.")] = "",
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's (operators see all).")] = "",
    limit: Annotated[str, typer.Option("--limit", metavar="N", help="At most so many; 0: all.")] = "50",
) -> None:
    """List jobs: those that have not ended, then the others; of both the newest first.

    PREDICTED and TOOK are of the last attempt, from the decision to the result: time in the queue comes before. AGE is since acceptance.
    Dead letters (--dead, or --failure) are told with why they ended; 'atoll jobs retry' asks for them again.
    """
    from atoll.client import DEAD

    most = arguments.whole("--limit", limit, 0, 1_000_000)
    states = []
    for name in arguments.names(state):
        try:
            states.append(JobState(name.lower()))
        except ValueError:
            raise FieldError("--state", name, f"one of {', '.join(JobState)}") from None
    wanted = deadletters.kinds(failure)
    if (dead or wanted) and states:
        raise CliError("--dead and --failure are of jobs that failed or expired: leave out --state", code=Exit.USAGE)
    letters = dead or bool(wanted)
    form = session().form
    with session().client() as client, as_options(model_id="--model"):
        # One more than is shown, to know whether there are more.
        size_of_page = min(most + 1 if most and not wanted else limits.PAGE_SIZE_MAX, limits.PAGE_SIZE_MAX)
        listed = client.list(states=DEAD if letters else states, tenant=tenant, model=model, page_size=size_of_page)
        jobs = deadletters.of_kinds(listed, wanted)
        found = list(islice(jobs, most + 1)) if most else list(jobs)
    more = bool(most) and len(found) > most
    columns, none = (deadletters.LETTERS, "no dead letters") if letters else (JOBS, "no jobs")
    show_list(form, columns, found[:most] if more else found, empty=none)
    if more:
        # In every form: a program would take them for all.
        note(f"there are more than {most}: these are the first, and those that have not ended come first; --limit 0 lists all")


@verb(
    app,
    "get",
    epilog="""
    atoll jobs get JOB
    atoll jobs get JOB -o json
    """,
)
def get(*, jobs: JobsArgument) -> None:
    """Show jobs as they are."""
    form = session().form
    with session().client() as client:
        found = [client.get(job_id(text)) for text in jobs]
    if len(found) == 1:
        show_one(form, JOBS, found[0])
    else:
        show_list(form, JOBS, found)
    if form in {Form.TABLE, Form.WIDE}:
        for one in found:
            say(printable(f"job/{one.job_id} {progress.sentence(one)}"))


@verb(
    app,
    "watch",
    epilog="""
    atoll jobs watch JOB  # until it ends
    atoll jobs watch  # everything, until interrupted
    """,
)
def watch(
    *,
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB...]", help="Ids of jobs; none: all jobs.")] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="DURATION", help="Give up after this long.")] = None,
) -> None:
    """Follow jobs as they move through their states. Ends when all named jobs have; the exit code is 1 if one of them failed."""
    timeout_s = arguments.duration_ms("--timeout", timeout) / 1_000 if timeout else None
    with session().client() as client:
        if jobs:
            ended = progress.follow(client, [job_id(text) for text in jobs], timeout_s=timeout_s)
            progress.refuse_failures(ended)
        else:
            progress.follow_everything(client, timeout_s=timeout_s)


@verb(
    app,
    "cancel",
    epilog="""
    atoll jobs cancel JOB --reason "wrong prompt"
    atoll jobs list --state queued --limit 0 -o name | xargs -r atoll jobs cancel
    """,
)
def cancel(*, jobs: JobsArgument, reason: Annotated[str, typer.Option("--reason", help="Why; kept with the job.")] = "") -> None:
    """Cancel jobs: queued ones at once, running ones between two steps. One that has ended stays as it is (exit code 6); the others are
    cancelled all the same."""
    from atoll.client import ClientError, InputError, NotFoundError, StateError

    form = session().form
    found: list[Job] = []
    refused: list[ClientError] = []
    with session().client() as client:
        for text in jobs:
            try:
                found.append(client.cancel(job_id(text), reason))
            except ClientError as error:
                refused.append(error)
                if not isinstance(error, StateError | NotFoundError | InputError):
                    break  # no matter of this job: the next would fare alike
    if found or not refused:
        show_list(form, JOBS, found)
    if refused:
        if len(jobs) > 1:
            note(f"{len(found)} of {len(jobs)} jobs cancelled")
        first, *more = [str(error) for error in refused[:_REFUSED_SHOWN]]
        raise CliError(first, code=code_of(refused[0]), hint=hint_of(refused[-1]), more=tuple(more))


@verb(
    app,
    "explain",
    epilog="""
    atoll jobs explain JOB
    atoll jobs explain JOB --site aws-use1  # why not there
    atoll jobs explain JOB -o json
    """,
)
def explain_job(
    *,
    job: JobArgument,
    site: Annotated[str, typer.Option("--site", metavar="SITE", show_default=False, help="What this site offers it now.")] = "",
) -> None:
    """Why a job ran, runs or waits where it does: every place with its cost in seconds, and why others could not take it.

    -o wide says what each column of the tables is.
    """
    form = session().form
    with session().client() as client:
        found = client.explain(job_id(job), site_id=site)
    explain.answer(form, found, site)


@verb(
    app,
    "logs",
    epilog="""
    atoll jobs logs JOB
    atoll jobs logs JOB --attempt 1 --lines 500
    """,
)
def logs(
    *,
    job: JobArgument,
    attempt: Annotated[str | None, typer.Option("--attempt", metavar="N", help="Which attempt; default: the latest.")] = None,
    lines: Annotated[str | None, typer.Option("--lines", metavar="N", help="How many lines from its end; default 200.")] = None,
) -> None:
    """Show the log of an attempt, read at its site."""
    ordinal = arguments.whole("--attempt", attempt, 1, limits.ATTEMPTS_PER_JOB_MAX)
    wanted = arguments.whole("--lines", lines, 1, limits.LOG_LINES_MAX)
    form = session().form
    with session().client() as client:
        found = client.logs(job_id(job), ordinal=ordinal, lines=wanted)
    if form in {Form.JSON, Form.YAML}:
        from atoll.cli.output import plain

        show_plain(form, plain(found))
        return
    note(f"attempt {found.ordinal} at {found.site_id}, {count(len(found.lines), 'line')}")
    for line in found.lines:
        say(printable(line))


@verb(
    app,
    "download",
    epilog="""
    atoll jobs download JOB  # every file, into this folder
    atoll jobs download JOB --out lighthouse.png
    """,
)
def download(
    *,
    job: JobArgument,
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="A file, or a folder for all files.")] = ".",
    artifact: Annotated[str | None, typer.Option("--artifact", metavar="NAME", help="Only this file of the result.")] = None,
) -> None:
    """Fetch the files of a result, checked by their digests. A file appears complete or not at all."""
    with session().client() as client:
        found = client.get(job_id(job))
        if found.state not in TERMINAL:
            hint = f"atoll jobs watch {found.job_id} waits for it"
            raise CliError(f"job {found.job_id} is {found.state}: it has no result yet", code=Exit.CONFLICT, hint=hint)
        for path in progress.save(client, found, Path(out), only=artifact):
            say(str(path))
