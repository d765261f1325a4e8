"""What the demo has to show at its end, as tables: the drain, the real jobs, the rehearsals.

Decides the wording. Seconds are of real time, as the fleet's clock runs at scale 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from atoll.cli.figures import NONE, change, count, seconds
from atoll.cli.output import say, table
from atoll.cli.progress import temperature
from atoll.model.attempt import Attempt
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.views import DrainPlan

_ACTIONS: Final = {"wait": "may end there", "move": "moves at once", "stop_at_deadline": "moves at the deadline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """A drain as it began: which jobs were at the site, in which phase, and what was announced for each."""

    site: str
    reason: str
    deadline_s: float
    jobs: Mapping[str, str]
    plan: DrainPlan


def show_drain(drained: Drained, jobs: Mapping[str, Job]) -> None:
    """Each job that was there, what was announced for it, and where it ended."""
    actions = {str(move.job_id): _ACTIONS.get(move.action, move.action) for move in drained.plan.moves}
    rows = []
    stayed = 0
    for job_id, phase in drained.jobs.items():
        job = jobs[job_id]
        last = job.attempts[-1]
        stayed += last.site_id == drained.site
        where = "there, before the deadline" if last.site_id == drained.site else f"at {last.site_id}"
        tries = count(len(job.attempts), "attempt")
        rows.append([job_id, job.spec.model_id, phase, actions.get(job_id, NONE), f"{job.state} {where}", tries])
    say(f"Drain of {drained.site} ({drained.reason}; deadline {drained.deadline_s:g} s): {count(len(rows), 'job')} there when it began")
    table(["JOB", "MODEL", "WAS", "ANNOUNCED", "ENDED", "AFTER"], rows, indent="  ")
    say(f"  {stayed} ended there, {len(rows) - stayed} elsewhere; none was lost.")


def show_real(jobs: Iterable[Job], files: Mapping[str, str]) -> None:
    """One line for each job that was really executed."""
    rows = []
    for job in jobs:
        last = job.attempts[-1]
        rows.append([
            files.get(job.job_id, NONE), job.spec.model_id, str(job.spec.shape), last.site_id, temperature(last),
            seconds(last.predicted_us), seconds(_took_us(last)), change(last.predicted_us, _took_us(last)), str(job.spec.seed),
        ])  # fmt: skip
    made = count(len(rows), "picture or film", "pictures and films")
    say(f"Real jobs: {made} by diffusers on this machine (seconds from decision to result)")
    table(["FILE", "MODEL", "SHAPE", "SITE", "WEIGHTS", "PREDICTED", "ACTUAL", "OFF", "SEED"], rows, frozenset({5, 6, 7, 8}), indent="  ")


def show_rehearsals(jobs: Iterable[Job], shown: int) -> None:
    """Simulated jobs by model, site and warmth, the busiest combinations first."""
    groups: dict[tuple[str, str, str], list[Attempt]] = {}
    total = 0
    for job in jobs:
        total += 1
        if job.state is JobState.SUCCEEDED:
            last = job.attempts[-1]
            groups.setdefault((job.spec.model_id, last.site_id, temperature(last)), []).append(last)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [[model, site, weights, str(len(group)), *_medians(group)] for (model, site, weights), group in ordered]
    sites = len({site for _, site, _ in groups})
    say(f"Simulated jobs: {total} at {count(sites, 'twin')} (medians in seconds from decision to result)")
    table(["MODEL", "SITE (TWIN)", "WEIGHTS", "JOBS", "PREDICTED", "ACTUAL", "OFF"], rows[:shown], frozenset({3, 4, 5, 6}), indent="  ")
    if len(rows) > shown:
        say(f"  and {count(len(rows) - shown, 'more line')} of {count(sum(len(group) for _, group in ordered[shown:]), 'job')}")


def _medians(group: Sequence[Attempt]) -> tuple[str, str, str]:
    predicted = int(median(one.predicted_us for one in group))
    actual = int(median(_took_us(one) for one in group))
    return seconds(predicted), seconds(actual), change(predicted, actual)


def _took_us(attempt: Attempt) -> int:
    return attempt.ended_us - attempt.leased_us


def every_job(jobs: Iterable[Job]) -> str:
    """All jobs as tab-separated text, one a line."""
    lines = ["job\tmodel\ttenant\tpriority\tstate\tsite\tweights\tattempts\tpredicted_s\tactual_s\tsimulated"]
    for job in jobs:
        last = job.attempts[-1] if job.attempts else None
        ended = last is not None and job.state in TERMINAL
        fields = [
            job.job_id, job.spec.model_id, job.spec.tenant, job.spec.priority.value, job.state.value,
            last.site_id if last else NONE, NONE if last is None else temperature(last), str(len(job.attempts)),
            f"{last.predicted_us / 1e6:.3f}" if last else NONE, f"{_took_us(last) / 1e6:.3f}" if ended and last else NONE,
            "yes" if job.spec.simulated else "no",
        ]  # fmt: skip
        lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def worth_explaining(jobs: Mapping[str, Job], drained: Drained | None) -> str:
    """The job whose explanation tells most: one that the drain moved, else the real one with the longest way."""
    moved = [
        job_id for job_id in (drained.jobs if drained else ())
        if len(jobs[job_id].attempts) > 1 and jobs[job_id].state is JobState.SUCCEEDED
    ]  # fmt: skip
    if moved:
        # Fewest attempts: its story fits a screen.
        return min(moved, key=lambda job_id: (len(jobs[job_id].attempts), job_id))
    return min(jobs, key=lambda job_id: (jobs[job_id].spec.simulated, -len(jobs[job_id].attempts), job_id))
