"""Where the policy allows a tenant to run: whatever its jobs ask for, and told as what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import GpuTypeId, SiteId, TenantId
from atoll.model.job import Constraints, JobState
from atoll.model.placement import Reason
from atoll.model.quote import Quote
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.tenants import TenantRules
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec

GOLD = TenantId("gold")
A, B = SiteId("a"), SiteId("b")


def _fleet(rules: TenantRules) -> Fleet:
    """Site a is what everybody would take: the model is on its disk. At b there is another type of GPU."""
    fleet = Fleet(
        site("a", pool("p", "big")),
        site("b", pool("p", "small")),
        models=(model("m"),),
        policy=replace(Policy(), tenant_rules={GOLD: rules.check(GOLD)}),
    )
    fleet.agents[A].disk = {"m"}
    fleet.report(A)
    return fleet


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(TenantRules(sites=(B,)), id="sites"),
        pytest.param(TenantRules(regions=("region-b",)), id="regions"),
        pytest.param(TenantRules(gpu_types=(GpuTypeId("small"),)), id="gpu types"),
    ],
)
def test_a_tenant_runs_where_its_rules_allow_and_others_run_anywhere(rules: TenantRules) -> None:
    fleet = _fleet(rules)
    offered = {tenant: fleet.machine.quote_job(spec(tenant=TenantId(tenant)), fleet.now_us) for tenant in ("gold", "iron")}
    gold, iron = offered["gold"], offered["iron"]
    assert isinstance(gold, Quote) and gold.chosen is not None and gold.chosen.site_id == B
    assert [(one.reason, one.pools) for one in gold.rejections] == [(Reason.TENANT_NOT_ALLOWED, 1)]
    assert isinstance(iron, Quote) and iron.chosen is not None and iron.chosen.site_id == A and not iron.rejections
    fleet.submit(spec(tenant=GOLD))
    (job,) = fleet.jobs.values()
    assert job.attempts[-1].site_id == B


def test_what_the_job_asks_for_does_not_lift_them() -> None:
    """It waits, and the place that it named says why: nothing that its owner can submit in its stead would go there."""
    fleet = _fleet(TenantRules(sites=(B,)))
    fleet.submit(spec(tenant=GOLD, constraints=Constraints(sites=(A,))))
    (job,) = fleet.jobs.values()
    assert job.state is JobState.QUEUED
    quote = fleet.machine.quote_job(spec(tenant=GOLD, constraints=Constraints(sites=(A,))), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is None
    assert {one.reason: one.pools for one in quote.rejections} == {Reason.TENANT_NOT_ALLOWED: 1, Reason.SITE_NOT_ALLOWED: 1}


def test_after_a_restart_with_other_rules_what_waits_goes_by_them() -> None:
    fleet = _fleet(TenantRules(sites=(SiteId("elsewhere"),)))
    fleet.submit(spec(tenant=GOLD))
    (job,) = fleet.jobs.values()
    assert job.state is JobState.QUEUED
    policy = replace(fleet.policy, tenant_rules={GOLD: TenantRules(sites=(A,))})
    fleet.machine = restore(fleet.machine.snapshot(), policy, GPUS)
    fleet.wait(6, reporting=("a", "b"))
    assert fleet.jobs[job.job_id].attempts[-1].site_id == A
