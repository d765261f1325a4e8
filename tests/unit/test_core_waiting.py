"""Waiting in the core: worth it only while the place waited for is really about to be had."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.ids import SiteId
from atoll.model.shape import Shape
from orchestrator.core import events
from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec


def _sites_of(fleet: Fleet) -> list[str]:
    return [job.attempts[-1].site_id for job in fleet.jobs.values() if job.attempts]


def test_jobs_of_many_shapes_do_not_all_queue_for_the_one_warm_replica() -> None:
    """Each shape is a class of its own; together they are as many as jobs of one class."""
    fleet = Fleet(site("cold", pool("p", gpus=8)), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=20),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=20)
    fleet.report("warm")
    for number in range(40):
        fleet.submit(spec(shape=Shape(width=1024, height=1024 - 8 * number, steps=20)))
    assert _sites_of(fleet).count("cold") >= 4


def test_nobody_waits_for_ever_for_a_slot_that_hangs() -> None:
    fleet = Fleet(site("idle", pool("p", gpus=1)), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=60),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=60)
    fleet.report("warm")
    for number in range(3):
        fleet.submit(spec(prompt=str(number)))
    assert _sites_of(fleet) == ["warm", "warm"], "the third waits: a cold start takes a minute, the replica is free in seconds"
    fleet.wait(300, reporting=("idle", "warm"))
    assert sorted(_sites_of(fleet)) == ["idle", "warm", "warm"]


def test_a_site_added_again_in_the_same_term_is_told_what_to_do() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    agent = fleet.agents[SiteId("a")]
    for number in range(6):
        fleet.submit(spec(prompt=str(number)))
        (key, *_) = agent.attempts
        fleet.end_attempt("a", key)
    reached = agent.told[-1].generation
    fleet.ask(events.SiteRemoveRequested, actor="t", reason="", site_id=SiteId("a"), force=True)
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(agent.site,), links=())
    again = fleet.connect(agent.site)
    # The agent goes on counting from what it holds: this term has not changed.
    again.told[-1] = replace(again.told[-1], generation=reached)
    fleet.report("a", full=True)
    assert again.told[-1].full and again.told[-1].generation > reached


def test_a_site_whose_full_report_was_lost_is_asked_for_another() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.connect(site("a", pool("p", gpus=1)), report=False)
    agent = fleet.agents[SiteId("a")]
    for _ in range(6):
        fleet.report("a", after_us=1_000_000)
    assert [assignment.full for assignment in agent.told] == [True, True], "the second asks for a full report"
    fleet.report("a", full=True)
    fleet.submit(spec())
    assert len(agent.attempts) == 1


def test_a_slot_whose_process_starts_is_neither_given_work_nor_waited_for() -> None:
    """So the start of a process stands before no job that is placed, and no term has to count it."""
    fleet = Fleet(site("slow", pool("p", gpu="small", gpus=1)), site("fast", pool("p", gpus=1)), models=(model("m", weights_gb=10),))
    fleet.warm("fast", "p-0", 0, "m")
    fleet.report("fast")
    fleet.lose("fast", "p-0", 0)
    fleet.submit(spec(), spec(prompt="another"))
    fleet.wait(60, reporting=("slow", "fast"))
    assert _sites_of(fleet) == ["slow", "slow"], "the second waits behind the first rather than for a process"
    fleet.started("fast")
    fleet.submit(spec(prompt="a third"))
    assert _sites_of(fleet)[-1] == "fast"


def test_jobs_wait_in_the_queue_while_every_process_starts_and_go_when_one_is_up() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.lose("a", "p-0", 0)
    fleet.submit(spec())
    assert _sites_of(fleet) == []
    fleet.started("a")
    assert _sites_of(fleet) == ["a"]
