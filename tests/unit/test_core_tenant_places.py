"""Rules of tenants are heeded by whoever asks for a place: gangs, drains, retries, moves, preemption, simulated runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import SiteId, TenantId
from atoll.model.job import Constraints, JobSpec
from atoll.model.views import DrainPlan
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.tenants import TenantRules
from sims.play.player import Player
from tests.simulation.played import Rows, mixed, three_sites
from tests.unit.fleet_of_machines import BATCH, URGENT, Fleet, pool, site, spec

GOLD = TenantId("gold")
A = TenantRules(sites=(SiteId("a"),))
B = TenantRules(sites=(SiteId("b"),))
_LONG = replace(spec().shape, steps=1_000)


def _policy(rule: TenantRules) -> Policy:
    return Policy(tenant_rules={GOLD: rule})


def _place(fleet: Fleet, job_id: str) -> str:
    return fleet.job(job_id).attempts[-1].site_id


def _submitted(fleet: Fleet, one: JobSpec) -> str:
    before = set(fleet.jobs)
    fleet.submit(one)
    (job_id,) = set(fleet.jobs) - before
    return job_id


def test_gangs_heed_the_rule() -> None:
    fleet = Fleet(site("a", pool("p", "small", gpus=2)), site("b", pool("p", gpus=2)), policy=_policy(A))
    assert _place(fleet, _submitted(fleet, spec(tenant=GOLD, gang_size=2))) == "a"
    assert _place(fleet, _submitted(fleet, spec(gang_size=2))) == "b"


def test_a_drain_is_planned_to_where_the_tenant_may_go() -> None:
    """The model is warm at c, where anybody would go; b would have to load it."""
    sites = [site(name, pool("p", gpus=1)) for name in "abc"]
    policy = replace(_policy(TenantRules(sites=(SiteId("a"), SiteId("b")))), moves_max=0)  # else it goes there by itself
    fleet = Fleet(*sites, policy=policy)
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    for tenant in (GOLD, TenantId("t")):
        assert _place(fleet, _submitted(fleet, spec(tenant=tenant))) == "a"
    fleet.warm("c", "p-0", 0, "m")
    fleet.report("c")
    plan = fleet.machine.plan_drain(SiteId("a"), 600_000, fleet.now_us)
    assert isinstance(plan, DrainPlan)
    assert {fleet.job(move.job_id).spec.tenant: move.to_site for move in plan.moves} == {GOLD: "b", "t": "c"}


def test_who_failed_where_it_may_go_is_tried_nowhere_else() -> None:
    fleet = _two_slots(_policy(A))
    job_id = _submitted(fleet, spec(tenant=GOLD))
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", key, AttemptState.FAILED, FailureKind.RUNTIME_LOST)
    fleet.wait(120, reporting=("a", "b"))
    assert [attempt.site_id for attempt in fleet.job(job_id).attempts] == ["a", "a"]


@pytest.mark.parametrize(("tenant", "moved"), [(GOLD, False), (TenantId("t"), True)])
def test_nobody_is_moved_to_where_its_tenant_may_not_go(tenant: TenantId, moved: bool) -> None:
    """Two long jobs at a, the second behind the first, while the slot at b, whose job seemed to be longer, comes free."""
    fleet = _two_slots(_policy(A))
    fleet.submit(spec(shape=_LONG, constraints=Constraints(sites=A.sites)))
    fleet.submit(spec(shape=replace(_LONG, steps=1_500), constraints=Constraints(sites=B.sites)))
    behind = _submitted(fleet, spec(shape=_LONG, tenant=tenant))
    assert _place(fleet, behind) == "a"
    for name in "ab":
        fleet.running(name, next(iter(fleet.agents[SiteId(name)].attempts)))
    fleet.end_attempt("b", next(iter(fleet.agents[SiteId("b")].attempts)))
    assert fleet.agents[SiteId("a")].attempts[fleet.job(behind).attempts[-1].key].stop is moved


def _two_slots(policy: Policy) -> Fleet:
    """Sites a and b alike, one GPU each, the model warm."""
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)), policy=policy)
    for name in "ab":
        fleet.warm(name, "p-0", 0, "m")
        fleet.report(name)
    return fleet


@pytest.mark.parametrize("rule", [A, B])
def test_work_is_preempted_only_where_the_tenant_may_go(rule: TenantRules) -> None:
    fleet = _two_slots(_policy(rule))
    fleet.submit(*(spec(prompt=str(number), priority=BATCH, shape=_LONG) for number in range(4)))
    for name in "ab":
        fleet.running(name, next(iter(fleet.agents[SiteId(name)].attempts)), steps=100)
    fleet.submit(spec(tenant=GOLD, priority=URGENT))
    stopping = {name for name in "ab" for one in fleet.agents[SiteId(name)].attempts.values() if one.stop}
    assert stopping == set(rule.sites)


def test_a_simulated_run_heeds_the_rules() -> None:
    rows, bound = Rows(), TenantId("t1")
    rules = {bound: TenantRules(sites=(SiteId("fra"),))}
    Player(three_sites(policy=Policy(tenant_rules=rules)), mixed(60), rows).play()
    sites = {tenant: {row.site_id for row in rows.jobs if row.tenant == tenant and row.site_id} for tenant in ("t1", "t2")}
    assert sites["t1"] == {"fra"} and sites["t2"] > {"fra"}
