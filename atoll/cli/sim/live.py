"""What a running orchestrator tells of its fleet and of its last hours, for a what-if. Only asks: nothing is changed.

Decides how much is asked for: so many hours back, and so many jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from atoll.cli.sim.counting import counted
from atoll.cli.sim.recording import traced
from atoll.model.job import TERMINAL, Constraints, Job

if TYPE_CHECKING:
    from atoll.client import Client
    from sims.traces.job import TraceJob
    from sims.whatif.live import Live

_PAGE: Final = 1_000
# Jobs that are looked at to find the newest: a minute's worth of pages.
_READ_MOST: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """The jobs of the last hours, the first at 0; of how much time they are; how many were bound to places, which traces do not tell; and
    their figures in life."""

    jobs: tuple[TraceJob, ...]
    span_us: int
    bound: int
    measured: Mapping[str, float]


def live(client: Client) -> Live:
    """The fleet as it is."""
    from orchestrator.core.placement.policy_file import parse_policy
    from sims.whatif.live import Live

    models = tuple(view.spec for view in client.models_list())
    asked = counted(models, "looked for", len(models), kind="models")
    return Live(
        sites=client.sites_list(),
        links=client.sites_links(),
        models=models,
        adapters=tuple(view.spec for view in client.adapters_list()),
        copies={model.model_id: client.models_where(model.model_id).copies for model in asked},
        learned=client.residuals().residuals,
        policy=parse_policy(client.policy().text, "the fleet's policy", in_use=True),
        time_scale_milli=client.fleet().time_scale_milli,
    )


def recent(client: Client, hours: float, most: int) -> Recent:
    """The newest `most` jobs that arrived within so many hours of fleet time."""
    from sims.whatif.figures import figures_of_life

    now_us = client.fleet().now_us
    since_us = now_us - round(hours * 3_600_000_000)
    newest = heapq.nlargest(most, _since(client, since_us), key=lambda job: (job.accepted_us, job.job_id))
    if not newest:
        return Recent(jobs=(), span_us=0, bound=0, measured={})
    # Of a window that holds more, what is left begins with its oldest job.
    begins_us = newest[-1].accepted_us
    jobs = tuple(replace(traced(job), arrival_us=job.accepted_us - begins_us) for job in reversed(newest))
    bound = sum(job.spec.constraints != Constraints() for job in newest)
    return Recent(jobs=jobs, span_us=now_us - begins_us, bound=bound, measured=figures_of_life(newest))


def _since(client: Client, since_us: int) -> Iterator[Job]:
    """Jobs that arrived after a moment, each once. Those that have ended come by their end, which is after their arrival."""
    seen: set[str] = set()
    for number, job in enumerate(counted(client.list(page_size=_PAGE), "read")):
        if number >= _READ_MOST or (job.state in TERMINAL and job.ended_us < since_us):
            return
        if job.accepted_us >= since_us and job.job_id not in seen:
            seen.add(job.job_id)
            yield job
