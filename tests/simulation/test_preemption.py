"""Twins whose work is stopped for more urgent work: it is, where that pays after all that it costs, the load that follows included."""

from __future__ import annotations

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
from tests.unit.fleet_of_machines import SECOND, model, pool, site

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
