"""What gangs are told of pools: prices of what would leave, fetches in flight, what other nodes of the site have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.job import Constraints, Job, JobState
from atoll.model.placement import Awaits, Reason
from atoll.model.quote import Quote
from atoll.model.replica import Tier
from atoll.model.site import SiteRuntime
from orchestrator.core import claiming, events
from orchestrator.core.machine import Machine, restore
from orchestrator.core.placement.blocks import Blocks, Members
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.endless_singles import of_steps
from tests.unit.fleet_of_machines import GPUS, SECOND, URGENT, Fleet, model, pool, site, spec


def _quote(fleet: Fleet, machine: Machine | None = None, gang_size: int = 2, *, simulated: bool = False) -> Quote:
    quoted = (machine or fleet.machine).quote_job(spec(gang_size=gang_size, simulated=simulated), fleet.now_us)
    assert isinstance(quoted, Quote)
    return quoted


def _terms(fleet: Fleet, machine: Machine | None = None, gang_size: int = 2, *, simulated: bool = False) -> dict[str, int]:
    """The terms of the place that a gang is quoted, in microseconds."""
    chosen = _quote(fleet, machine, gang_size, simulated=simulated).chosen
    assert chosen is not None
    return dict(zip(TERM_NAMES, chosen.terms_us, strict=True))


def _full_of_x() -> Fleet:
    """A site whose two slots hold `x`, so that a gang of `m` evicts it; another where `x` is asked for."""
    fleet = Fleet(site("a", pool("p", gpus=2)), site("b", pool("p", gpus=1)), models=(model("m", 60), model("x", 50)))
    for gpu in (0, 1):
        fleet.warm("a", "p-0", gpu, "x", 50)
    fleet.report("a")
    return fleet


def test_a_gang_pays_what_its_victims_are_worth_now() -> None:
    fleet = _full_of_x()
    before_us = _terms(fleet)["evict"]
    for number in range(6):
        fleet.submit(spec("x", prompt=str(number), constraints=Constraints(regions=("region-b",))))
    fleet.wait(120, reporting=("a", "b"))
    now_us = _terms(fleet)["evict"]
    assert now_us > before_us, "x is asked for"
    assert now_us == _terms(fleet, restore(fleet.machine.snapshot(), fleet.policy, GPUS))["evict"]


def test_a_gang_never_evicts_a_model_that_was_pinned_after_the_gang_was_quoted() -> None:
    fleet = _full_of_x()
    fleet.ask(events.SiteCordoned, actor="t", reason="", site_id=SiteId("b"))
    assert _quote(fleet).chosen is not None
    fleet.ask(events.ModelPinned, actor="t", reason="", model_id=ModelId("x"), site_id=SiteId("a"), tier=Tier.GPU)
    quoted = _quote(fleet)
    assert quoted.chosen is None and Reason.MEMORY_BUSY in {one.reason for one in quoted.rejections}
    fleet.submit(spec(gang_size=2))
    (gang,) = fleet.jobs.values()
    assert gang.state is JobState.QUEUED


def test_a_gang_joins_a_fetch_that_is_under_way_to_its_node() -> None:
    fleet = Fleet(site("a", pool("p", gpus=4)), models=(model("m", 60),))
    fleet.submit(spec())
    fleet.wait(55, reporting=("a",))
    (node,) = fleet.machine.context.state.sites[SiteId("a")].pools[pool("p").pool_id].nodes
    left_us = node.fetching[ModelId("m")] - fleet.now_us
    assert 0 < left_us < 10 * SECOND
    assert _terms(fleet)["fetch"] == left_us
    fleet.submit(spec(prompt="gang", gang_size=2))
    (gang,) = [job for job in fleet.jobs.values() if job.spec.gang_size == 2]
    assert gang.state is JobState.PLACED and gang.attempts[-1].predicted_us < 60 * SECOND


def test_a_gang_takes_the_node_to_which_its_weights_are_on_their_way() -> None:
    fleet = Fleet(site("a", pool("p", gpus=4, nodes=2)), models=(model("m", 60), model("y", 70)))
    for gpu in (0, 1):
        fleet.warm("a", "p-1", gpu, "y", 70)
    fleet.report("a")
    fleet.submit(*[of_steps(4_000, "y", prompt=str(number)) for number in range(2)])
    fleet.submit(spec())
    nodes = {job.spec.prompt: job.attempts[-1].slot.node_id for job in fleet.jobs.values()}
    fleet.submit(spec(prompt="gang", gang_size=2))
    (gang,) = [job for job in fleet.jobs.values() if job.spec.gang_size == 2]
    assert gang.attempts[-1].slot.node_id == nodes["p"]


def test_a_gang_copies_what_another_node_of_its_site_has() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2), pool("q", gpus=4)), models=(model("m", 60),), runtime=SiteRuntime.TWIN)
    alone_us = _terms(fleet, gang_size=4, simulated=True)["fetch"]
    fleet.agents[SiteId("a")].disk_of["p-0"] = {"m"}
    fleet.report("a")
    assert 0 < _terms(fleet, gang_size=4, simulated=True)["fetch"] < alone_us // 2
    assert _terms(fleet, gang_size=2, simulated=True)["fetch"] == 0, "the node that has them is free"


def _site_in_flight() -> Fleet:
    """Weights of 20 s are on their way to a node where no gang fits; the other node of the site has four GPUs."""
    fleet = Fleet(site("a", pool("p", "small", gpus=1), pool("q", gpus=4)), models=(model("m", 20), model("y")), runtime=SiteRuntime.TWIN)
    fleet.submit(spec(simulated=True, prompt="first", constraints=Constraints(gpu_types=(GpuTypeId("small"),))))
    assert _named(fleet, "first").state is JobState.PLACED
    return fleet


def _named(fleet: Fleet, prompt: str) -> Job:
    (job,) = [job for job in fleet.jobs.values() if job.spec.prompt == prompt]
    return job


def _lands(fleet: Fleet) -> None:
    fleet.agents[SiteId("a")].disk_of["p-0"] = {"m"}
    fleet.report("a")


def test_a_gang_waits_for_the_flight_of_its_site_and_begins_when_it_has_landed() -> None:
    fleet = _site_in_flight()
    fleet.submit(spec(prompt="gang", gang_size=4, simulated=True))
    told = _named(fleet, "gang").deferral
    assert told is not None and told.waits_for is not None and told.waits_for.awaits is Awaits.FETCH
    fleet.wait(10, reporting=("a",))
    assert _named(fleet, "gang").state is JobState.QUEUED and not fleet.machine.context.state.claims, "its block is free"
    _lands(fleet)
    gang = _named(fleet, "gang")
    assert gang.state is JobState.PLACED and _fetch_us(gang) < 10 * SECOND


def test_a_block_that_is_whole_before_the_flight_of_its_site_has_landed_is_kept_until_then() -> None:
    fleet = _site_in_flight()
    fleet.warm("a", "q-0", 0, "y")
    fleet.report("a")
    fleet.submit(of_steps(400, "y", prompt="in the way", simulated=True))
    fleet.submit(spec(prompt="gang", gang_size=4, simulated=True))
    assert len(fleet.machine.context.state.claims) == 1
    fleet.end_attempt("a", _named(fleet, "in the way").attempts[-1].key)
    fleet.wait(3, reporting=("a",))
    assert _named(fleet, "gang").state is JobState.QUEUED and len(fleet.machine.context.state.claims) == 1
    _lands(fleet)
    assert _named(fleet, "gang").state is JobState.PLACED


def _fetch_us(job: Job) -> int:
    told = job.attempts[-1].explanation
    assert told is not None
    return dict(zip(told.term_names, told.chosen.terms_us, strict=True))["fetch"]


def _cheap_and_dear() -> Fleet:
    """The cheap place is free in 200 s, the dear one in 40: that is worth it to a gang that is in no hurry."""
    prices = {"cheap": 500_000, "dear": 40_000_000}
    sites = [site(name, replace(pool("p"), usd_micros_per_gpu_hour=price)) for name, price in prices.items()]
    fleet = Fleet(*sites, policy=Policy(silent_after_ms=10**9))
    for name, steps in (("cheap", 1_000), ("dear", 200)):
        fleet.warm(name, "p-0", 0, "m")
        fleet.warm_gang(name, "p-0", 0, 2, "m")
        fleet.agents[SiteId(name)].disk.add("m")
        fleet.report(name)
        fleet.submit(of_steps(steps, prompt=name, constraints=Constraints(sites=(SiteId(name),))))
    return fleet


@pytest.mark.parametrize(("deadline_s", "where"), [(0, "cheap"), (150, "dear"), (200, "dear"), (300, "dear")])
def test_a_gang_with_a_deadline_claims_where_it_is_in_time_and_begins_there(deadline_s: int, where: str) -> None:
    fleet = _cheap_and_dear()
    gang = replace(of_steps(1_000, prompt="gang", gang_size=2), deadline_ms=deadline_s * 1_000)
    quoted = fleet.machine.quote_job(gang, fleet.now_us)
    assert isinstance(quoted, Quote) and quoted.chosen is not None
    fleet.submit(gang)
    (claimed,) = fleet.machine.context.state.claims.values()
    assert claimed.block.site_id == quoted.chosen.site_id == where
    fleet.end_attempt(where, _named(fleet, where).attempts[-1].key, after_us=30 * SECOND)
    begun = _named(fleet, "gang")
    assert begun.state is JobState.PLACED and begun.attempts[-1].site_id == where


def _blocks_looked_at(nodes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many blocks of a pool are looked at for a gang that finds none free, where a slot has changed since the last look."""
    fleet = Fleet(site("a", pool("p", gpus=8, nodes=nodes)), checked=False, policy=Policy(silent_after_ms=10**9))
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.report("a")
    fleet.submit(*[spec(prompt=str(number)) for number in range(8 * nodes)])
    for _ in range(nodes):
        fleet.happen(events.TimerFired())
    fleet.machine.quote_job(spec(gang_size=2), fleet.now_us)
    fleet.submit(spec(prompt="one more"))
    seen: list[object] = []
    measure, weigh = Blocks._measure, claiming.place_of

    def measured(self: Blocks, slots: Members) -> object:
        seen.append(slots)
        return measure(self, slots)

    def weighed(*arguments: Any) -> claiming.Place:
        seen.append(arguments)
        return weigh(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Blocks, "_measure", measured)
        patched.setattr(claiming, "place_of", weighed)
        fleet.submit(spec(prompt="urgent", gang_size=2, priority=URGENT))
    assert len(fleet.machine.context.state.claims) == 1
    return len(seen)


def test_a_look_of_a_gang_costs_no_more_in_a_larger_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < _blocks_looked_at(32, monkeypatch) <= _blocks_looked_at(16, monkeypatch)
