"""Slots that are emptied for a job by where its weights are: on the node of that slot, on their way to it, or as far away as from all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, ModelId, NodeId, SiteId
from atoll.model.job import Constraints, Job, JobState
from atoll.model.report import FetchFact, SiteReport
from atoll.model.shape import Shape
from orchestrator.core import events
from tests.unit.fleet_of_machines import BATCH, GB, SECOND, URGENT, Fleet, model, pool, site, spec

A = SiteId("a")
LONG = Shape(width=1024, height=1024, steps=1_000)


def _two_nodes(*has_x: str, gang_size: int = 1, times: int = 1) -> Fleet:
    """Two nodes, all of each at work on a batch job: one has some 120 s left, the other 138 s, or so many times that. What a node lacks it
    fetches in 300 s."""
    far = replace(site("a", pool("p", nodes=2, gpus=gang_size)), origin_bytes_per_s=GB // 10)
    fleet = Fleet(far, models=(model("m"), model("x", 30)))
    fleet.agents[A].disk = {"m"}
    fleet.agents[A].disk_of = {node: {"x"} for node in has_x}
    for node in ("p-0", "p-1"):
        fleet.warm("a", node, 0, "m")
    fleet.report("a")
    shape = replace(LONG, steps=1_000 * gang_size * times)
    for steps in (100 * gang_size * times, 0):
        fleet.submit(spec(prompt=f"batch {steps}", priority=BATCH, shape=shape, gang_size=gang_size))
        fleet.running("a", _of(fleet, f"batch {steps}").attempts[0].key, steps=steps)
    return fleet


def _of(fleet: Fleet, prompt: str) -> Job:
    (job,) = [job for job in fleet.jobs.values() if job.spec.prompt == prompt]
    return job


def _come(fleet: Fleet, share: float) -> None:
    """So much of the model that is pushed has come, in its time, as the site tells."""
    agent = fleet.agents[A]
    told = FetchFact(model_id=ModelId("x"), bytes_done=int(share * 30 * GB), bytes_total=30 * GB, ahead=True)
    facts = [fleet._node(agent, agent.site.pools[0], index, fleet.now_us) for index in range(2)]
    agent.report_seq += 1
    nodes = (replace(facts[0], fetching=(told,)), facts[1])
    report = SiteReport(seq=agent.report_seq, full=False, generation=agent.told[-1].generation, nodes=nodes)
    at_us = SECOND + int(share * 300 * SECOND)
    fleet.happen(events.SiteReported(site_id=A, session=agent.session, report=report), at_us - fleet.now_us)


def _stopping(fleet: Fleet) -> dict[AttemptKey, NodeId]:
    return {key: told.slot.node_id for key, told in fleet.agents[A].attempts.items() if told.stop}


def _urgent(fleet: Fleet, gang_size: int = 1) -> Job:
    fleet.submit(spec("x", prompt="urgent", priority=URGENT, gang_size=gang_size))
    return _of(fleet, "urgent")


@pytest.mark.parametrize("gang_size", [1, 2])
@pytest.mark.parametrize("node", ["p-0", "p-1"])
def test_the_slot_is_emptied_on_the_node_that_has_the_weights(node: str, gang_size: int) -> None:
    """However much more is lost there, and however much sooner the other one is free."""
    fleet = _two_nodes(node, gang_size=gang_size)
    _urgent(fleet, gang_size)
    stopping = _stopping(fleet)
    assert list(stopping.values()) == [node]
    for key in stopping:
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    (attempt,) = _of(fleet, "urgent").attempts
    assert attempt.slot.node_id == node


@pytest.mark.parametrize("gang_size", [1, 2])
def test_nothing_is_emptied_for_weights_that_come_no_sooner(gang_size: int) -> None:
    """They are on their way to one node; to the other they would have to be fetched anew."""
    fleet = _two_nodes(gang_size=gang_size, times=10)
    fleet.ask(events.ModelPushed, actor="t", reason="", model_id="x", sites=1, warm=0)
    assert _urgent(fleet, gang_size).state is JobState.QUEUED
    for share in (0.3, 0.6):
        _come(fleet, share)
        assert not _stopping(fleet)
    _come(fleet, 0.995)
    fleet.wait(3)
    assert list(_stopping(fleet).values()) == ["p-0"], "they are about to be there"


def test_weights_that_are_nowhere_are_fetched_so_much_sooner() -> None:
    """What is fetched when a slot is free takes as long in any: the wait for the slot is won, at the cost of the least work."""
    fleet = _two_nodes()
    _urgent(fleet)
    assert list(_stopping(fleet).values()) == ["p-1"]


def test_work_that_waits_for_the_same_weights_is_stopped_for_its_execution_only() -> None:
    """A batch job waits for weights that take 300 s: an urgent one of its model, behind it, wins no more than what that executes."""
    far = replace(site("a", pool("p", gpus=1)), origin_bytes_per_s=GB // 10)
    for steps, stops in ((1_000, True), (4, False)):
        fleet = Fleet(far, models=(model("x", 30),))
        fleet.submit(spec("x", prompt="batch", priority=BATCH, shape=replace(LONG, steps=steps)))
        assert _urgent(fleet).state is JobState.PLACED
        assert bool(_stopping(fleet)) == stops


def test_a_slot_is_emptied_once_for_a_job_that_left_it_to_others() -> None:
    """The weights are gone from the node when it is empty: the job waits for another place, and work goes on there. They come back."""
    far = replace(site("a", pool("p", gpus=1)), origin_bytes_per_s=GB // 10)
    fleet = Fleet(far, site("b", pool("p", gpus=1)), models=(model("m"), model("x", 30)))
    fleet.warm("a", "p-0", 0, "m")
    fleet.warm("b", "p-0", 0, "x", 30)
    fleet.agents[A].disk = {"m", "x"}
    for name in ("a", "b"):
        fleet.report(name)
    for number in range(2):
        there = Constraints(sites=(SiteId("b"),))
        fleet.submit(spec("x", prompt=f"urgent {number}", priority=URGENT, shape=LONG, constraints=there))
    fleet.submit(spec(prompt="batch", priority=BATCH, shape=LONG))
    fleet.running("a", _of(fleet, "batch").attempts[0].key, steps=100)
    fleet.submit(spec("x", prompt="normal"))
    (stopping,) = _stopping(fleet)
    fleet.agents[A].disk = {"m"}
    fleet.report("a")
    fleet.end_attempt("a", stopping, AttemptState.STOPPED)
    assert _of(fleet, "normal").state is JobState.QUEUED
    again = _of(fleet, "batch").attempts[-1].key
    assert again != stopping
    fleet.agents[A].disk = {"m", "x"}
    fleet.running("a", again, steps=1)
    fleet.wait(10, reporting=("a", "b"))
    assert _of(fleet, "normal").state is JobState.QUEUED and not _stopping(fleet)
