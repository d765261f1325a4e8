"""Who waits for weights on their way, and for no slot: nothing is stopped or kept for that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import ModelId, SiteId
from atoll.model.job import JobState
from atoll.model.placement import Awaits
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime
from tests.unit.fleet_of_machines import BATCH, GB, URGENT, Fleet, model, pool, site, spec


@pytest.mark.parametrize("gang_size", [1, 4])
def test_nobody_is_stopped_for_a_job_that_waits_for_weights_beside_free_slots(gang_size: int) -> None:
    """A batch job is at work on one of four nodes, the weights are on their way to the second: who waits for them has the third."""
    one = replace(site("a", pool("p", nodes=4, gpus=gang_size)), lan_bytes_per_s=10 * GB)
    fleet = Fleet(one, models=(model("m"), model("x", 30)), runtime=SiteRuntime.TWIN)
    fleet.agents[SiteId("a")].disk_of = {"p-0": {"m"}}
    fleet.report("a")
    long = Shape(width=2048, height=1024, steps=1_000)
    batch = spec(priority=BATCH, shape=long, gang_size=gang_size, simulated=True)
    fleet.submit(batch)
    (working,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", working)
    urgent = replace(batch, model_id=ModelId("x"), priority=URGENT)
    # Those of the first node share it: others wait.
    fleet.submit(*(replace(urgent, prompt=f"urgent {number}") for number in range(4)))
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert waiting and waiting[0].deferral is not None and waiting[0].deferral.waits_for is not None
    assert waiting[0].deferral.waits_for.awaits is Awaits.FETCH and waiting[0].deferral.claim is None
    fleet.wait(5, reporting=("a",))
    assert not any(told.stop for told in fleet.agents[SiteId("a")].attempts.values())
    assert not fleet.machine.context.state.claims
