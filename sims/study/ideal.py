"""What the same GPUs would do, each at its own speed, if nothing ever had to be loaded or sent and no job blocked another's place.

Decides a schedule for all jobs of a trace: in order of arrival, each goes to the slot of the whole fleet that suits it best by one of two
rules, and every slot is looked at. Must not know sites, models or policies.

**A heuristic for the bound, not the bound.** For one job, given those before it, nothing ends sooner than the earliest finish. For all of
them a better schedule may exist: one that lets a short job overtake a long one, keeps a fast GPU free for a job that is still to come, or
gives up on jobs that are late anyway. What is reported as a share of the ideal is therefore, if anything, too high, and a policy can in
principle exceed it. Two rules are there because each is far from the best where the other is near it: the earliest finish wastes fast GPUs
on jobs that a slow one would serve in time, and thrift keeps them for those that have no other. The better of the two is what a policy is
measured against. It is exact where slots are all alike and jobs of one length: no order then has a smaller mean or maximum latency than
that of arrival.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from atoll.model.errors import FieldError


class Rule(StrEnum):
    """Which slot suits a job best."""

    EARLIEST = "earliest"  # where it ends first
    THRIFTY = "thrifty"  # where it takes longest and still is in time; where that is nowhere, as above


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealJob:
    """A job as the ideal sees it. A type of GPU that is not in `execution_us` cannot run it; `due_us` counts from arrival, 0: never due."""

    arrival_us: int
    execution_us: Mapping[str, int]
    gang_size: int = 1
    due_us: int = 0

    @property
    def gpu_us(self) -> tuple[tuple[str, int], ...]:
        """What it takes of GPUs, by type: jobs of which this is equal are one class of work."""
        return tuple((name, took_us * self.gang_size) for name, took_us in self.execution_us.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealRun:
    """Where and when a job ran."""

    gpu_type: str
    started_us: int
    ended_us: int


def ideal(jobs: Iterable[IdealJob], slots: Mapping[str, int], rule: Rule = Rule.EARLIEST) -> Iterator[IdealRun | None]:
    """A run for each job, in their order; None for one that no type of GPU with enough slots can run.

    `slots` counts those of each type of GPU. Jobs come in order of arrival and are never held: memory is that of the slots.
    """
    for gpu_type, count in slots.items():
        if count < 0:
            raise FieldError(f"slots[{gpu_type}]", count, "zero or more")
    free = {gpu_type: [0] * count for gpu_type, count in slots.items() if count}
    last_us = 0
    for number, job in enumerate(jobs):
        if job.arrival_us < last_us:
            raise FieldError(f"jobs[{number}].arrival_us", job.arrival_us, f"at least {last_us}, when the job before it arrives")
        last_us = job.arrival_us
        chosen = _best(job, free, rule)
        if chosen is not None:
            # Each of the soonest free slots in turn; none that was just taken comes up again, for it ends after all of them.
            for _ in range(job.gang_size):
                heapq.heapreplace(free[chosen.gpu_type], chosen.ended_us)
        yield chosen


def _best(job: IdealJob, free: Mapping[str, list[int]], rule: Rule) -> IdealRun | None:
    best: tuple[int, int, str] | None = None
    thrifty: tuple[int, int, str] | None = None
    for gpu_type, execution_us in job.execution_us.items():
        slots = free.get(gpu_type, [])
        if len(slots) < job.gang_size:
            continue
        ready_us = slots[0] if job.gang_size == 1 else heapq.nsmallest(job.gang_size, slots)[-1]
        ended_us = max(job.arrival_us, ready_us) + execution_us
        # Of two that end at once, the one that is held for less time; the name only so that the answer never depends on an order.
        best = min(best or (ended_us, execution_us, gpu_type), (ended_us, execution_us, gpu_type))
        if ended_us <= job.arrival_us + job.due_us:
            thrifty = min(thrifty or (-execution_us, ended_us, gpu_type), (-execution_us, ended_us, gpu_type))
    if best is None:
        return None
    if rule is Rule.THRIFTY and thrifty is not None:
        ended_us, execution_us, gpu_type = thrifty[1], -thrifty[0], thrifty[2]
    else:
        ended_us, execution_us, gpu_type = best
    return IdealRun(gpu_type=gpu_type, started_us=ended_us - execution_us, ended_us=ended_us)
