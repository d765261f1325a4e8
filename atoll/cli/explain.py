"""An explanation as text: where a job went and why, what else there was, and how the prediction held.

Decides the wording and the order: first what happened, then the decision in seconds, then what was left out and why.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from atoll.cli.figures import change, count, duration, seconds
from atoll.cli.output import say, table
from atoll.cli.reasons import meaning, remedy
from atoll.model.attempt import Attempt, AttemptState, PhaseTimes
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.placement import Candidate, Deferral, Explanation, Rejection

_LEGEND_CHARS: Final = 110
# What each term of the cost stands for, for the legend under the table.
_TERMS: Final = {
    "queue": "work ahead in the slot",
    "fetch": "weights from the origin or a peer",
    "input": "the job's own files",
    "stage": "weights from disk or host memory into the GPU",
    "init": "start of the pipeline",
    "execution": "the diffusion itself",
    "output": "the result's way back",
    "money": "price, at the policy's seconds per dollar",
    "net": "what the site's owner charges for the result to leave",
    "evict": "what others lose by the models that give way",
    "churn": "handicap of one more copy than the model needs",
    "risk": "the GPU may be lost, or the load fail",
    "deadline": "in time, the delay costs nothing; late, it costs more",
    "overlap": "what is saved because some of it goes on at the same time",
}
_PHASES: Final = (
    ("waiting", "waiting_us"),
    ("fetch", "fetch_us"),
    ("load", "load_us"),
    ("compile", "compile_us"),
    ("run", "run_us"),
    ("upload", "upload_us"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A job at an instant of fleet time, with its place in the queue (0: not queued)."""

    job: Job
    now_us: int
    queue_position: int = 0
    queue_length: int = 0


def show(moment: Moment) -> None:
    """Print the explanation of a job."""
    job = moment.job
    say(f"job/{job.job_id} {_standing(moment)}")
    say(f"  {job.spec.model_id}, {_shape(job)}, seed {job.spec.seed}, {job.spec.priority} priority, tenant {job.spec.tenant}{_extras(job)}")
    if job.failure:
        say(f"  Failure: {job.failure.kind}: {job.failure.message}")
    if job.cancel_reason:
        say(f"  {'Expired' if job.state is JobState.EXPIRED else 'Cancelled'} because: {job.cancel_reason}")
    for attempt in job.attempts:
        say("")
        _attempt(attempt)
    if job.deferral and job.state not in TERMINAL:
        say("")
        _deferral(job.deferral, moment.now_us)


def _standing(moment: Moment) -> str:
    job = moment.job
    if job.state in TERMINAL:
        return f"{job.state}, {duration(job.ended_us - job.accepted_us)} after it was accepted"
    age = f"accepted {duration(max(moment.now_us - job.accepted_us, 0))} ago"
    if moment.queue_position:
        return f"{job.state}, number {moment.queue_position} of {moment.queue_length} in the queue, {age}"
    return f"{job.state}, {age}"


def _shape(job: Job) -> str:
    shape = job.spec.shape
    frames = f", {shape.frames} frames" if shape.frames > 1 else ""
    results = f", {count(shape.batch, 'result')}" if shape.batch > 1 else ""
    return f"{shape.width}x{shape.height}{frames}, {count(shape.steps, 'step')}{results}"


def _extras(job: Job) -> str:
    found = []
    where = job.spec.constraints
    for title, names in (("sites", where.sites), ("regions", where.regions), ("GPUs", where.gpu_types)):
        if names:
            found.append(f"only {title} {', '.join(names)}")
    if where.max_price_usd_micros:
        found.append(f"at most ${where.max_price_usd_micros / 1_000_000:g}")
    if job.spec.deadline_ms:
        found.append(f"deadline {duration(job.spec.deadline_ms * 1_000)} after acceptance")
    if job.spec.start_timeout_ms:
        found.append(f"to begin within {duration(job.spec.start_timeout_ms * 1_000)}")
    if job.spec.simulated:
        found.append("a rehearsal: twins only")
    return "".join(f"; {extra}" for extra in found)


def _attempt(attempt: Attempt) -> None:
    temperature = "cold: the model had to be loaded" if attempt.cold else "warm: the model was there"
    slot = f"{attempt.slot.node_id} slot {attempt.slot.index}"
    say(f"Attempt {attempt.key.ordinal} at {attempt.site_id}, {slot} ({temperature}): {attempt.state}")
    if attempt.failure:
        say(f"  {attempt.failure.kind}: {attempt.failure.message}")
    if attempt.explanation:
        _decision(attempt.explanation)
    _outcome(attempt)


def _decision(explanation: Explanation) -> None:
    others = len(explanation.others)
    choice = f"the cheapest of {others + 1} places shown" if others else "the only place that could take it"
    chosen = explanation.chosen
    waited = f", after {duration(explanation.queued_us)} in the queue" if explanation.queued_us else ""
    deferred = f" and {count(explanation.deferrals, 'deferral')}" if explanation.deferrals else ""
    place = f"{chosen.site_id}/{chosen.pool_id}"
    say(f"  Chosen: {place} at {seconds(chosen.total_us)} s, {choice}{waited}{deferred}. Policy: {explanation.policy}")
    _candidates(explanation.term_names, [chosen, *explanation.others])
    for one in explanation.evicted:
        say(f"  Made room: {one.model_id} was evicted there")
    _rejections(explanation.rejections)


def _candidates(names: Sequence[str], candidates: Sequence[Candidate]) -> None:
    """A table in seconds of expected delay. Terms that are 0 everywhere are left out; the legend names the rest."""
    used = [index for index in range(len(names)) if any(_term(candidate, index) for candidate in candidates)]
    titles = ["", "PLACE", "SECONDS", *[names[index].upper() for index in used], "WEIGHTS"]
    rows = []
    for number, candidate in enumerate(candidates):
        terms = [seconds(_term(candidate, index)) for index in used]
        state = "cold" if candidate.cold else "warm"
        if candidate.wait_us:
            state += f", free in {duration(candidate.wait_us)}"
        rows.append([">" if number == 0 else " ", f"{candidate.site_id}/{candidate.pool_id}", seconds(candidate.total_us), *terms, state])
    table(titles, rows, frozenset(range(2, 3 + len(used))), indent="    ")
    legend = [f"{names[index]}: {_TERMS[names[index]]}" for index in used if names[index] in _TERMS]
    if legend:
        for line in textwrap.wrap(f"({'; '.join(legend)})", _LEGEND_CHARS):
            say(f"    {line}")


def _term(candidate: Candidate, index: int) -> int:
    return candidate.terms_us[index] if index < len(candidate.terms_us) else 0


def _rejections(rejections: Sequence[Rejection]) -> None:
    if not rejections:
        return
    say("  Not possible:")
    ordered = sorted(rejections, key=lambda rejection: (-rejection.pools, rejection.reason.value))
    rows = [[count(one.pools, "pool"), meaning(one.reason), remedy(one.reason)] for one in ordered]
    table(["HOW MANY", "WHY", "WHAT WOULD HAVE TO CHANGE"], rows, indent="    ")


def _outcome(attempt: Attempt) -> None:
    if not attempt.ended_us:
        say(f"  Predicted: {duration(attempt.predicted_us)} from decision to result; it is not over yet")
        return
    took = attempt.ended_us - attempt.leased_us
    if attempt.state is not AttemptState.SUCCEEDED:
        say(f"  Ended {duration(took)} after the decision; {duration(attempt.predicted_us)} had been predicted to the result")
        return
    off = change(attempt.predicted_us, took)
    say(f"  Predicted {duration(attempt.predicted_us)}, took {duration(took)} ({off}): {_phases(attempt.times)}")


def _phases(times: PhaseTimes) -> str:
    found = [f"{name} {duration(getattr(times, field))}" for name, field in _PHASES if getattr(times, field) >= 0]
    return ", ".join(found) or "the site measured no phases"


def _deferral(deferral: Deferral, now_us: int) -> None:
    again = "looked at again when something changes"
    if deferral.until_us > now_us:
        again = f"looked at again in {duration(deferral.until_us - now_us)}, or sooner when something changes"
    best = deferral.waits_for
    if best is None:
        say(f"Waiting: no place can take it now; {again}.")
    else:
        say(
            f"Waiting for {best.site_id}/{best.pool_id}, free in about {duration(best.wait_us)}: that is cheaper than to begin "
            f"anywhere else now; {again}."
        )
    _rejections(deferral.rejections)
