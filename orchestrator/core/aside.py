"""Jobs that are set aside: whoever runs the core saw it fail over placing them, and they would make it fail again for ever.

Decides which jobs are suspected when the core has failed, and how those that were found out end. Must not know why it failed, nor when a
suspicion is enough: the core cannot see its own end.
"""

from __future__ import annotations

from typing import Final

from atoll.model.attempt import Failure, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import JobId
from atoll.model.job import JobState
from orchestrator.core import jobs
from orchestrator.core.context import Context

# Jobs that a line of the audit names; each says in its failure what became of it.
_NAMED_MAX: Final = 5


def suspects(ctx: Context) -> tuple[JobId, ...]:
    """The jobs that were being placed: all of the class that was looked at, as one estimate is everybody's; none outside of placing."""
    looked_at = ctx.looked_at
    if looked_at is None:
        return ()
    return tuple(dict.fromkeys([*looked_at.members, *([ctx.binding] if ctx.binding is not None else [])]))


def set_aside(ctx: Context, job_ids: tuple[JobId, ...], reference: str) -> None:
    """End those of these jobs that wait, before anything is placed. `reference` finds the failure in the log."""
    known = [entry for job_id in job_ids if (entry := ctx.state.jobs.get(job_id)) is not None and entry.job.state is JobState.QUEUED]
    if not known:
        return
    message = f"the orchestrator failed each time it tried to place this job, so it was set aside (reference {reference} in its log)"
    for entry in known:
        jobs.end(ctx, entry, JobState.FAILED, failure=Failure(kind=FailureKind.INTERNAL, message=message))
    names = ", ".join(entry.job.job_id for entry in known[:_NAMED_MAX])
    more = f" and {len(known) - _NAMED_MAX} more" if len(known) > _NAMED_MAX else ""
    ctx.audit(
        "jobs_set_aside",
        f"job/{known[0].job.job_id}" if len(known) == 1 else "jobs",
        reason="placing them made the orchestrator fail",
        detail=f"{names}{more}; reference {reference} in its log",
        severity=Severity.ALARM,
    )
