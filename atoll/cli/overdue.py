"""What an attempt took against what was quoted of it: whether it was later than nine of ten would be and in which phase, and when a job
should have begun, or been done, that expired while it was at a site.

Decides the words. Quotes are those of the decision, kept with the attempt; of an older one that kept none less is said.
"""

from __future__ import annotations

from atoll.cli.costtable import Phase, phases_of, term
from atoll.cli.figures import change, duration
from atoll.model.attempt import Attempt
from atoll.model.job import Job
from atoll.model.placement import Explanation


def took(last: Attempt) -> list[str]:
    """Sentences of an attempt that has a result."""
    took_us, told = last.ended_us - last.leased_us, last.explanation
    it = f"It took {duration(took_us)}"
    predicted = f"{duration(last.predicted_us)} had been predicted ({change(last.predicted_us, took_us)})"
    if told is None or not told.p90_us:
        return [f"{it}; {predicted}."]
    if took_us <= told.p90_us:
        return [f"{it}; {predicted}, and at most {duration(told.p90_us)} for nine of ten such jobs."]
    late = f"{it}, later than nine of ten such jobs: for those at most {duration(told.p90_us)} had been quoted, and {predicted}."
    return [late, *_slowest(last, told)]


def _slowest(last: Attempt, told: Explanation) -> list[str]:
    """The phase that took the most more than predicted, and how much of the whole that is."""
    over_us = last.ended_us - last.leased_us - last.predicted_us
    worst = max(phases_of(last, told), key=_over_us)
    if over_us <= 0 or _over_us(worst) <= 0:
        return []
    much = "All" if _over_us(worst) >= over_us else "Most" if _over_us(worst) * 2 > over_us else "The largest part"
    return [f"{much} of the difference is {worst.title}: {duration(worst.actual_us)} instead of {duration(worst.predicted_us)}."]


def _over_us(phase: Phase) -> int:
    return phase.passed_us - phase.predicted_us


def expired(job: Job, last: Attempt) -> list[str]:
    """Sentences of a job that expired while it was at a site: when it should have begun, or been done, and which limit would have done.
    `last`: its attempt there."""
    told, spec = last.explanation, job.spec
    if told is None or not told.p90_us or not (spec.deadline_ms or spec.start_timeout_ms):
        return []
    lasted_us = job.ended_us - job.accepted_us
    late = not spec.start_timeout_ms or bool(last.running_us) or 0 < spec.deadline_ms * 1_000 <= lasted_us
    # What is uncertain is taken to pass before it executes, as it mostly does.
    executing_us = 0 if late else term(told.term_names, told.chosen, "execution") + term(told.term_names, told.chosen, "output")
    before_us = told.decided_us - job.accepted_us
    half_us, most_us = (before_us + max(us - executing_us, 0) for us in (told.p50_us or last.predicted_us, told.p90_us))
    limit, do, done = ("--deadline", "are done", "be done") if late else ("--start-timeout", "begin", "begin")
    expected = f"It had been expected to {done} {duration(half_us)} after it was accepted"
    if most_us <= lasted_us:
        return [f"{expected}, and is later than nine of ten such jobs, which {do} within {duration(most_us)}."]
    return [
        f"{expected}, and nine of ten such jobs {do} within {duration(most_us)}: a {limit} of so much would have been enough for those."
    ]
