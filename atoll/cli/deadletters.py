"""Dead letters: jobs that ended without a result though nobody cancelled them, found, read and asked for again.

Decides which are meant by a selection, and what is told of each. Why an attempt failed, and when a job is given up, is the orchestrator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments, progress
from atoll.cli.exits import CliError, Exit, code_of, hint_of
from atoll.cli.figures import NONE, count, duration
from atoll.cli.output import Column, Form, Listing, note, show_list
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.model import limits
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError
from atoll.model.job import Job

if TYPE_CHECKING:
    from atoll.client import Client, ClientError

# Asked for again in one go: more than that are an outage, and are fed back in portions, so that the first of them tell whether it is over.
_AGAIN_MAX: Final = 10_000
# Refusals of one command that a screen has room for.
_REFUSED_SHOWN: Final = 10

DeadOption = Annotated[bool, typer.Option("--dead", help="Only dead letters: ended without a result, and not cancelled.")]
FailureOption = Annotated[
    list[str] | None, typer.Option("--failure", metavar="KIND", help="Only those that failed of this: out_of_memory, lost, expired, ...")
]
# A job that ran out of time failed of nothing else.
_EXPIRED: Final = "expired"
_KINDS: Final = (*FailureKind, _EXPIRED)


def _ended(job: Job) -> str:
    return f"{duration(job.as_of_us - job.ended_us)} ago" if job.as_of_us > job.ended_us else NONE


def _sites(job: Job) -> str:
    """Where it was tried, in that order, each once."""
    return ", ".join(dict.fromkeys(attempt.site_id for attempt in job.attempts)) or NONE


LETTERS: Final[Listing[Job]] = Listing(
    kind="job",
    ref=lambda job: job.job_id,
    columns=(
        Column(title="JOB", cell=lambda job: job.job_id),
        Column(title="MODEL", cell=lambda job: job.spec.model_id),
        Column(title="STATE", cell=lambda job: job.state.value),
        Column(title="ENDED", cell=_ended, right=True),
        Column(title="TRIES", cell=lambda job: str(len(job.attempts)), right=True),
        Column(title="SITES", cell=_sites, wide=True),
        Column(title="TENANT", cell=lambda job: job.spec.tenant, wide=True),
        Column(title="WHY", cell=lambda job: job.failure.words if job.failure else job.cancel_reason or NONE),
    ),
)


def kinds(failure: list[str] | None) -> frozenset[str]:
    """The kinds that `--failure` names. FieldError for what is none."""
    found = [name.lower().replace("-", "_") for name in arguments.names(failure)]
    for name in found:
        if name not in _KINDS:
            raise FieldError("--failure", name, f"one of {', '.join(sorted(_KINDS))}")
    return frozenset(found)


def of_kinds(jobs: Iterable[Job], wanted: frozenset[str]) -> Iterator[Job]:
    """Those that failed of one of these; all where none is named."""
    return (job for job in jobs if not wanted or (job.failure.kind.value if job.failure else job.state.value) in wanted)


def _letters(client: Client, *, model: str, tenant: str, wanted: frozenset[str], within_us: int | None) -> Iterator[Job]:
    """Dead letters, the youngest first. One that ended longer ago is none of them."""
    from atoll.client import DEAD

    with as_options(model_id="--model"):
        for job in of_kinds(client.list(states=DEAD, tenant=tenant, model=model, page_size=limits.PAGE_SIZE_MAX), wanted):
            if within_us is None or job.as_of_us - job.ended_us <= within_us:
                yield job


def _named(client: Client, ids: list[str]) -> tuple[Job, ...]:
    """The jobs of these ids. CliError for one that has not ended, or has a result: nothing is asked for again then."""
    from atoll.client import REPEATABLE

    jobs = tuple(client.get(text.removeprefix("job/")) for text in ids)
    for job in jobs:
        if job.state not in REPEATABLE:
            raise CliError(
                f"job {job.job_id} {progress.sentence(job)}: only one that failed, expired or was cancelled is asked for again",
                code=Exit.CONFLICT,
            )
    return jobs


def add_to(app: typer.Typer) -> None:
    """Add the verb to the noun."""

    @verb(
        app,
        "retry",
        epilog="""
    atoll jobs retry JOB
    atoll jobs retry --dead --failure out_of_memory --within 2h --dry-run
    atoll jobs retry --dead --model flux.1-schnell --limit 100
    """,
    )
    def retry(
        *,
        jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB...]", help="Ids of jobs or their beginnings.")] = None,
        dead: DeadOption = False,
        failure: FailureOption = None,
        model: Annotated[str, typer.Option("--model", metavar="MODEL", show_default=False, help="Only this model's.")] = "",
        tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's (operators see all).")] = "",
        within: Annotated[str | None, typer.Option("--within", metavar="DURATION", help="Only what ended since then.")] = None,
        limit: Annotated[str, typer.Option("--limit", metavar="N", help="At most so many, the youngest first.")] = "1000",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Show which; ask for nothing.")] = False,
    ) -> None:
        """Ask once more for jobs that failed, expired or were cancelled: by their ids, or with --dead for all dead letters that are meant.

        Each becomes a new job with the same seed, shape, inputs and limits. Asked again for the same job it is the same new one, so a retry
        whose answer was lost is safe to repeat.
        """
        if bool(jobs) == dead:
            raise CliError("give ids of jobs, or --dead for all dead letters that are meant: one of both", code=Exit.USAGE)
        if jobs and (failure or model or tenant or within):
            raise CliError("--failure, --model, --tenant and --within choose among dead letters: give --dead, not ids", code=Exit.USAGE)
        most, wanted = arguments.whole("--limit", limit, 1, _AGAIN_MAX), kinds(failure)
        within_us = arguments.duration_ms("--within", within) * 1_000 if within else None
        form = session().form
        with session().client() as client:
            chosen = (
                iter(_named(client, jobs)) if jobs else _letters(client, model=model, tenant=tenant, wanted=wanted, within_us=within_us)
            )
            if dry_run:
                found = tuple(islice(chosen, most))
                show_list(form, LETTERS, found, empty="no dead letters")
                note(f"dry run: {count(len(found), 'job')} would be asked for again, but for those that were before")
                return
            _ask(client, form, chosen, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A new job, and the one that it is again. `existing`: it had been asked for before."""

    job_id: str
    again_of: str
    model_id: str
    existing: bool


_RETRIED: Final[Listing[Retried]] = Listing(
    kind="job",
    ref=lambda one: one.job_id,
    columns=(
        Column(title="JOB", cell=lambda one: one.job_id),
        Column(title="AGAIN OF", cell=lambda one: one.again_of),
        Column(title="MODEL", cell=lambda one: one.model_id),
        Column(title="NEW", cell=lambda one: "no, asked for before" if one.existing else "yes"),
    ),
)


def _ask(client: Client, form: Form, chosen: Iterator[Job], most: int) -> None:
    """Ask again until so many are new: what was asked for before costs a look, and is shown if nothing else is."""
    from atoll.client import again

    found: list[Retried] = []
    refused: list[tuple[Job, ClientError]] = []
    asked = 0
    while (left := most - sum(not one.existing for one in found)) > 0:
        part = tuple(islice(chosen, min(left, limits.BATCH_JOBS_MAX)))
        if not part:
            break
        asked += len(part)
        for job, one in zip(part, client.submit_many(again(job) for job in part), strict=True):
            if one.job_id is not None:
                found.append(Retried(job_id=one.job_id, again_of=job.job_id, model_id=job.spec.model_id, existing=one.existing))
            elif one.error is not None:
                refused.append((job, one.error))
        if refused:
            break  # a quota, or what the fleet no longer has: the next would meet it too, or can wait until this is looked at
    show_list(form, _RETRIED, found, empty="no dead letters")
    if refused:
        if asked > 1:
            note(f"{len(found)} of {asked} jobs asked for again")
        first, *more = [f"job {job.job_id}: {error}" for job, error in refused[:_REFUSED_SHOWN]]
        raise CliError(first, code=code_of(refused[0][1]), hint=hint_of(refused[0][1]), more=tuple(more))
