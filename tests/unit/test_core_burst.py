"""A burst of one model against stale reports: what was bound a moment ago counts at once, so that it does not land on one site."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from atoll.model.ids import GpuTypeId, SiteId
from atoll.model.job import Constraints, Job, JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec, SiteRuntime, SiteSpec
from atoll.packaged import load_packaged
from orchestrator.core import events
from orchestrator.core.placement.policy import Policy
from tests.bench.core import sites_of
from tests.unit.fleet_of_machines import Fleet, spec

JOBS = 500
# Cheaper and faster sites attract more than their share: as long as it is no multiple that a herd would make.
TIMES_THE_SHARE = 3
SITES = sites_of(1)
CATALOGUE = load_packaged()
POLICY = Policy(silent_after_ms=10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """A model, whether a replica of it is warm on each node at first, and the only GPU type that is allowed ("": any)."""

    model: ModelSpec
    warm: bool
    gpu: str = ""

    def pools(self, one: SiteSpec) -> list[PoolSpec]:
        """Those of a site that could run it."""
        return [
            pool
            for pool in one.pools
            if self.gpu in ("", pool.gpu_type) and CATALOGUE.gpus[pool.gpu_type].memory_bytes >= self.model.resident_bytes
        ]

    def play(self) -> list[Job]:
        """The jobs, once each of them is bound or told what it waits for. No report comes after the first one."""
        fleet = Fleet(*SITES, models=(self.model,), policy=POLICY, gpus=CATALOGUE.gpus, runtime=SiteRuntime.TWIN, checked=False)
        for agent in fleet.agents.values() if self.warm else ():
            for pool in agent.site.pools:
                for index in range(pool.nodes):
                    agent.disk_of[pool.node_id(index)] = {self.model.model_id}
                    agent.warm[(pool.node_id(index), 0)] = {self.model.model_id: self.model.resident_bytes}
            fleet.report(agent.site.site_id)
        only = Constraints(gpu_types=(GpuTypeId(self.gpu),) if self.gpu else ())
        one = spec(self.model.model_id, simulated=True, shape=self.model.default_shape, constraints=only)
        fleet.submit(*(replace(one, prompt=str(number)) for number in range(JOBS)))
        # A step has a budget of scorings; what is left goes on in the next, at once.
        while any(job.state is JobState.QUEUED and job.deferral is None for job in _heads(fleet)):
            fleet.happen(events.TimerFired())
        return list(fleet.jobs.values())


def _heads(fleet: Fleet) -> list[Job]:
    """Of each class that waits the first job: it carries what the class waits for."""
    queue, jobs = fleet.machine.context.queue, fleet.machine.context.state.jobs
    return [jobs[waiting.head[1]].job for waiting in queue.classes.values()]


def _model(name: str) -> ModelSpec:
    return next(model for model in CATALOGUE.models if model.model_id == name)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("gpu", ["", "H100-SXM"], ids=["any", "h100"])
@pytest.mark.parametrize("name", ["sdxl-base-1.0", "flux.1-dev"])
def test_a_burst_of_500_jobs_of_one_model_against_stale_reports_does_not_land_on_one_site(name: str, gpu: str, warm: bool) -> None:
    burst = Burst(model=_model(name), warm=warm, gpu=gpu)
    jobs = burst.play()
    assert len(jobs) == JOBS
    bound = [job.attempts[0] for job in jobs if job.attempts]
    assert len(bound) == JOBS or not warm, "what is warm on every node has room for all"
    # Cold, the largest site may be worth a short wait: when its first flight has landed, all of its nodes take copies.
    assert len(bound) >= JOBS // 4
    assert max(Counter((attempt.site_id, attempt.slot) for attempt in bound).values()) <= POLICY.slot_depth
    at: Counter[SiteId] = Counter(attempt.site_id for attempt in bound)
    usable = {one.site_id: sum(pool.slots for pool in burst.pools(one)) for one in SITES}
    fleet_slots = sum(usable.values())
    for one in SITES:
        # Cold, one node of a site fetches and takes what it holds; the other nodes wait for its copy.
        node = max((pool.gpus_per_node for pool in burst.pools(one)), default=0) * POLICY.slot_depth
        share = JOBS * usable[one.site_id] / fleet_slots
        assert at[one.site_id] <= usable[one.site_id] * POLICY.slot_depth
        assert at[one.site_id] <= max(TIMES_THE_SHARE * share, node), one.site_id
    able = sum(1 for slots in usable.values() if slots)
    # Of unequal ones few are better than a moment until the weights have landed at the cheapest.
    assert len(at) == able if gpu else len(at) > able // 8, "of equal GPUs every site takes some"
