"""What becomes of an attempt whose job ended first: it was told to stop, and its site says how it ended when the job has left memory.

Decides which ends count: the store and the readers set the attempt's end beside the job that they hold. The job stays as it ended. Must not
know jobs in memory, nor how ends arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from atoll.model.attempt import AttemptState, Failure, PhaseTimes
from atoll.model.ids import AttemptKey, SiteId
from atoll.model.job import TERMINAL, Job

# A result that comes when nobody wants it any more is refused: to its job the attempt was stopped.
_AS_TOLD: Final = {AttemptState.SUCCEEDED: AttemptState.STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAttempt:
    """The attempt of a job that has ended is over at this site too: durable, then visible. One that is not stopping stays as it is."""

    key: AttemptKey
    site_id: SiteId
    state: AttemptState
    ended_us: int
    failure: Failure | None = None
    times: PhaseTimes = PhaseTimes()


def is_stopping(job: Job) -> bool:
    """Whether the job ended and its last attempt did not, as far as is known: only the last can be live."""
    return job.state in TERMINAL and bool(job.attempts) and job.attempts[-1].state is AttemptState.STOPPING


def applied(job: Job, end: EndAttempt) -> Job | None:
    """The job with the end of its attempt; None if it is not this attempt's to end: it lives, ended already, or was elsewhere."""
    attempt = next((one for one in job.attempts if one.key == end.key), None)
    if job.state not in TERMINAL or attempt is None or attempt.state is not AttemptState.STOPPING or attempt.site_id != end.site_id:
        return None
    state = _AS_TOLD.get(end.state, end.state)
    over = replace(attempt, state=state, ended_us=end.ended_us, failure=end.failure or attempt.failure, times=end.times)
    return replace(job, attempts=tuple(over if one.key == end.key else one for one in job.attempts))
