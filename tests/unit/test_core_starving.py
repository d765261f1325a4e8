"""A batch job behind urgent work without end is served in the core, and the same after a restore at any moment."""

from __future__ import annotations

from atoll.model.ids import SiteId
from atoll.model.job import JobState
from orchestrator.core.machine import restore
from orchestrator.core.outputs import Step
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site, spec


def _served_after(policy: Policy, rounds: int, *, checked: bool = False) -> int | None:
    """How many urgent jobs were served, one at a time with others waiting, before the one batch job."""
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m"), model("x")), policy=policy)
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(*(spec(prompt=f"first {number}", priority=URGENT) for number in range(6)))
    fleet.submit(spec("x", prompt="batch", priority=BATCH))
    for served in range(rounds):
        fleet.submit(spec(prompt=f"urgent {served}", priority=URGENT))
        snapshot, begun, taken = fleet.machine.snapshot(), len(fleet.recording), len(fleet.steps)
        for key in list(fleet.agents[SiteId("a")].attempts)[:1]:
            fleet.end_attempt("a", key, after_us=SECOND)
        fleet.report("a")
        if checked:
            twin = restore(snapshot, policy, GPUS)
            steps: list[Step] = [twin.handle(event, now_us) for now_us, event in fleet.recording[begun:]]
            assert steps == fleet.steps[taken:]
            assert twin.snapshot() == fleet.machine.snapshot()
        (batch,) = [job for job in fleet.jobs.values() if job.spec.priority is BATCH]
        if batch.state is JobState.PLACED:
            return served
    return None


def test_it_waits_for_as_long_as_the_policy_says_and_not_for_ever() -> None:
    patient = Policy(ageing_ms=30_000, aged_every=4, preemptions_max=0)
    served = _served_after(patient, 60, checked=True)
    assert served is not None and 28 <= served <= 40
    assert _served_after(Policy(ageing_ms=10**8, preemptions_max=0), 60) is None, "that is what ageing prevents"
