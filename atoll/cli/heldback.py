"""What held a job back that expired while it waited: the place that was busy or the reasons of all places, and what would have helped.

Decides the words. It is told as of the job's end, by what the queue last knew of it: nobody waits any more.
"""

from __future__ import annotations

from typing import Final

from atoll.cli import costtable, outlook
from atoll.cli.costtable import place
from atoll.cli.figures import duration
from atoll.cli.output import say
from atoll.model.job import Job, JobState, Priority
from atoll.model.placement import Awaits, Candidate, Claim, Deferral

_WAS: Final = {
    Awaits.NOTHING: "which was busy",
    Awaits.LOAD: "where the model was loading",
    Awaits.FETCH: "where another node fetched the model",
    Awaits.GANG: "where idle GPUs were kept for a job that needs several at once",
}


def standing(job: Job) -> str:
    """Where it stood in the queue, as a clause; "" where that is not known."""
    told = job.deferral
    return f", number {told.position} of {told.queue_length} there" if told is not None and told.position else ""


def story(job: Job) -> list[str]:
    """What it waited for, and what it would have needed; nothing of a job that ended otherwise."""
    told = job.deferral
    if job.state is not JobState.EXPIRED or (told is None and job.attempts):
        return []
    if told is None:
        return ["What it waited for is not known: no place had been looked for yet."]
    if told.waits_for is None:
        return [outlook.nowhere(told.rejections, "could take it when it was last looked at")]
    if told.claim is not None:
        return [_kept(told.claim, job), _needed(job)]
    left_us = told.since_us + told.waits_for.wait_us - job.ended_us
    return [f"It waited for {place(told.waits_for)}, {_WAS[told.waits_for.awaits]} {_for(left_us)}.", _needed(job)]


def details(job: Job) -> None:
    """Print why other places could not take it then, and what would have had to change."""
    told = job.deferral
    if job.state is JobState.EXPIRED and told is not None:
        say("")
        costtable.rejections(told.rejections, "Not possible then:", _listed(told), too_small=told.too_small)


def _listed(told: Deferral) -> list[Candidate]:
    return [told.waits_for] if told.waits_for is not None else []


def _kept(claim: Claim, job: Job) -> str:
    block = f"slots {claim.first} to {claim.first + claim.slots - 1} of {claim.node_id} at {claim.site_id}/{claim.pool_id}"
    return f"It waited for {block}: they were kept for it or the first of those like it, but busy {_for(claim.begins_us - job.ended_us)}."


def _for(left_us: int) -> str:
    return f"for about {duration(left_us)} more" if left_us > 0 else "for longer than had been predicted"


def _needed(job: Job) -> str:
    """What of its own options would have let it wait, or go first."""
    late = job.spec.deadline_ms and job.ended_us - job.accepted_us >= job.spec.deadline_ms * 1_000
    sooner = "" if job.spec.priority is Priority.URGENT else ", a higher --priority"
    limit = "--deadline" if late else "--start-timeout"
    return f"It would have needed a later {limit}{sooner} or another place; 'atoll quote' says when such a job would be done."
