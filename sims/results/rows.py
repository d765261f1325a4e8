"""The rows of a result: one per job, and one per site and sampling interval. Their fields, in this order, are the columns of the files.

Decides what a result says about a job and a site; knows neither how a simulation finds it out nor how it is kept. Moments are
microseconds of fleet time since the run began. Durations are actual ones, 0 where there was none; a moment that never came is -1,
because 0 is one that can come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NEVER_US: Final = -1
# The state of a job that the orchestrator did not take: it never had one.
REFUSED: Final = "refused"

# The seconds of a job by what they were spent on, in the order in which they pass. What a report stacks.
TERMS: Final = ("queue", "fetch", "stage", "init", "compile", "adapt", "input", "execution", "output")
# What jobs are told apart by: a film costs a hundred times a picture, and one quantile over both says nothing of either.
KINDS: Final = ("image", "image-4k", "video")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job: what it asked for, what became of it, and where its seconds went."""

    number: int
    model_id: str
    tenant: str
    origin: str
    priority: str
    kind: str  # one of KINDS
    gang_size: int
    arrival_us: int
    placed_us: int  # first bound to a site
    started_us: int  # first run
    ended_us: int
    state: str  # a JobState, or REFUSED; one that has not ended when the run is over has that in which it was
    site_id: str  # where it ran last; empty: nowhere
    pool_id: str
    gpu_type: str
    attempts: int
    moves: int
    cold: bool  # weights had to be loaded for it
    fetched: bool  # and came over the network
    adapter_misses: int
    predicted_us: int
    quoted_p90_us: int
    queue_us: int
    fetch_us: int
    stage_us: int
    init_us: int
    compile_us: int
    adapt_us: int
    input_us: int
    execution_us: int
    output_us: int
    deadline_ms: int  # from its arrival; 0: none
    deadline_missed: bool
    ideal_execution_us: int  # on the fastest type of GPU of the fleet that can hold it
    price_usd_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One site at the end of one sampling interval.

    Counts, bytes and money are those of the interval; the rest is as it stands at `at_us`.
    """

    at_us: int
    site_id: str
    slots: int
    slots_busy: int
    slots_loading: int
    queued_work_us: int  # committed to it and not begun
    replicas_warm: int
    cold_starts: int
    evictions: int
    fetched_bytes: int
    egress_bytes: int
    state: str  # its connectivity, or its lifecycle where that is not active
    usd_micros: int
