"""A trace -> one with more models, or a higher load, without drawing anything anew: the order within a session is what makes caches hit.

Decides how copies are told apart and how they are shifted against each other; knows no files.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from typing import Final

from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId, TenantId, parse_name
from sims.traces.job import ARRIVAL_US_MAX, TraceJob
from sims.traces.variants import MARK

# A copy begins a day later in the trace than the one before, so that its days and nights fall on those of the others,
_DAY_US: Final = 86_400 * 1_000_000
# and so much more: bursts are a minute or two, and those of two copies are two bursts.
_STAGGER_US: Final = 7 * 60 * 1_000_000
# Each reads the file by itself; systems let a program open a thousand.
COPIES_MAX: Final = 500
SPEED_MAX: Final = 1_000_000

Jobs = Callable[[], Iterator[TraceJob]]


def copied(jobs: Jobs, copies: int) -> Jobs:
    """So many copies at once, with models, adapters, tenants and sessions of their own. `jobs` is read twice for each.

    Each copy is turned round: it begins within the trace, and what was before comes at the end. So the load is the same at all times.
    """
    if not 1 <= copies <= COPIES_MAX:
        raise FieldError("copies", copies, f"1 to {COPIES_MAX} copies")
    if copies == 1:
        return jobs

    def merged() -> Iterator[TraceJob]:
        last_us = max((job.arrival_us for job in jobs()), default=0)
        # Whole days, where it is more than one: what comes round must not come at another time of day.
        days = -(-(last_us + 1) // _DAY_US)
        span_us = days * _DAY_US if days > 1 else last_us + 1
        shifts = [(number % days * _DAY_US + number // days * _STAGGER_US) % span_us for number in range(copies)]
        yield from heapq.merge(
            *(_turned(jobs, number, shift_us, span_us) for number, shift_us in enumerate(shifts)), key=attrgetter("arrival_us")
        )

    return merged


def faster(jobs: Jobs, speed_milli: int) -> Jobs:
    """The same jobs in less time: arrivals divided by `speed_milli` thousandths. Deadlines and durations stay what they are."""
    if not 1 <= speed_milli <= SPEED_MAX * 1_000:
        raise FieldError("speed", f"{speed_milli / 1_000:g}", f"a factor from 0.001 to {SPEED_MAX}")

    def scaled() -> Iterator[TraceJob]:
        for job in jobs():
            arrival_us = job.arrival_us * 1_000 // speed_milli
            if arrival_us > ARRIVAL_US_MAX:
                raise FieldError("speed", f"{speed_milli / 1_000:g}", f"a factor with which all jobs come within {ARRIVAL_US_MAX} us")
            yield replace(job, arrival_us=arrival_us)

    return scaled


def first(jobs: Jobs, count: int) -> Jobs:
    """So many at most."""
    return lambda: islice(jobs(), count)


def _turned(jobs: Jobs, number: int, shift_us: int, span_us: int) -> Iterator[TraceJob]:
    """Copy `number`, from `shift_us` on and round to there."""
    for job in jobs():
        if job.arrival_us >= shift_us:
            yield _renamed(job, number, job.arrival_us - shift_us)
    for job in jobs():
        if job.arrival_us >= shift_us:
            return
        yield _renamed(job, number, job.arrival_us - shift_us + span_us)


def _renamed(job: TraceJob, number: int, arrival_us: int) -> TraceJob:
    """The first copy keeps its names."""
    if not number:
        return replace(job, arrival_us=arrival_us)
    end = f".c{number}"
    mark = "" if MARK in job.model_id else MARK
    return replace(
        job,
        arrival_us=arrival_us,
        model_id=ModelId(_name("model_id", f"{job.model_id}{mark or '.'}{end[1:]}")),
        tenant=TenantId(_name("tenant", f"{job.tenant}{end}")),
        adapters=tuple(replace(use, adapter_id=AdapterId(_name("adapters", f"{use.adapter_id}{end}"))) for use in job.adapters),
        session=f"{job.session}{end}" if job.session else "",
    )


def _name(field: str, text: str) -> str:
    return parse_name(field, text)
