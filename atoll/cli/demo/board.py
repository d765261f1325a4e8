"""What is known of the demo's jobs while they run, kept up to date by the orchestrator's stream.

Decides how jobs are counted by site and phase. Must not know how that is shown.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from atoll.model.attempt import ENDED, AttemptState
from atoll.model.errors import AtollError
from atoll.model.job import TERMINAL, Job, JobState

if TYPE_CHECKING:
    from atoll.client import Client

# A stream ends within milliseconds of its channel; nobody waits for one that does not.
_END_S: Final = 2.0
# Columns of the view, in the order in which a job passes them. Compiling and stopping are rare and short: they count as running.
PHASES: Final = ("placed", "fetching", "loading", "running", "uploading")
_PHASE_OF: Final = {
    AttemptState.LEASED: "placed",
    AttemptState.FETCHING: "fetching",
    AttemptState.LOADING: "loading",
    AttemptState.COMPILING: "running",
    AttemptState.RUNNING: "running",
    AttemptState.UPLOADING: "uploading",
    AttemptState.STOPPING: "running",
}


@dataclass(slots=True, kw_only=True)
class SiteCount:
    """One site's jobs: those that are there now by phase, and those that ended there."""

    now: Counter[str] = field(default_factory=Counter)
    succeeded: int = 0
    failed: int = 0

    @property
    def live(self) -> int:
        """How many are there now."""
        return self.now.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """All jobs, counted."""

    queued: int
    ended: int
    total: int
    sites: Mapping[str, SiteCount]

    def now(self) -> Counter[str]:
        """Jobs by phase, at all sites together."""
        return sum((count.now for count in self.sites.values()), Counter[str]())


class Board:
    """The last known state of every job. Fed from a thread, read from any."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._lock = threading.Lock()
        self._jobs = {str(job.job_id): job for job in jobs}
        self._error: Exception | None = None

    def put(self, job: Job) -> None:
        """A job has changed."""
        with self._lock:
            self._jobs[job.job_id] = job

    def jobs(self) -> dict[str, Job]:
        """All of them, by id. Raises what ended the stream, if it broke."""
        with self._lock:
            if self._error is not None:
                raise self._error
            return dict(self._jobs)

    @contextmanager
    def following(self, client: Client, job_ids: list[str]) -> Iterator[None]:
        """Keep up with these jobs within the block. The client is for this alone, and is closed at its end."""
        over = threading.Event()

        def listen() -> None:
            try:
                for change in client.watch(job_ids, until_terminal=True):
                    self.put(change.job)
            except (AtollError, ValueError) as error:  # gRPC says ValueError when a channel is closed while it is used
                if not over.is_set():
                    with self._lock:
                        self._error = error

        thread = threading.Thread(target=listen, name="board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            client.close()
            thread.join(_END_S)


def tally(jobs: Iterable[Job], sites: Iterable[str]) -> Tally:
    """Count jobs; `sites` have a line even without any."""
    counts = {site: SiteCount() for site in sites}
    queued = ended = total = 0
    for job in jobs:
        total += 1
        ended += job.state in TERMINAL
        last = job.attempts[-1] if job.attempts else None
        if job.state is JobState.QUEUED:
            queued += 1
        elif last is not None:
            at = counts.setdefault(last.site_id, SiteCount())
            if job.state is JobState.SUCCEEDED:
                at.succeeded += 1
            elif job.state in TERMINAL:
                at.failed += 1
            elif last.state not in ENDED:
                at.now[_PHASE_OF[last.state]] += 1
    return Tally(queued=queued, ended=ended, total=total, sites=counts)


def live_at(jobs: Iterable[Job], site: str) -> list[Job]:
    """Jobs that have been given to this site and have not ended there."""
    return [
        job for job in jobs if job.state not in TERMINAL and any(one.site_id == site and one.state not in ENDED for one in job.attempts)
    ]
