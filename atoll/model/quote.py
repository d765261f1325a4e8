"""What the fleet offers a job as of an instant: where it would go, when, at what price, or why nowhere.

Decides the form, and what counts as in time.
A quote reserves nothing and promises nothing: the next event may change it. Must not know how costs are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from atoll.model.ids import GpuTypeId, PoolId
from atoll.model.placement import Candidate, Evicted, Reason, Rejection, TooSmall


class Verdict(StrEnum):
    """What would become of the job."""

    NOW = "now"  # it is bound at once
    WAITS = "waits"  # for a place that is busy now, because that is cheaper or nothing else is possible
    IMPOSSIBLE = "impossible"  # no place can take it just now: one is cordoned, silent, or failed a moment ago
    NEVER = "never"  # no place of this fleet can take it as it is, however long it waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When a job should begin to execute and be done, in fleet time: half and nine tenths of such jobs are that early.

    Begin is 0 once it has begun.
    """

    begin_p50_us: int
    begin_p90_us: int
    end_p50_us: int
    end_p90_us: int


class InTime(StrEnum):
    """Whether a job keeps a limit of time, by what becomes of such jobs."""

    YES = "yes"  # nine of ten do
    LIKELY = "likely"  # half of them do, nine of ten do not; or it is overdue, and nothing better is known
    NO = "no"  # not even half of them do, or no place can take it


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """What a job was submitted with, or is asked about with, at `asked_us`; 0: no such limit."""

    now_us: int
    asked_us: int
    deadline_ms: int
    start_timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospects:
    """Whether a job meets what it was submitted with; None: it has no such limit."""

    meets_deadline: InTime | None
    meets_start_timeout: InTime | None


def prospects(eta: Eta | None, limits: TimeLimits) -> Prospects:
    """Of a job with these limits. `eta` None: no place can take it."""
    end = (eta.end_p50_us, eta.end_p90_us) if eta is not None else None
    begin = (eta.begin_p50_us, eta.begin_p90_us) if eta is not None else None
    begun = eta is not None and not eta.begin_p50_us
    meets_start_timeout = InTime.YES if begun and limits.start_timeout_ms else _in_time(begin, limits, limits.start_timeout_ms)
    return Prospects(meets_deadline=_in_time(end, limits, limits.deadline_ms), meets_start_timeout=meets_start_timeout)


def _in_time(quantiles: tuple[int, int] | None, limits: TimeLimits, limit_ms: int) -> InTime | None:
    if not limit_ms:
        return None
    due_us = limits.asked_us + limit_ms * 1_000
    if quantiles is None or max(quantiles[0], limits.now_us) > due_us:
        return InTime.NO
    # What begins at once begins now: only what should have been before is overdue.
    return InTime.YES if limits.now_us <= quantiles[1] <= due_us else InTime.LIKELY


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The offer. `chosen` and `eta` are None where no place can take it, and the figures of the chosen place are 0."""

    at_us: int
    verdict: Verdict
    policy: str
    term_names: tuple[str, ...]
    chosen: Candidate | None
    others: Sequence[Candidate]  # the next best
    rejections: tuple[Rejection, ...]
    evicted: tuple[Evicted, ...] = ()  # what would make room at the chosen place
    weights_bytes: int  # of the model: what a cold place has to load
    predicted_us: int = 0  # from the decision to the result at the chosen place, its wait included
    ahead: int  # jobs that are likely to go before it
    queue_length: int
    turn_us: int = 0  # what those ahead that want the same place add to the wait
    eta: Eta | None = None
    gpu_usd_micros: int = 0
    egress_usd_micros: int = 0
    refusal: str = ""  # why a submit would be refused just now; "": it would not
    retry_after_ms: int = 0
    rule: str = ""  # how the policy chooses; "": by cost
    too_small: TooSmall | None = None  # None: no GPU is
    short_us: int = 0  # with so much more time at least one place would not evict in vain; 0: none would
    price_usd_micros: int = 0  # a limit with which the cheapest place that costs too much would do; 0: none costs too much


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceView:
    """What one pool offers a job: a candidate by a warm replica and one by loading. `reason`: why it cannot be bound just now."""

    pool_id: PoolId
    gpu_type: GpuTypeId
    candidates: tuple[Candidate, ...]
    reason: Reason | None = None
