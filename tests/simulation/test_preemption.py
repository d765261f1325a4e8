"""Twins whose work is stopped for more urgent work: it is, where that pays after all that it costs, the load that follows included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agents.twin.holdings import Holding
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import ModelId, NodeId, TenantId
from atoll.model.job import Job, Priority
from orchestrator.core.placement.policy import Policy
from sims.play.player import Player
from sims.play.scenario import Beginning, Scenario
from sims.traces.job import TraceJob
from tests.simulation.played import AsPredicted, Rows, three_sites
from tests.unit.fleet_of_machines import GB, SECOND, model, pool, site

# Seconds weigh nearly the same, so that what a victim loses decides.
ALIKE = Policy(priority_weight_milli={Priority.URGENT: 300, Priority.NORMAL: 250, Priority.BATCH: 200}, learning=False)


class Watched(Player):
    """A run that keeps what was published of its jobs."""

    def __init__(self, scenario: Scenario, jobs: list[TraceJob]) -> None:
        self.jobs: dict[str, Job] = {}
        super().__init__(scenario, jobs, Rows(), truth=AsPredicted(), checked=True)

    def _published(self, job: Job) -> None:
        self.jobs[job.job_id] = job
        super()._published(job)


@pytest.mark.parametrize(
    ("after_s", "size_gb", "stops", "why"),
    [
        (63, 40, True, "both models fit beside each other"),
        (63, 60, False, "the batch job has done as much, and its model would have to be loaded again"),
        (45, 60, True, "it has done less, and is worth loading again"),
    ],
)
def test_work_is_stopped_where_it_pays_after_the_load_that_follows(after_s: int, size_gb: int, stops: bool, why: str) -> None:
    """One GPU of 80 GB, a batch job of 138 s at work, and an urgent one of another model of 30 GB that comes after so long."""
    batch, urgent = model("batch", size_gb), model("urgent", 30)
    one_gpu = site("here", pool("p", gpus=1))
    holdings = {one_gpu.site_id: {NodeId("p-0"): Holding(disk=(batch, urgent), slots=((batch,),))}}
    scenario = replace(
        three_sites(policy=ALIKE), sites=(one_gpu,), links=(), beginning=Beginning(models=(batch, urgent), holdings=holdings)
    )
    jobs = [
        TraceJob(arrival_us=0, model_id=ModelId("batch"), tenant=TenantId("t"), steps=1_000, priority=Priority.BATCH),
        TraceJob(arrival_us=after_s * SECOND, model_id=ModelId("urgent"), tenant=TenantId("t"), priority=Priority.URGENT),
    ]
    run = Watched(scenario, jobs)
    assert run.play().states == {"succeeded": 2}
    first, second = (job for _, job in sorted(run.jobs.items()))
    assert (second.ended_us < first.ended_us) == stops, why
    assert len(first.attempts) == (2 if stops else 1)
    if stops:
        stopped, again = first.attempts
        assert stopped.state is AttemptState.STOPPED
        assert stopped.failure is not None and stopped.failure.kind is FailureKind.PREEMPTED
        assert ("to load its model again" in stopped.failure.message) == again.cold == (size_gb == 60)


def _of_all_priorities(count: int, *, seed: int) -> Iterator[TraceJob]:
    """More than four GPUs can do at once: long batch work, and shorter work of higher priorities, of models that few nodes have."""
    chance, at_us = random.Random(seed), 0
    for _ in range(count):
        at_us += round(chance.expovariate(1 / 8) * SECOND)
        priority = chance.choices((Priority.BATCH, Priority.NORMAL, Priority.URGENT), (5, 3, 2))[0]
        yield TraceJob(
            arrival_us=at_us,
            model_id=ModelId(f"{chance.choice(('sd', 'sd', 'flux', 'wan'))}--{min(int(chance.expovariate(0.7)), 5)}"),
            tenant=TenantId(f"t{chance.randrange(5)}"),
            steps=chance.randrange(100, 400) if priority is Priority.BATCH else chance.randrange(5, 40),
            priority=priority,
        )


@pytest.mark.parametrize("seed", [1, 4])
def test_what_is_stopped_for_a_job_makes_room_for_that_job(seed: int) -> None:
    """Four nodes of a GPU each, to which the weights have ways of their own, all slow; and much of the batch work is aged. Of what was
    stopped a third went to others where all nodes of a pool were taken for equally near."""
    slow = replace(site("here", pool("p", nodes=4, gpus=1)), origin_bytes_per_s=GB // 2, lan_bytes_per_s=GB // 4)
    scenario = replace(three_sites(policy=Policy(learning=False, ageing_ms=120_000)), sites=(slow,), links=())
    run = Watched(scenario, list(_of_all_priorities(70, seed=seed)))
    assert run.play().states == {"succeeded": 70}
    attempts = [attempt for job in run.jobs.values() for attempt in job.attempts]
    stopped = [(one, attempt.slot) for attempt in attempts if attempt.explanation is not None for one in attempt.explanation.stopped]
    in_vain = [one for one, slot in stopped if (one.node_id, one.index) != (slot.node_id, slot.index)]
    assert len(stopped) > 10 and len(in_vain) <= 1
    fates = [attempt.failure.kind for attempt in attempts if attempt.failure is not None]
    assert fates.count(FailureKind.PREEMPTED) == len(stopped), "all are told"
