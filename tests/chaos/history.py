"""What clients asked and what they saw, and whether that can be: no accepted job lost, none doubled, no end taken back.

Decides from the outside alone: nothing of an orchestrator's state is looked into, so a bug that all of its parts agree on is found too.
Must not know which faults there were.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from atoll.model.attempt import ENDED, AttemptState
from atoll.model.job import TERMINAL, Job, JobState

# Violations of one rule that are told; there may be as many as jobs.
_TOLD_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call of Submit: its idempotency key, when it began and ended in seconds, and the job it was answered. "" means that nobody knows:
    the call was refused, or its answer lost."""

    key: str
    began_s: float
    ended_s: float
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job as a watcher was told: its state, and the digests of its result ("" without)."""

    job_id: str
    state: JobState
    result: str


@dataclass(slots=True)
class History:
    """Everything that was asked and seen, in the order in which it was, and all jobs at the end."""

    asked: list[Asked] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


def seen_of(job: Job) -> Seen:
    """A job as it is told."""
    digests = ",".join(artifact.digest for artifact in job.result.artifacts) if job.result is not None else ""
    return Seen(job_id=job.job_id, state=job.state, result=f"{job.result.key} {digests}" if job.result is not None else "")


def violations(history: History) -> list[str]:
    """What cannot be, rule by rule; empty: every promise was kept."""
    rules = {
        "a key that was answered with two jobs": _keys_with_two_jobs(history.asked),
        "an accepted job that is not there": _lost(history),
        "an accepted job that has not ended": (job.job_id for job in history.jobs if job.state not in TERMINAL),
        "two jobs of one key": _doubled(history.jobs),
        "a job that nobody asked for": _unasked(history),
        "an end that was taken back": _taken_back(history),
        "a result beside another": _results(history.jobs),
        "attempts that are not numbered from 1, or still live at the end": _attempts(history.jobs),
    }
    found = []
    for rule, broken in rules.items():
        named = sorted(set(broken))
        if named:
            more = f" and {len(named) - _TOLD_MAX} more" if len(named) > _TOLD_MAX else ""
            found.append(f"{rule}: {', '.join(named[:_TOLD_MAX])}{more}")
    return found


def _keys_with_two_jobs(asked: Iterable[Asked]) -> Iterator[str]:
    answered = defaultdict[str, set[str]](set)
    for one in asked:
        if one.job_id:
            answered[one.key].add(one.job_id)
    return (key for key, jobs in answered.items() if len(jobs) > 1)


def _lost(history: History) -> Iterator[str]:
    there = {str(job.job_id) for job in history.jobs}
    return (one.job_id for one in history.asked if one.job_id and one.job_id not in there)


def _doubled(jobs: Iterable[Job]) -> Iterator[str]:
    counts = Counter((job.spec.tenant, job.idempotency_key) for job in jobs)
    return (f"{tenant}/{key}" for (tenant, key), count in counts.items() if count > 1)


def _unasked(history: History) -> Iterator[str]:
    keys = {one.key for one in history.asked}
    return (job.job_id for job in history.jobs if job.idempotency_key not in keys)


def _taken_back(history: History) -> Iterator[str]:
    ended: dict[str, Seen] = {}
    for one in (*history.seen, *map(seen_of, history.jobs)):
        before = ended.get(one.job_id)
        if before is not None and before != one:
            yield one.job_id
        if one.state in TERMINAL:
            ended.setdefault(one.job_id, one)


def _results(jobs: Iterable[Job]) -> Iterator[str]:
    for job in jobs:
        won = [attempt.key for attempt in job.attempts if attempt.state is AttemptState.SUCCEEDED]
        told = [job.result.key] if job.result is not None else []
        if won != told or bool(told) != (job.state is JobState.SUCCEEDED):
            yield job.job_id


def _attempts(jobs: Iterable[Job]) -> Iterator[str]:
    for job in jobs:
        numbered = [attempt.key.ordinal for attempt in job.attempts] == list(range(1, len(job.attempts) + 1))
        live = [attempt for attempt in job.attempts if attempt.state not in ENDED and attempt.state is not AttemptState.STOPPING]
        if not numbered or (live and job.state in TERMINAL):
            yield job.job_id
