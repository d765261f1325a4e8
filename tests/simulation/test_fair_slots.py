"""Slots between models: whose tenant has its turn, or whose priority is higher, gets slots in which another model runs, however much work
that has and although loading takes time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import ModelId, TenantId
from atoll.model.job import Priority
from orchestrator.core.placement.policy import Policy
from sims.play.player import Player
from sims.traces.job import TraceJob
from tests.simulation.played import Rows, three_sites
from tests.unit.fleet_of_machines import SECOND, pool, site

_BEGINS_S, _SETTLED_S, _ENDS_S = 60, 150, 360


def _flood(model: str, tenant: str, priority: Priority, from_s: int) -> list[TraceJob]:
    """Two jobs each three seconds, each of which takes a GPU for eight: more than four GPUs can do."""
    return [
        TraceJob(arrival_us=second * SECOND, model_id=ModelId(f"sd--{model}"), tenant=TenantId(tenant), priority=priority, steps=60)
        for second in range(from_s, _ENDS_S, 3)
        for _ in range(2)
    ]


def _begun(first: Priority, second: Priority) -> tuple[int, int]:
    """How many jobs of each model began while both waited: n comes when m has all slots, and more to do than they can."""
    scenario = replace(three_sites(policy=Policy(learning=False)), sites=(site("a", pool("p", gpus=4)),), links=())
    jobs = sorted(_flood("m", "t", first, 0) + _flood("n", "u", second, _BEGINS_S), key=lambda job: job.arrival_us)
    rows = Rows()
    Player(scenario, jobs, rows).play()
    begun = [row for row in rows.jobs if _SETTLED_S * SECOND <= row.started_us < _ENDS_S * SECOND]
    assert len(begun) > 50
    own = sum(row.model_id == "sd--n" for row in begun)
    return len(begun) - own, own


def test_two_tenants_have_as_much_of_the_slots_whoever_came_first_and_whatever_is_loaded_there() -> None:
    m, n = _begun(Priority.NORMAL, Priority.NORMAL)
    assert 0.7 < n / m < 2.0, "who came later may make up for what it waited"


@pytest.mark.parametrize(("first", "second"), [(Priority.NORMAL, Priority.URGENT), (Priority.BATCH, Priority.NORMAL)])
def test_a_lower_priority_keeps_no_slots_while_a_higher_one_waits(first: Priority, second: Priority) -> None:
    m, n = _begun(first, second)
    # But for what ageing gives: one slot in eight to who waits for ten minutes, and nobody waits as long here.
    assert m < 0.1 * n
