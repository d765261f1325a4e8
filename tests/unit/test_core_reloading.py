"""What is stopped may have to be loaded again: reckoned as a load on its node, and counted beside the work that is thrown away."""

from __future__ import annotations

import pytest

from atoll.model.ids import AttemptKey, SiteId
from atoll.model.job import Constraints, Priority
from atoll.model.shape import Shape
from orchestrator.core.outputs import AttemptPreempted
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import BATCH, URGENT, Fleet, model, pool, site, spec

LONG = Shape(width=1024, height=1024, steps=1_000)
# Seconds weigh nearly the same, so that what a victim loses decides.
ALIKE = {Priority.URGENT: 300, Priority.NORMAL: 250, Priority.BATCH: 200}


def _half_way(steps: int, size_gb: int, *, warm_at_b: bool = False, confined: bool = False) -> Fleet:
    """A batch job of a model of this size executes on the only GPU of 80 GB; an urgent one of a model of 30 GB comes. Site b may have the
    batch job's model loaded and idle, and is closed to the urgent one."""
    sites = (site("a", pool("p", gpus=1)), *((site("b", pool("p", gpus=1)),) if warm_at_b else ()))
    fleet = Fleet(*sites, models=(model("m", size_gb), model("x", 30)), policy=Policy(priority_weight_milli=ALIKE))
    fleet.agents[SiteId("a")].disk = {"m", "x"}
    fleet.warm("a", "p-0", 0, "m", size_gb)
    fleet.report("a")
    only_a = Constraints(sites=(SiteId("a"),))
    fleet.submit(spec(prompt="batch 0", priority=BATCH, shape=LONG, constraints=only_a if confined else Constraints()))
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key, steps=steps)
    if warm_at_b:
        fleet.warm("b", "p-0", 0, "m", size_gb)
        fleet.report("b")
    fleet.submit(spec("x", prompt="urgent", priority=URGENT, constraints=only_a))
    return fleet


def _stopping(fleet: Fleet) -> list[AttemptKey]:
    return [key for key, told in fleet.agents[SiteId("a")].attempts.items() if told.stop]


@pytest.mark.parametrize(
    ("steps", "size_gb", "stops", "why"),
    [
        (455, 40, True, "both models fit beside each other: it is not loaded again"),
        (455, 60, False, "it would lose as much, and its model would have to be loaded again"),
        (330, 60, True, "it has done less, and is worth loading again"),
    ],
)
def test_who_is_pushed_out_of_memory_loses_a_load_more(steps: int, size_gb: int, stops: bool, why: str) -> None:
    fleet = _half_way(steps, size_gb)
    assert bool(_stopping(fleet)) == stops, why
    preempted = [decision for decision in fleet.steps[-1].decisions if isinstance(decision, AttemptPreempted)]
    assert len(preempted) == stops
    if stops:
        # By hand: 60 GB over a disk of 5 GB/s are 12 s; 0.2 + 60 x 0.185 s build the pipeline.
        assert preempted[0].reload_us == (23_300_000 if size_gb == 60 else 0)
        failure = next(job for job in fleet.jobs.values() if job.spec.priority is BATCH).attempts[0].failure
        assert failure is not None and ("and 23.3s to load its model again" in failure.message) == (size_gb == 60)


def test_a_gang_that_takes_a_whole_block_has_each_of_its_slots_loaded_again() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m", 60), model("x", 30)))
    fleet.agents[SiteId("a")].disk = {"m", "x"}
    for gpu in range(2):
        fleet.warm("a", "p-0", gpu, "m", 60)
    fleet.report("a")
    fleet.submit(*(spec(prompt=f"batch {number}", priority=BATCH, shape=LONG) for number in range(2)))
    for key in list(fleet.agents[SiteId("a")].attempts):
        fleet.running("a", key, steps=100)
    fleet.submit(spec("x", prompt="urgent", priority=URGENT, gang_size=2))
    preempted = [decision for step in fleet.steps for decision in step.decisions if isinstance(decision, AttemptPreempted)]
    assert [decision.reload_us for decision in preempted] == [23_300_000] * 2


@pytest.mark.parametrize("confined", [False, True])
def test_what_is_loaded_and_free_elsewhere_is_not_loaded_again_unless_the_job_may_not_go_there(confined: bool) -> None:
    assert bool(_stopping(_half_way(455, 60, warm_at_b=True, confined=confined))) != confined
