"""Loads: how much work a trace brings, and the same trace in less or more time, so that it brings as much as is wanted.

Decides how a load is made: arrivals are drawn together or apart; the order of jobs, what they ask for and how long they may take stay. Load
is the time that all jobs take the fleet at the least, by what physics says of its GPUs, over the time in which they arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from atoll.model.errors import FieldError
from sims.study.carrying import Times, busy_us
from sims.study.ideal import IdealJob
from sims.study.pooling import IN_TIME_MILLI
from sims.study.reckoning import Reckoner
from sims.traces.job import ARRIVAL_US_MAX, TraceJob

# From a thousandth of the fleet to ten times what it can do.
LOAD_MILLI: Final = (1, 10_000)
AS_TRACED: Final = 0
# A trace shows a load only if it lasts longer than its jobs may: a queue that grows must have the time to make them late.
_SPANS_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trace on a fleet. `busy_us`: how long the fleet has to do at least; `work_us`: microseconds of GPUs, each job at its fastest.

    `due_us`: the longest that a job in time may take; `most_due_us`: what 95 of 100 jobs may take at most.
    """

    jobs: int
    last_us: int
    busy_us: int
    work_us: int
    due_us: int
    most_due_us: int
    slots: int

    @property
    def load_milli(self) -> int:
        """As the trace has it; 0 where all jobs come at once."""
        return self.busy_us * 1_000 // self.last_us if self.last_us else 0

    def fastest_milli(self, load_milli: int) -> int:
        """What arrives at this load in GPU-seconds, each job on the fastest type that can run it, over all of the fleet's GPUs alike."""
        span_us = self.span_us(load_milli)
        return self.work_us * 1_000 // (span_us * self.slots) if span_us else 0

    def copies_for(self, load_milli: int) -> int:
        """How many times the trace would have to come at once to last long enough at this load; 1: it does."""
        return -(-_SPANS_MIN * self.most_due_us // max(self.span_us(load_milli), 1)) or 1

    def span_us(self, load_milli: int) -> int:
        """When the last job arrives at this load. FieldError where no such trace can be."""
        if load_milli == AS_TRACED:
            return self.last_us
        low, high = LOAD_MILLI
        if not low <= load_milli <= high:
            raise FieldError("load", f"{load_milli / 1_000:g}", f"a share of the fleet from {low / 1_000:g} to {high / 1_000:g}")
        if not self.last_us or not self.busy_us:
            raise FieldError("load", f"{load_milli / 1_000:g}", "a trace whose jobs arrive one after the other and that the fleet can run")
        span_us = self.busy_us * 1_000 // load_milli
        if not 1 <= span_us <= ARRIVAL_US_MAX:
            raise FieldError("load", f"{load_milli / 1_000:g}", f"one at which the trace lasts at most {ARRIVAL_US_MAX} us")
        return span_us


def measured(jobs: Iterable[TraceJob], reckoner: Reckoner) -> Measured:
    """What a trace brings to a fleet; the jobs are read once."""
    count = last_us = work_us = 0
    dues, of_class = Counter[int](), Counter[int]()
    classes: dict[int, IdealJob] = {}
    for job in jobs:
        found = reckoner.job(job)
        count, last_us = count + 1, job.arrival_us
        work_us += min(found.execution_us.values(), default=0) * found.gang_size
        # Jobs of one class have one table of times, which is quicker told than compared.
        of_class[id(found.execution_us)] += 1
        classes[id(found.execution_us)] = found
        dues[found.due_us] += 1
    work = Counter[Times]()
    for key, job_of_class in classes.items():
        work[job_of_class.gpu_us] += of_class[key]
    left = count * IN_TIME_MILLI // 1_000
    most_us = 0
    for due_us, number in sorted(dues.items()):
        most_us = due_us
        left -= number
        if left <= 0:
            break
    return Measured(
        jobs=count,
        last_us=last_us,
        busy_us=busy_us(work, reckoner.slots),
        work_us=work_us,
        due_us=max(dues, default=0),
        most_due_us=most_us,
        slots=sum(reckoner.slots.values()),
    )


def at_load(jobs: Iterable[TraceJob], trace: Measured, load_milli: int) -> Iterator[TraceJob]:
    """The jobs at a load; `AS_TRACED`: as they are."""
    span_us = trace.span_us(load_milli)
    if span_us == trace.last_us:
        yield from jobs
        return
    for job in jobs:
        yield replace(job, arrival_us=job.arrival_us * span_us // trace.last_us)
