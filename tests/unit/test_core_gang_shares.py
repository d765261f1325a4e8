"""Gangs beside singles that are as many as can be: each tenant has its share of the GPUs, whatever its jobs look like."""

from __future__ import annotations

from collections import Counter

import pytest

from atoll.model.ids import SiteId, TenantId
from atoll.model.job import JobState, Priority
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from orchestrator.core.yielding import OF_CLASS_MAX
from tests.unit.endless_singles import Endless, of_steps
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, model, pool, site

GANGS, SINGLES = TenantId("gangs"), TenantId("singles")


def _shared(
    *, gang_size: int, steps: int, nodes: int = 4, gangs: int = 200, policy: Policy | None = None, checked: bool = False
) -> Endless:
    """A pool that two tenants fill: one with gangs of one kind, one with singles of one kind."""
    fleet = Fleet(site("a", pool("p", gpus=8, nodes=nodes)), models=(model("m"),), checked=checked, policy=policy)
    for node in range(nodes):
        for first in range(0, 8, gang_size):
            fleet.warm_gang("a", f"p-{node}", first, gang_size, "m")
        for gpu in range(8):
            fleet.warm("a", f"p-{node}", gpu, "m")
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.report("a")
    endless = Endless(fleet, lambda number: of_steps(steps, prompt=f"s{number}", tenant=SINGLES, priority=Priority.NORMAL), backlog=12)
    endless.refill()
    fleet.submit(*[of_steps(steps, prompt=f"g{number}", tenant=GANGS, gang_size=gang_size) for number in range(gangs)])
    return endless


def _gpu_seconds(endless: Endless, seconds: int) -> Counter[TenantId]:
    """What each tenant has had of the GPUs after so many seconds."""
    fleet, had = endless.fleet, Counter[TenantId]()
    until_us = fleet.now_us + seconds * SECOND
    while fleet.now_us < until_us:
        before_us = fleet.now_us
        lives = endless.machine.context.state.sites[SiteId("a")].attempts
        executing = [lives[slot.attempts[0]].spec.tenant for slot in endless.slots() if slot.attempts]
        endless.advance()
        for tenant in executing:
            had[tenant] += fleet.now_us - before_us
    return had


@pytest.mark.parametrize(("gang_size", "steps", "seconds"), [(2, 100, 200), (4, 100, 200), (8, 100, 200), (4, 1_000, 1_500)])
def test_a_tenant_with_gangs_of_one_kind_has_its_half_beside_one_with_singles(gang_size: int, steps: int, seconds: int) -> None:
    endless = _shared(gang_size=gang_size, steps=steps)
    had = _gpu_seconds(endless, seconds)
    share = had[GANGS] / sum(had.values())
    assert 0.45 <= share <= 0.55


def test_the_share_is_that_of_the_tenants_weight() -> None:
    endless = _shared(gang_size=4, steps=100, gangs=300, policy=Policy(tenant_weight_milli={GANGS: 3_000}))
    _gpu_seconds(endless, 40)
    had = _gpu_seconds(endless, 160)
    assert 0.68 <= had[GANGS] / sum(had.values()) <= 0.82


def test_a_class_keeps_no_more_blocks_than_are_of_use_and_a_restored_machine_goes_on_with_them() -> None:
    """The fleet's invariants are checked after every event: how many a class may claim, and how much of a pool may drain."""
    endless = _shared(gang_size=2, steps=40, nodes=3, gangs=40, checked=True)
    fleet, most = endless.fleet, 0
    for _ in range(40):
        endless.advance()
        most = max(most, len(fleet.machine.context.state.claims))
    assert 3 < most <= 2 * OF_CLASS_MAX
    twin, since = restore(fleet.machine.snapshot(), fleet.policy, GPUS), len(fleet.recording)
    assert twin.snapshot() == fleet.machine.snapshot()
    for _ in range(20):
        endless.advance()
    for (at_us, event), step in zip(fleet.recording[since:], fleet.steps[since:], strict=True):
        assert twin.handle(event, at_us) == step
    assert twin.snapshot() == fleet.machine.snapshot()


def test_there_are_no_more_claims_than_gangs_that_wait() -> None:
    endless = _shared(gang_size=4, steps=400, gangs=9, checked=True)
    for _ in range(4):
        endless.advance()
    claims, fleet = endless.machine.context.state.claims, endless.fleet
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED and job.spec.tenant == GANGS]
    assert 1 < len(claims) <= len(waiting)
    for number, job in enumerate(waiting, 1):
        fleet.ask(events.JobCancelRequested, tenant=GANGS, job_id=job.job_id, reason="")
        assert len(claims) <= len(waiting) - number
    assert not any(slot.claimed_until_us for slot in endless.slots())
