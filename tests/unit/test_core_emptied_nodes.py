"""Preemption in a pool of several nodes: a slot is emptied where the weights are near, and not where they come no sooner for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, NodeId, SiteId
from atoll.model.job import Job, JobState
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime
from orchestrator.core import events
from orchestrator.core.outputs import AttemptPreempted
from tests.unit.fleet_of_machines import BATCH, GB, URGENT, Fleet, model, pool, site, spec

LONG = Shape(width=1024, height=1024, steps=1_000)


def _full(has_x: str, lan_gbs: int = 0) -> Fleet:
    """Two nodes of one GPU, each with long batch work of model m; that of p-1 has just begun. One node has x, of 40 GB, on disk."""
    where = replace(site("a", pool("p", nodes=2, gpus=1)), lan_bytes_per_s=lan_gbs * GB)
    fleet = Fleet(where, models=(model("m"), model("x", 40)), runtime=SiteRuntime.TWIN)
    agent = fleet.agents[SiteId("a")]
    agent.disk = {"m"}
    if has_x:
        agent.disk_of[has_x] = {"x"}
    for node in ("p-0", "p-1"):
        fleet.warm("a", node, 0, "m")
    fleet.report("a")
    for number in range(2):
        fleet.submit(*(spec(prompt=f"batch {number}-{behind}", simulated=True, priority=BATCH, shape=LONG) for behind in range(2)))
    return fleet


def _executing(fleet: Fleet) -> dict[str, AttemptKey]:
    nodes = fleet.machine.context.columns.columns[0].pool.nodes
    return {str(node.node_id): node.slots[0].attempts[0] for node in nodes if node.slots[0].attempts}


def _emptied(fleet: Fleet) -> set[NodeId]:
    told = fleet.agents[SiteId("a")].attempts.values()
    return {one.slot.node_id for one in told if one.stop}


def _ever_emptied(fleet: Fleet) -> set[str]:
    """Nodes at which work was stopped for another, since the beginning."""
    stopped = {one.key for step in fleet.steps for one in step.decisions if isinstance(one, AttemptPreempted)}
    return {attempt.slot.node_id for job in fleet.jobs.values() for attempt in job.attempts if attempt.key in stopped}


def _urgent(fleet: Fleet, **limits: int) -> Job:
    fleet.submit(spec("x", prompt="urgent", priority=URGENT, simulated=True, **limits))
    return next(job for job in fleet.jobs.values() if job.spec.prompt == "urgent")


def test_the_slot_is_emptied_at_the_node_that_has_the_weights_although_more_is_lost_there() -> None:
    fleet = _full(has_x="p-0")
    fleet.running("a", _executing(fleet)["p-0"], steps=200)
    _urgent(fleet)
    assert _emptied(fleet) == {"p-0"}


def test_without_weights_at_either_the_slot_of_least_loss_is_emptied() -> None:
    fleet = _full(has_x="")
    fleet.running("a", _executing(fleet)["p-0"], steps=200)
    _urgent(fleet)
    assert _emptied(fleet) == {"p-1"}


def test_no_slot_is_emptied_beside_the_node_to_which_the_weights_are_on_their_way() -> None:
    """Although less would be lost there: they go to no other node of the site until they have landed. The slot beside which they land has
    its work for as long as they take."""
    fleet = _full(has_x="", lan_gbs=100)
    fleet.running("a", _executing(fleet)["p-0"], steps=800)
    fleet.ask(events.ModelPushed, actor="ops", reason="launch", model_id="x", sites=1, warm=0)
    assert [one.node_id for one in fleet.agents[SiteId("a")].wanted.values()] == ["p-0"]
    _urgent(fleet)
    assert not _emptied(fleet)


@pytest.mark.parametrize(("before", "again"), [(0, {"p-0", "p-1"}), (2, {"p-0"})])
def test_for_a_job_that_two_emptied_slots_did_not_help_no_third_is_emptied(before: int, again: set[str]) -> None:
    fleet = _full(has_x="p-0")
    job = _urgent(fleet)
    entry = fleet.machine.context.state.jobs[job.job_id]
    assert len(entry.stopped) == 2 and _emptied(fleet) == {"p-0"}
    entry.stopped = (*entry.stopped[:before], *entry.stopped)
    fleet.lose("a", "p-0", 0)
    for key, told in list(fleet.agents[SiteId("a")].attempts.items()):
        if told.stop:
            fleet.end_attempt("a", key, AttemptState.STOPPED)
    fleet.wait(5, reporting=("a",))
    assert {one.site_id for one in entry.stopped} == {"a"} and _ever_emptied(fleet) == again


def test_while_it_waits_a_job_says_what_is_stopped_for_it_and_one_that_expires_then_too() -> None:
    fleet = _full(has_x="p-0")
    job = _urgent(fleet, start_timeout_ms=10_000)
    told = fleet.machine.deferral_of(job.job_id)
    stopping = {key for key, one in fleet.agents[SiteId("a")].attempts.items() if one.stop}
    assert told is not None and {AttemptKey(job_id=one.job_id, ordinal=one.ordinal) for one in told.stopped} == stopping
    fleet.wait(11, reporting=("a",))
    ended = fleet.jobs[job.job_id]
    assert ended.state is JobState.EXPIRED and ended.deferral is not None and ended.deferral.stopped == told.stopped
