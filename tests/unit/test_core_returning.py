"""What comes back after a takeover: sites, of which what is known is made once and not again at each hello, and demand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import FleetId, ModelId, PoolId, SiteId, Term
from atoll.model.site import SiteSpec
from orchestrator.core import events
from orchestrator.core.demand import PutDemand
from orchestrator.core.machine import new_machine
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, pool, site, spec
from tests.unit.test_core_silence import stored_by


def _taken_over(fleet: Fleet) -> None:
    fleet.machine = new_machine(stored_by(fleet), fleet.policy, GPUS)
    fleet.happen(events.TookOver(fleet_id=FleetId("f"), term=Term(2)))


def _bare(one: SiteSpec) -> SiteSpec:
    """As an operator declares a site whose agent will find what is there."""
    return replace(one, pools=())


def test_a_site_that_has_what_was_declared_costs_no_look_at_the_fleet() -> None:
    fleet = Fleet(site("a"), site("b", pool("p"), pool("q", gpu="small")))
    fleet.submit(spec())
    _taken_over(fleet)
    columns = fleet.machine.context.columns
    layout, slots = columns.layout, [id(slot) for column in columns.columns for node in column.pool.nodes for slot in node.slots]
    for name in "ab":
        fleet.connect(fleet.agents[SiteId(name)].site)
    assert columns.layout == layout
    assert slots == [id(slot) for column in columns.columns for node in column.pool.nodes for slot in node.slots]
    assert columns.accepting.all()


def test_nor_does_one_that_has_what_its_agent_found() -> None:
    found = site("a", pool("p"), pool("q", gpu="small"))
    fleet = Fleet(site("b"))
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(_bare(found),), links=())
    fleet.connect(found)
    fleet.submit(spec(constraints=replace(spec().constraints, sites=(SiteId("a"),))))
    (key,) = fleet.agents[SiteId("a")].attempts
    _taken_over(fleet)
    context = fleet.machine.context
    held = [slot.attempts for slot in context.columns.by_pool[SiteId("a"), key_pool(fleet)].pool.nodes[0].slots]
    assert [key] in held, "the running attempt holds its slot before its site has spoken"
    layout = context.columns.layout
    fleet.connect(found)
    assert context.columns.layout == layout
    assert context.state.sites[SiteId("a")].record.found == found.pools


def key_pool(fleet: Fleet) -> PoolId:
    """The pool of the one attempt."""
    (job,) = fleet.jobs.values()
    return job.attempts[-1].slot.pool_id


def test_another_declaration_counts_until_an_agent_says_what_there_is() -> None:
    found, declared = site("a", pool("p")), site("a", pool("q"))
    fleet = Fleet(_bare(found))
    fleet.connect(found)
    _taken_over(fleet)
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(declared,), links=())
    pools = fleet.machine.context.state.sites[SiteId("a")].pools
    assert list(pools) == [PoolId("q")]
    fleet.connect(found)
    assert list(fleet.machine.context.state.sites[SiteId("a")].pools) == [PoolId("p")]
    assert list(fleet.machine.context.columns.by_pool) == [(SiteId("a"), PoolId("p"))]


@pytest.mark.parametrize(("age_s", "like_before"), [(0, True), (24 * 3_600, False)])
def test_demand_outlives_a_restart_and_fades_by_the_time_down(age_s: int, like_before: bool) -> None:
    """The fleet's own time stands still while nobody runs it."""
    fleet = Fleet(site("a"))
    for _ in range(60):
        fleet.submit(spec())
        fleet.wait(30, reporting=("a",))
    kept = [record.demand for step in fleet.steps for record in step.records if isinstance(record, PutDemand)]
    assert 20 <= len(kept) <= 31, "once a minute"
    demand = replace(kept[-1], models=(*kept[-1].models, replace(kept[-1].models[0], model_id=ModelId("gone"))))
    stored = replace(stored_by(fleet), demand=demand, demand_age_us=age_s * SECOND)
    again = new_machine(stored, fleet.policy, GPUS)
    again.handle(events.TookOver(fleet_id=FleetId("f"), term=Term(2)), fleet.now_us)
    (before, after) = (one.model_places(ModelId("m"), fleet.now_us, events=False).target for one in (fleet.machine, again))
    assert after.arrivals in (60, 59)
    rate = pytest.approx(before.rate_per_hour_milli, rel=0.15)
    assert (after.rate_per_hour_milli == rate) is like_before
    assert again.next_deadline() is not None, "copies ahead of demand go on without a first arrival"
    assert ModelId("gone") not in again.context.demand.known()
