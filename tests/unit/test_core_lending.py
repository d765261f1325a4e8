"""Blocks that are kept for gangs are lent where that is best for somebody, and quotes say so without changing anything."""

from __future__ import annotations

import pytest

from atoll.model.ids import JobId, SiteId
from atoll.model.job import JobState, Priority
from atoll.model.quote import Verdict
from tests.unit.as_predicted import AsPredicted, of_steps
from tests.unit.fleet_of_machines import SECOND, URGENT, Fleet, in_regions, model, pool, site

_AT_A = in_regions("region-a")


def _kept(*, elsewhere: bool, steps: int = 1_000) -> AsPredicted:
    """One of the two GPUs of a works for long, the other is kept for a gang; `elsewhere`: b is idle, and would have to load 60 GB."""
    names = "ab" if elsewhere else "a"
    fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in names), models=(model("m", 60),))
    for name in names:
        fleet.agents[SiteId(name)].disk.add("m")
        for gpu in (0, 1) if name == "a" else ():
            fleet.warm(name, "p-0", gpu, "m", 60)
        fleet.report(name)
    world = AsPredicted(fleet)
    fleet.submit(of_steps(steps, prompt="long", constraints=_AT_A))
    world.until(2 * SECOND)
    fleet.submit(of_steps(20, prompt="gang", gang_size=2, constraints=_AT_A))
    world.until(3 * SECOND)
    assert fleet.machine.context.state.claims
    return world


@pytest.mark.parametrize("priority", [Priority.NORMAL, URGENT])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_short_job_is_quoted_the_slot_that_is_kept_and_gets_it(elsewhere: bool, priority: Priority) -> None:
    world = _kept(elsewhere=elsewhere)
    offered = world.ask(of_steps(20, priority=priority))
    assert (offered.verdict, offered.chosen and offered.chosen.site_id, offered.chosen and offered.chosen.cold) == (Verdict.NOW, "a", False)
    world.all_done()
    (held,) = world.held()
    assert held.took_us < 5 * SECOND and 0.9 <= held.ratio <= 1.1


def test_a_job_that_would_put_the_gang_off_goes_elsewhere() -> None:
    world = _kept(elsewhere=True, steps=300)
    (claimed,) = world.fleet.machine.context.state.claims.values()
    offered = world.ask(of_steps(400))
    assert (offered.verdict, offered.chosen and offered.chosen.site_id) == (Verdict.NOW, "b")
    gang = next(job for job in world.fleet.jobs.values() if job.spec.gang_size == 2)
    while world.fleet.jobs[gang.job_id].state is JobState.QUEUED:
        world.until(world.fleet.now_us + SECOND)
    assert world.fleet.now_us <= claimed.block.begins_us + 2 * SECOND


def test_a_place_that_is_as_good_and_free_is_taken_first() -> None:
    world = _kept(elsewhere=True)
    for gpu in (0, 1):
        world.fleet.warm("b", "p-0", gpu, "m", 60)
    world.fleet.report("b")
    world.fleet.submit(of_steps(20, prompt="short"))
    (short,) = [job for job in world.fleet.jobs.values() if job.spec.prompt == "short"]
    assert short.attempts[0].site_id == "b"


def test_asking_what_is_kept_changes_nothing() -> None:
    asked, silent = _kept(elsewhere=True), _kept(elsewhere=True)
    assert asked.fleet.machine.snapshot() == silent.fleet.machine.snapshot()
    for one in (of_steps(20), of_steps(20, priority=URGENT), of_steps(400), of_steps(20, gang_size=2)):
        asked.quote(one)
    gang = next(job for job in asked.fleet.jobs.values() if job.spec.gang_size == 2)
    asked.fleet.machine.outlook(gang.job_id, gang.spec, asked.fleet.now_us)
    assert asked.fleet.machine.snapshot() == silent.fleet.machine.snapshot()
    for world in (asked, silent):
        for number in range(6):
            world.fleet.submit(of_steps(10 + number, prompt=str(number)))
        world.all_done()
    assert [step.decisions for step in asked.fleet.steps] == [step.decisions for step in silent.fleet.steps]
    assert JobId("") not in asked.fleet.jobs
