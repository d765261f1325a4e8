"""Gangs beside singles without end: each gets its block within a time that only what was there before it decides."""

from __future__ import annotations

import random
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.ids import JobId, SiteId
from atoll.model.job import JobState, Priority
from orchestrator.core import events
from orchestrator.core.claimed import ClaimDropped
from orchestrator.core.machine import restore
from orchestrator.core.outputs import AttemptPreempted
from orchestrator.core.placement.policy import Policy
from tests.unit.endless_singles import Endless, crowded, of_steps
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site


@pytest.mark.parametrize("size", [2, 4, 8])
def test_an_urgent_gang_behind_batch_singles_without_end_begins_after_a_step(size: int) -> None:
    endless = crowded()
    gang = endless.submit(of_steps(20, gang_size=size, priority=URGENT))
    waited_us = endless.until_begun(gang, 60 * SECOND)
    assert waited_us <= endless.longest_us // 40 + 3 * SECOND
    preempted = [one for step in endless.fleet.steps for one in step.decisions if isinstance(one, AttemptPreempted)]
    assert preempted and all(one.for_job == gang for one in preempted)


@pytest.mark.parametrize("priority", [Priority.NORMAL, BATCH])
def test_a_gang_among_its_equals_without_end_begins_when_what_was_bound_there_has_ended(priority: Priority) -> None:
    endless = crowded(priority=priority, backlog=6)
    gang = endless.submit(of_steps(20, gang_size=8, priority=priority))
    endless.until_begun(gang, 4 * endless.longest_us + 10 * SECOND)
    assert not [one for step in endless.fleet.steps for one in step.decisions if isinstance(one, AttemptPreempted)]


def test_without_claims_it_would_starve() -> None:
    endless = crowded(policy=Policy(claims_share_milli=0, preemptions_max=0))
    gang = endless.submit(of_steps(20, gang_size=8, priority=URGENT))
    with pytest.raises(AssertionError, match="waits for more than"):
        endless.until_begun(gang, 40 * endless.longest_us)


def test_an_aged_batch_gang_goes_before_urgent_singles_without_end() -> None:
    endless = crowded(priority=URGENT, policy=Policy(ageing_ms=120_000), backlog=20)
    gang = endless.submit(of_steps(20, gang_size=8, priority=BATCH))
    waited_us = endless.until_begun(gang, 600 * SECOND)
    assert waited_us >= 120 * SECOND


def test_a_gang_with_singles_of_the_same_work_says_what_it_claims_and_short_work_is_let_in() -> None:
    endless = crowded(priority=Priority.NORMAL, steps=400, backlog=0)
    fleet = endless.fleet
    long = endless.submit(of_steps(400, prompt="long"))
    gang = endless.submit(of_steps(20, gang_size=8))
    while sum(len(slot.attempts) for slot in endless.slots()) > 1:
        endless.advance()
    (claim,) = [one.block for one in fleet.machine.context.state.claims.values()]
    deferral = fleet.machine.deferral_of(gang)
    assert deferral is not None and deferral.claim == claim
    assert (claim.node_id, claim.first, claim.slots) == ("p-0", 0, 8) and claim.begins_us > fleet.now_us
    short = endless.submit(of_steps(5, prompt="short"))
    assert fleet.jobs[short].state is JobState.PLACED and fleet.jobs[gang].state is JobState.QUEUED
    as_long = endless.submit(of_steps(400, prompt="as long"))
    assert fleet.jobs[as_long].state is JobState.QUEUED
    assert not endless.has_begun(gang) and endless.has_begun(long)
    waited_us = endless.until_begun(gang, 4 * endless.longest_us)
    assert fleet.jobs[gang].accepted_us + waited_us <= claim.begins_us + 3 * SECOND, "what was let in did not put it off"


def test_urgent_singles_pass_a_claim_that_is_not_aged() -> None:
    endless = crowded(priority=Priority.NORMAL, steps=400, backlog=0)
    endless.submit(of_steps(400, prompt="long"))
    endless.submit(of_steps(20, gang_size=8))
    for _ in range(40):
        endless.advance()
    urgent = endless.submit(of_steps(400, prompt="urgent", priority=URGENT))
    assert endless.has_begun(urgent)


def test_a_claim_ends_with_its_job_and_says_so() -> None:
    endless = crowded(priority=Priority.NORMAL, backlog=4)
    gang = endless.submit(of_steps(20, gang_size=8))
    for _ in range(60):
        if endless.machine.context.state.claims:
            break
        endless.advance()
    assert endless.machine.context.state.claims and not endless.has_begun(gang)
    job = endless.fleet.jobs[gang]
    endless.fleet.ask(events.JobCancelRequested, tenant=job.spec.tenant, job_id=gang, reason="")
    dropped = [one for one in endless.fleet.steps[-1].decisions if isinstance(one, ClaimDropped)]
    assert len(dropped) == 1 and not endless.machine.context.state.claims
    assert not any(slot.claimed_until_us for slot in endless.slots())


def test_a_burst_of_gangs_leaves_three_quarters_of_a_pool_open() -> None:
    """But for blocks in which gangs execute already: nobody else could have them meanwhile."""
    endless = crowded(gpus=8, nodes=2, priority=Priority.NORMAL, backlog=4)
    for steps in range(20, 28):
        endless.submit(of_steps(steps, gang_size=2))
    seen = set()
    for _ in range(100):
        endless.advance()
        lives = endless.machine.context.state.sites[endless.name].attempts
        kept = [slot for slot in endless.slots() if slot.claimed_until_us]
        seen.add(sum(1 for slot in kept if not slot.attempts or lives[slot.attempts[0]].spec.gang_size == 1))
    assert max(seen) == 4


def test_a_gang_makes_room_for_urgent_work_when_that_pays() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m"),))
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.warm("a", "p-0", 0, "m")
    fleet.warm("a", "p-0", 1, "m")
    fleet.report("a")
    endless = Endless(fleet, lambda number: of_steps(20), backlog=0)
    gang = endless.submit(of_steps(400, gang_size=2, priority=BATCH))
    endless.advance()
    urgent = endless.submit(of_steps(20, priority=URGENT))
    waited_us = endless.until_begun(urgent, endless.longest_us // 4)
    assert waited_us < 5 * SECOND and fleet.jobs[gang].state is JobState.QUEUED
    endless.until_begun(gang, 10 * endless.longest_us)


MIX = st.lists(st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), st.integers(5, 80)), min_size=1, max_size=8)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MIX, st.integers(0, 2**16), st.integers(1, 2))
def test_every_gang_begins_within_a_bound_that_what_comes_later_does_not_move(
    mix: list[tuple[int, int, int]], seed: int, nodes: int
) -> None:
    """Of one tenant and priority: for itself and each gang that waits before it, what may be bound to a slot, the gang, and an attempt
    that was let in; an attempt for each single before it. Singles keep coming; executions take 0.7 to 1.4 times what was predicted."""
    chance = random.Random(seed)
    endless = crowded(nodes=nodes, priority=Priority.NORMAL, backlog=6)
    endless.single = lambda number: of_steps(chance.randint(5, 80), prompt=f"s{number}")
    endless.factor_milli = lambda key: 700 + crc32(f"{seed} {key}".encode()) % 700
    fleet = endless.fleet
    waiting: dict[JobId, int] = {}
    for pause, size, steps in mix:
        if size > 1:
            before = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
            gangs = sum(1 for job in before if job.spec.gang_size > 1)
            gang = endless.submit(of_steps(steps, gang_size=size))
            waiting[gang] = (gangs + 1) * (fleet.policy.slot_depth + 2) + len(before) - gangs
        for _ in range(pause):
            endless.advance()
    for gang, turns in waiting.items():
        endless.until_begun(gang, turns * max(endless.longest_us, 60 * SECOND))
    assert endless.idle_longest_us <= (fleet.policy.slot_depth + 1) * endless.longest_us + 10 * SECOND


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 30), st.sampled_from([2, 4, 8]), st.sampled_from([URGENT, Priority.NORMAL]))
def test_a_restored_machine_goes_on_with_the_same_claims(cut: int, size: int, priority: Priority) -> None:
    endless = crowded(priority=Priority.NORMAL, backlog=4)
    endless.submit(of_steps(20, gang_size=size, priority=priority))
    for _ in range(cut):
        endless.advance()
    fleet = endless.fleet
    twin, since = restore(fleet.machine.snapshot(), fleet.policy, GPUS), len(fleet.recording)
    assert twin.snapshot() == fleet.machine.snapshot()
    for _ in range(12):
        endless.advance()
    for (at_us, event), step in zip(fleet.recording[since:], fleet.steps[since:], strict=True):
        assert twin.handle(event, at_us) == step
    assert twin.snapshot() == fleet.machine.snapshot()
