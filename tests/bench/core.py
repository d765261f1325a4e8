"""Decisions per second of `orchestrator.core` alone: no network, no store, one process.

The reference fleet (36 sites, 10,008 GPUs) and ten copies of it under other names, 600 models made from the catalogue's by copying with
Zipf popularity. Jobs arrive so that about half of the fleet is at work, and end when they were predicted to. A decision is a job bound
or a class of jobs deferred; the cost of a job is everything the core does for it: submit, place, end.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path

from atoll.catalog.fleet import parse_fleet
from atoll.data import fleet_wan_csv
from atoll.model.attempt import AttemptState, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq, JobId, ModelId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.report import AttemptEvent
from atoll.model.site import SiteRuntime, SiteSpec
from atoll.packaged import load_packaged
from orchestrator.core import events
from orchestrator.core.events import RequestRef, Submission
from orchestrator.core.outputs import JobPlaced, JobsDeferred, SendAssignment, Step
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import Fleet, spec

_FLEET = Path(__file__).parents[2] / "clusters.yaml"
_MODELS = 600
_WARM_UP_JOBS = 4_000
_JOBS = 6_000
# Agents report nothing while the core is measured: silence must not count.
_NO_SILENCE = Policy(silent_after_ms=10**9)
_MODEL_BYTES_MAX = 60 * 10**9


@dataclass(slots=True)
class Load:
    """A stream of jobs against one machine, and what became of it."""

    fleet: Fleet
    models: tuple[ModelSpec, ...]
    gap_us: int
    placed: int = 0
    deferred: int = 0
    ends: list[tuple[int, SiteId, AttemptKey]] = field(default_factory=list)
    seqs: dict[SiteId, int] = field(default_factory=dict)

    def take(self, step: Step, now_us: int) -> None:
        """Count decisions, and note when what was bound will end."""
        for decision in step.decisions:
            if isinstance(decision, JobPlaced):
                self.placed += 1
            elif isinstance(decision, JobsDeferred):
                self.deferred += 1
        for command in step.commands:
            if isinstance(command, SendAssignment):
                for told in command.assignment.attempts:
                    live = self.fleet.machine.context.state.sites[command.site_id].attempts[told.key]
                    heappush(self.ends, (now_us + live.attempt.predicted_us, command.site_id, told.key))

    def run(self, first: int, jobs: int, choice: random.Random) -> float:
        """Seconds that the core took for this many jobs."""
        weights = [1 / (rank + 1) ** 0.9 for rank in range(len(self.models))]
        picks = choice.choices(self.models, weights, k=jobs)
        begun = time.perf_counter()
        for number, model in enumerate(picks, first):
            self.fleet.now_us += self.gap_us
            self._end_due()
            job = spec(model.model_id, simulated=True, shape=model.default_shape)
            submission = Submission(
                job_id=JobId(f"j{number}"), spec=job, idempotency_key=f"k{number}", payload_digest="", request_id=""
            )
            event = events.JobsSubmitted(request=RequestRef(number), submissions=(submission,))
            self.take(self.fleet.machine.handle(event, self.fleet.now_us), self.fleet.now_us)
        return time.perf_counter() - begun

    def _end_due(self) -> None:
        now_us = self.fleet.now_us
        while self.ends and self.ends[0][0] <= now_us:
            _, site_id, key = heappop(self.ends)
            self.seqs[site_id] = self.seqs.get(site_id, 0) + 1
            manifest = ResultManifest(key=key, artifacts=(), seed=0, simulated=True)
            end = AttemptEvent(seq=EventSeq(self.seqs[site_id]), key=key, state=AttemptState.SUCCEEDED, manifest=manifest)
            event = events.AttemptsEnded(site_id=site_id, session=self.fleet.agents[site_id].session, events=(end,))
            self.take(self.fleet.machine.handle(event, now_us), now_us)


def _sites(copies: int) -> tuple[SiteSpec, ...]:
    known = parse_fleet(_FLEET.read_text(encoding="utf-8"), _FLEET.name, load_packaged().gpus, fleet_wan_csv()).sites
    return tuple(
        one if copy == 0 else replace(one, site_id=SiteId(f"{one.site_id}-{copy}")) for copy in range(copies) for one in known
    )


def _models() -> tuple[ModelSpec, ...]:
    known = [model for model in load_packaged().models if model.resident_bytes < _MODEL_BYTES_MAX]
    return tuple(replace(known[number % len(known)], model_id=ModelId(f"m{number}")) for number in range(_MODELS))


def measure(copies: int) -> float:
    """Print the figures of a fleet of this many copies; microseconds per job."""
    sites = _sites(copies)
    fleet = Fleet(
        *sites, models=_models(), policy=_NO_SILENCE, gpus=load_packaged().gpus, runtime=SiteRuntime.TWIN, checked=False
    )
    # About 5,000 GPUs at work for the reference fleet, at a mean of some ten seconds a job.
    load = Load(fleet=fleet, models=_models(), gap_us=2_000)
    choice = random.Random(1)
    load.run(0, _WARM_UP_JOBS, choice)
    load.placed = load.deferred = 0
    seconds = load.run(_WARM_UP_JOBS, _JOBS, choice)
    gpus = sum(pool.slots for one in sites for pool in one.pools)
    per_job_us = seconds / _JOBS * 1e6
    print(
        f"core alone, {len(sites)} sites, {gpus:,} GPUs, {_MODELS} models: {(load.placed + load.deferred) / seconds:,.0f} decisions/s "
        f"({load.placed:,} bound, {load.deferred:,} deferred), {per_job_us:.0f} us a job from submit to end, {len(load.ends):,} at work",
        flush=True,
    )
    return per_job_us


def main() -> None:
    """36 sites, then 360, and the ratio of what a job costs."""
    small = measure(1)
    large = measure(10)
    print(f"a job at 360 sites costs {large / small:.1f} times what it costs at 36", flush=True)
