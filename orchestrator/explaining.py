"""Why a job is where it is, read from a core: what Explain answers, and what a replay says of a moment of a recording.

Decides which questions are put to the core for which state of a job. Must not know who asks, nor how the answer is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from atoll.model.ids import SiteId
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.quote import Eta, PlaceView, Quote
from orchestrator.core.machine import Machine
from orchestrator.core.outputs import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A job with its place in the queue (0: not queued), and what it is offered at `now_us`, while it waits or for one site."""

    job: Job
    now_us: int
    queue_position: int
    queue_length: int
    held_until_us: int
    eta: Eta | None = None
    quote: Quote | None = None
    places: tuple[PlaceView, ...] = ()


def costs_much(job: Job, site_id: SiteId | None) -> bool:
    """Whether its explanation looks at the whole fleet."""
    return job.state is JobState.QUEUED or site_id is not None


def explain(machine: Machine, job: Job, now_us: int, site_id: SiteId | None = None) -> Explained | Refusal:
    """Why a job is where it is; `site_id`: and what this site offers it. A Refusal where no site can be asked about it."""
    found = _standing(machine, job, now_us)
    waits = found.queue_position > 0 or found.held_until_us > now_us
    if not costs_much(job, site_id) or not (waits or site_id is not None):
        return found
    offered = machine.outlook(job.job_id, job.spec, now_us)
    if isinstance(offered, Refusal):
        return found if site_id is None else offered
    found = replace(found, quote=offered, eta=offered.eta if waits and offered.eta is not None else found.eta)
    if site_id is None:
        return found
    places = machine.places(job.job_id, job.spec, site_id, now_us)
    return places if isinstance(places, Refusal) else replace(found, places=places)


def _standing(machine: Machine, job: Job, now_us: int) -> Explained:
    position, length = machine.queue_position(job.job_id)
    if position:
        job = replace(job, deferral=machine.deferral_of(job.job_id))
    return Explained(
        job=job,
        now_us=now_us,
        queue_position=position,
        queue_length=length,
        held_until_us=machine.held_until_us(job.job_id),
        eta=machine.eta_of(job.job_id, now_us) if job.state not in TERMINAL else None,
    )
