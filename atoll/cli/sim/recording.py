"""`atoll sim trace record`: the jobs that a live fleet has had, as a trace.

Decides what of a job a trace keeps: what it asked for and when, never its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count
from atoll.cli.output import note
from atoll.cli.session import session
from atoll.cli.sim.counting import counted
from atoll.model.job import Job, JobState

if TYPE_CHECKING:
    from atoll.client import Client
    from sims.traces.job import TraceJob

# As many as a trace has by default.
_JOBS_MOST = 50_000_000
_PAGE = 1_000


def record(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new trace; its name's ending says which form.")],
    *,
    limit: Annotated[str | None, typer.Option("--limit", metavar="N", show_default=False, help="Only the newest N. (default all)")] = None,
    tenant: Annotated[str, typer.Option("--tenant", show_default=False, help="Only this tenant's.")] = "",
) -> None:
    """Write the jobs that the orchestrator has kept, ended or not, as a trace. Prompts are not part of it."""
    from sims.traces.metadata import TraceMeta
    from sims.traces.sorting import in_order
    from sims.traces.writing import write_trace

    most = arguments.whole("--limit", limit, 1, _JOBS_MOST, _JOBS_MOST)
    meta = TraceMeta(source="a fleet's own jobs, by 'atoll sim trace record'", licence="its owner's")
    with session().client() as client:
        kept = in_order(counted(_jobs(client, tenant, most), "read"))
        first = next(kept, None)
        if first is None:
            raise CliError("the orchestrator has no such jobs: no trace was written", code=Exit.NOT_FOUND)
        begun_us = first.arrival_us
        jobs = (replace(job, arrival_us=job.arrival_us - begun_us) for job in _before(first, kept))
        written = write_trace(target, meta, jobs)
    note(f"wrote {count(written, 'job')} to {target}")


def _before(first: TraceJob, rest: Iterator[TraceJob]) -> Iterator[TraceJob]:
    yield first
    yield from rest


def _jobs(client: Client, tenant: str, most: int) -> Iterator[TraceJob]:
    """Newest first, each once: one that ends while it is listed may come twice."""
    seen: set[str] = set()
    for job in client.list(tenant=tenant, page_size=_PAGE):
        if job.job_id in seen:
            continue
        if len(seen) >= most:
            return
        seen.add(job.job_id)
        yield traced(job)


def traced(job: Job) -> TraceJob:
    """What a job asked for; arrival as the fleet's clock has it."""
    from sims.traces.job import TraceJob

    spec = job.spec
    return TraceJob(
        arrival_us=job.accepted_us,
        model_id=spec.model_id,
        tenant=spec.tenant,
        width=spec.shape.width,
        height=spec.shape.height,
        frames=spec.shape.frames,
        steps=spec.shape.steps,
        cfg_passes=spec.shape.cfg_passes,
        batch=spec.shape.batch,
        precision=spec.precision,
        gang_size=spec.gang_size,
        adapters=spec.adapters,
        origin=spec.origin_site or "",
        priority=spec.priority,
        deadline_ms=spec.deadline_ms,
        start_timeout_ms=spec.start_timeout_ms,
        input_bytes=sum(one.bytes for one in spec.inputs),
        measured_us=max(job.ended_us - job.started_us, 0) if job.state is JobState.SUCCEEDED and job.started_us else 0,
    )
