"""Where a copy goes: by what was learned of places, as jobs are placed."""

from __future__ import annotations

import pytest

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component
from atoll.model.residency import PushPlan
from orchestrator.core.learning.corrections import Place
from tests.unit.fleet_of_machines import SECOND, Fleet, site
from tests.unit.learned_world import seen


def _plan(fleet: Fleet, sites: int) -> PushPlan:
    plan = fleet.machine.plan_push(ModelId("m"), sites, sites, fleet.now_us)
    assert isinstance(plan, PushPlan)
    return plan


def _learn(fleet: Fleet, component: Component, name: str, ratio: float) -> None:
    """Attempts of the model took so many times as long there as was predicted."""
    book, where = fleet.machine.context.book, Place(model_id=ModelId("m"), gpu_type=GpuTypeId("big"), site_id=SiteId(name))
    for _ in range(60):
        fleet.now_us += 6 * SECOND
        seen(book, component, ratio, where, fleet.now_us)


@pytest.mark.parametrize("component", [Component.EXECUTION, Component.LOAD])
def test_a_push_goes_where_the_model_was_seen_to_be_fast_and_tells_the_times_that_placing_reckons_with(component: Component) -> None:
    fleet = Fleet(site("a"), site("b"))
    (first,) = _plan(fleet, 1).steps
    other = "b" if first.site_id == "a" else "a"
    prior = {str(step.site_id): step for step in _plan(fleet, 2).steps}
    assert prior["a"].execution_us == prior["b"].execution_us and prior["a"].load_us == prior["b"].load_us
    _learn(fleet, component, first.site_id, 2.5)
    _learn(fleet, component, other, 1.0)
    (chosen,) = _plan(fleet, 1).steps
    assert chosen.site_id == other
    told = {str(step.site_id): step for step in _plan(fleet, 2).steps}
    field = "execution_us" if component is Component.EXECUTION else "load_us"
    assert getattr(told[first.site_id], field) == pytest.approx(2.5 * getattr(prior[first.site_id], field), rel=0.3)
    ctx = fleet.machine.context
    index = list(Component).index(component)
    factor = ctx.book.factors_milli(ModelId("m"), GpuTypeId("big"), SiteId(other))[index]
    assert getattr(told[other], field) == pytest.approx(getattr(prior[other], field) * factor / 1_000, rel=0.01)
