"""The highest loads at which enough jobs are in time: of the ideal in a world, and of a policy in the same.

Decides how a policy is judged: by the same jobs as the ideal, those that arrive after the warm-up and that some GPU would have in time. A
run is ended as soon as too many are late, so the shares told of loads that are not met are lower than a whole run's. Must not know where
the shares found are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from atoll.model.job import JobState
from atoll.physics.hidden import HiddenWorld
from orchestrator.core.placement.policy import Policy
from sims.play.player import Player
from sims.results.parquet import amend, read_result
from sims.results.rows import JobRow, SiteRow
from sims.study.ideal import Rule
from sims.study.loads import at_load
from sims.study.pooling import IN_TIME_MILLI, PooledLoad, highest_load, ideal_share, is_servable
from sims.study.reckoning import Reckoner
from sims.study.running import Run, Study, Told
from sims.traces.job import TraceJob

# The ideal is a heuristic, and a policy may exceed it; by a quarter is not seen.
_BEYOND_MILLI: Final = 1_250
# What a policy cannot do at a tenth of the ideal's load it is not asked at less: a trace lasts longer the lower its load is.
_LEAST_MILLI: Final = 100
_TOLERANCE_MILLI: Final = 10
Shares = dict[int, float]


def ideal_load(study: Study, seed: int) -> PooledLoad:
    """Of the ideal in the world of this seed, by the better of its two rules."""
    reckoner = reckoner_of(study, seed)

    def share(load_milli: int) -> float:
        from_us = study.warm_up.of(study.trace.span_us(load_milli))
        return max(
            ideal_share(map(reckoner.job, at_load(study.source.jobs(), study.trace, load_milli)), reckoner.slots, rule, from_us=from_us)
            for rule in Rule
        )

    return highest_load(share, tolerance_milli=_TOLERANCE_MILLI)


def policy_load(
    study: Study,
    policy: Policy,
    seed: int,
    ideal_milli: int,
    *,
    known: Shares,
    found: Callable[[int, float], None],
    told: Told | None = None,
) -> PooledLoad:
    """Of a policy in the same world; 0: less than a tenth of the ideal's.

    `known`: shares of loads that were tried before; `found` hears of each new one.
    """

    def share(load_milli: int) -> float:
        if load_milli not in known:
            known[load_milli] = _share(study, policy, seed, load_milli, told)
            found(load_milli, known[load_milli])
        return known[load_milli]

    low_milli = ideal_milli * _LEAST_MILLI // 1_000
    high_milli = max(ideal_milli * _BEYOND_MILLI // 1_000, low_milli + _TOLERANCE_MILLI)
    reached = highest_load(share, low_milli=low_milli, high_milli=high_milli, tolerance_milli=_TOLERANCE_MILLI)
    return replace(reached, load_milli=0) if reached.load_milli == low_milli else reached


def pooled(study: Study, run: Run, folder: Path, told: Told | None = None) -> None:
    """The result in a folder, amended by the highest loads of its policy and of the ideal."""
    ideal_milli = ideal_load(study, run.seed).load_milli
    policy = policy_load(study, run.policy, run.seed, ideal_milli, known={}, found=lambda *_: None, told=told)
    with_loads(folder, policy.load_milli, ideal_milli)


def with_loads(folder: Path, pooled_milli: int, ideal_milli: int) -> None:
    """A result that says how far its policy and the ideal go, unless it says so already."""
    result = read_result(folder)
    metadata = replace(result.metadata, pooled_load_milli=pooled_milli, ideal_load_milli=ideal_milli)
    if metadata != result.metadata:
        amend(result, metadata)


def reckoner_of(study: Study, seed: int) -> Reckoner:
    """Who knows what each job takes in the world of a seed."""
    scenario = study.scenario
    return Reckoner(scenario.sites, scenario.gpus, scenario.catalogue, HiddenWorld(seed, scenario.sigma))


def _share(study: Study, policy: Policy, seed: int, load_milli: int, told: Told | None) -> float:
    """Of the jobs that can be in time, how many are when the policy decides."""

    def jobs() -> Iterator[TraceJob]:
        return at_load(study.source.jobs(), study.trace, load_milli)

    reckoner = reckoner_of(study, seed)
    judge = _Judge(reckoner, study.warm_up.of(study.trace.span_us(load_milli)))
    count = sum(judge.due_us(job) is not None for job in jobs())
    # Whatever ends later than the longest of them may is late anyway.
    scenario = replace(study.scenario, policy=policy, seed=seed, drain_us=study.trace.due_us)
    player = Player(scenario, judge.seen(jobs()), judge, told=told)
    judge.late_max = count - -(-count * IN_TIME_MILLI // 1_000)
    judge.enough = player.timeline.stop
    player.play()
    return judge.met / count if count else 1.0


class _Judge:
    """A sink that keeps no rows: it counts who was in time, and says so when more are late than may be."""

    def __init__(self, reckoner: Reckoner, from_us: int) -> None:
        self._reckoner = reckoner
        self._from_us = from_us
        self._due_us: dict[int, int] = {}
        self.met = self.late = self.late_max = 0
        self.enough: Callable[[], None] = lambda: None

    def due_us(self, job: TraceJob) -> int | None:
        """How long the job may take; None where it does not count."""
        found = self._reckoner.job(job)
        counts = job.arrival_us >= self._from_us and is_servable(found, self._reckoner.slots)
        return found.due_us if counts else None

    def seen(self, jobs: Iterable[TraceJob]) -> Iterator[TraceJob]:
        """The same jobs, remembered until they end."""
        for number, job in enumerate(jobs):
            due_us = self.due_us(job)
            if due_us is not None:
                self._due_us[number] = due_us
            yield job

    def job(self, row: JobRow) -> None:
        due_us = self._due_us.pop(row.number, None)
        if due_us is None:
            return
        if row.state == JobState.SUCCEEDED and row.ended_us - row.arrival_us <= due_us:
            self.met += 1
            return
        self.late += 1
        if self.late > self.late_max:
            self.enough()

    def site(self, row: SiteRow) -> None:
        """Sites are nobody's question here."""
