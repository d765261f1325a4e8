"""The arrival window: jobs that come within milliseconds of each other are placed together, so that regret can order them.

Decides whether what just came is placed at once or held for a moment. The first after a quiet moment is placed at once and opens a window;
what comes while it is open is placed when it closes. Only new classes are held: one that waits already is woken when a slot comes free, and
must not be away then. Must not know places or costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.model.ids import JobId

if TYPE_CHECKING:
    from orchestrator.core.context import Context  # which holds the window


@dataclass(slots=True, kw_only=True)
class Arrivals:
    """The window, in microseconds of fleet time, and how many jobs came since it opened."""

    closes_us: int = 0
    held: int = 0


def together(ctx: Context, came: Iterable[JobId]) -> int:
    """How many jobs that came together are placed in this round; those of `came` that it leaves are held until the window closes."""
    window_us = ctx.policy.arrival_window_ms * 1_000
    arrivals, job_ids = ctx.arrivals, tuple(came)
    if ctx.now_us < arrivals.closes_us:
        for job_id in job_ids:
            ctx.queue.hold(job_id, arrivals.closes_us - window_us, arrivals.closes_us)
        arrivals.held += len(job_ids)
        return 0
    count, arrivals.held = arrivals.held + len(job_ids), 0
    if count and window_us:
        arrivals.closes_us = ctx.now_us + window_us
    return count
