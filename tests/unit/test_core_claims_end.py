"""Claims that end before their gang begins, claims beside each other, and what is said of them meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, JobId, SiteId, TenantId
from atoll.model.job import JobState, Priority
from atoll.model.placement import Awaits, Claim
from atoll.model.quote import Quote
from orchestrator.core import events
from orchestrator.core.claimed import ClaimDropped
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.endless_singles import Endless, crowded, of_steps
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site

NORMAL = Priority.NORMAL


def _waiting(*, gang_size: int = 8, gpus: int = 8, steps: int = 20, policy: Policy | None = None) -> tuple[Endless, JobId]:
    """A gang that has claimed a block in which long work goes on."""
    endless = crowded(gpus=gpus, priority=NORMAL, steps=400, backlog=4, policy=policy)
    gang = endless.submit(of_steps(steps, gang_size=gang_size))
    for _ in range(60):
        if endless.machine.context.state.claims:
            break
        endless.advance()
    assert _claims(endless) and not endless.has_begun(gang)
    return endless, gang


def _claims(endless: Endless) -> list[Claim]:
    return [held.block for held in endless.machine.context.state.claims.values()]


def _dropped(endless: Endless, since: int) -> list[str]:
    """Why claims were dropped in the steps from this one on."""
    return [one.reason for step in endless.fleet.steps[since:] for one in step.decisions if isinstance(one, ClaimDropped)]


@pytest.mark.parametrize("how", ["cordon", "drain"])
def test_a_closed_site_keeps_nothing_for_anybody(how: str) -> None:
    endless, gang = _waiting()
    fleet, since = endless.fleet, len(endless.fleet.steps)
    if how == "cordon":
        fleet.ask(events.SiteCordoned, actor="t", reason="", site_id=SiteId("a"))
    else:
        fleet.ask(events.SiteDrainRequested, actor="t", reason="", site_id=SiteId("a"), deadline_ms=600_000)
    assert _dropped(endless, since) == ["its site is closed"] and not _claims(endless)
    assert not any(slot.claimed_until_us for slot in endless.slots())
    fleet.wait(60, reporting=("a",))
    assert not _claims(endless), "nor is anything claimed there while it is closed"
    told = fleet.machine.deferral_of(gang)
    assert told is not None and told.claim is None
    fleet.ask(events.SiteUncordoned, actor="t", reason="", site_id=SiteId("a"))
    endless.until_begun(gang, fleet.now_us + 12 * endless.longest_us)


def test_a_site_that_comes_back_with_other_pools_has_no_claims_and_gets_new_ones() -> None:
    endless, gang = _waiting()
    fleet = endless.fleet
    fleet.happen(events.SiteDisconnected(site_id=SiteId("a"), session=fleet.agents[SiteId("a")].session))
    assert not endless.has_begun(gang)
    since = len(fleet.steps)
    fleet.connect(site("a", pool("p", gpus=8, nodes=2)), boot_id="again")
    assert _dropped(endless, since) == ["its slots are gone"]
    endless.until_begun(gang, fleet.now_us + 12 * endless.longest_us)


def test_a_gang_that_expires_while_it_waits_leaves_its_block_to_others() -> None:
    endless = crowded(priority=NORMAL, steps=400, backlog=4)
    since = len(endless.fleet.steps)
    gang = endless.submit(replace(of_steps(20, gang_size=8), start_timeout_ms=90_000))
    seen = False
    while endless.fleet.jobs[gang].state is JobState.QUEUED:
        endless.advance()
        seen = seen or bool(_claims(endless))
    assert endless.fleet.jobs[gang].state is JobState.EXPIRED and seen
    assert _dropped(endless, since)[-1] == "nobody of its class waits any more" and not _claims(endless)
    begun = len(endless.began_us)
    for _ in range(200):
        endless.advance()
    assert len(endless.began_us) > begun + 8, "singles go on in all slots"


def test_two_gangs_in_one_pool_keep_blocks_of_their_own_and_both_begin() -> None:
    endless = crowded(gpus=8, nodes=2, priority=NORMAL, backlog=6, policy=Policy(claims_share_milli=1_000))
    first = endless.submit(of_steps(20, gang_size=8))
    second = endless.submit(of_steps(24, gang_size=8))
    most = 0
    for _ in range(120):
        most = max(most, len(_claims(endless)))
        endless.advance()
    assert most == 2
    for gang in (first, second):
        endless.until_begun(gang, 12 * endless.longest_us)


def test_the_stronger_gang_takes_the_block_of_the_weaker_and_both_begin() -> None:
    endless = crowded(gpus=8, priority=NORMAL, steps=200, backlog=6, policy=Policy(preemptions_max=0))
    weak = endless.submit(of_steps(20, gang_size=4))
    for _ in range(80):
        if _claims(endless):
            break
        endless.advance()
    since = len(endless.fleet.steps)
    strong = endless.submit(of_steps(20, gang_size=8, priority=URGENT))
    for _ in range(80):
        if _dropped(endless, since):
            break
        endless.advance()
    assert "a gang of a higher priority or age needs it" in _dropped(endless, since)
    (claim,) = _claims(endless)
    assert claim.slots == 8
    endless.until_begun(strong, 12 * endless.longest_us)
    endless.until_begun(weak, 24 * endless.longest_us)


def test_a_block_that_is_kept_is_not_emptied_for_another_and_urgent_work_is_served_beside_it() -> None:
    endless, gang = _waiting(gang_size=2, gpus=4)
    urgent = endless.submit(of_steps(40, prompt="urgent", priority=URGENT))
    endless.until_begun(urgent, 4 * endless.longest_us)
    endless.until_begun(gang, 12 * endless.longest_us)


def test_a_restored_core_keeps_no_more_than_its_policy_means() -> None:
    endless, _ = _waiting()
    snapshot = endless.machine.snapshot()
    assert [one.claimed.block for one in restore(snapshot, endless.fleet.policy, GPUS).snapshot().claims] == _claims(endless)
    without = restore(snapshot, replace(endless.fleet.policy, claims_share_milli=0), GPUS)
    assert not without.snapshot().claims
    for _ in range(40):
        at_us = without.next_deadline()
        without.handle(events.TimerFired(), endless.fleet.now_us + 1 if at_us is None else at_us)
    assert not without.snapshot().claims


def test_the_gang_is_told_when_it_should_begin_and_others_what_they_wait_for() -> None:
    endless, gang = _waiting(steps=4_000)
    fleet = endless.fleet
    (claim,) = _claims(endless)
    quoted = fleet.machine.outlook(gang, fleet.jobs[gang].spec, fleet.now_us)
    assert isinstance(quoted, Quote) and quoted.chosen is not None and quoted.eta is not None
    assert quoted.turn_us == 0
    free_us = max(slot.busy_until_us for slot in endless.slots())
    assert abs(quoted.eta.begin_p50_us - max(free_us, claim.begins_us)) < 10 * SECOND
    while all(slot.attempts for slot in endless.slots()):
        endless.advance()
    asked = of_steps(400, prompt="as long as the gang waits", priority=BATCH)
    other = fleet.machine.quote_job(asked, fleet.now_us)
    assert isinstance(other, Quote) and other.chosen is not None and other.chosen.wait_us
    assert other.chosen.awaits is Awaits.GANG or any(one.awaits is Awaits.GANG for one in other.others)


def test_a_block_that_is_late_is_not_looked_for_all_the_time() -> None:
    endless, gang = _waiting()
    fleet = endless.fleet
    (claim,) = _claims(endless)
    fleet.wait((claim.begins_us - fleet.now_us) / SECOND + 16, reporting=("a",))
    assert not endless.has_begun(gang)
    before = len(fleet.steps)
    fleet.wait(10, reporting=("a",))
    assert len(fleet.steps) - before < 50, "ten reports, ten ticks, and a look every two seconds"


def test_a_deferral_that_told_of_a_claim_is_told_anew_without_it() -> None:
    """The gang loses its block to one that is stronger, and may not claim another: it must not go on saying that slots are kept for it."""
    endless, weak = _waiting(policy=Policy(preemptions_max=0))
    told = endless.fleet.machine.deferral_of(weak)
    assert told is not None and told.claim is not None
    strong = endless.submit(replace(of_steps(30, gang_size=8, priority=URGENT), tenant=TenantId("other")))
    for _ in range(200):
        if endless.has_begun(strong) or endless.has_begun(weak):
            break
        told, kept = endless.fleet.machine.deferral_of(weak), _claims(endless)
        assert told is None or told.claim is None or told.claim in kept, "what is said to be kept is kept"
        endless.advance()


def test_work_that_is_let_in_leaves_the_model_of_the_gang_where_it_is() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m", 40), model("x", 40)))
    fleet.agents[SiteId("a")].disk.update(("m", "x"))
    fleet.warm_gang("a", "p-0", 0, 2, "m", 40)
    fleet.warm("a", "p-0", 0, "x", 30)
    fleet.report("a")
    endless = Endless(fleet, lambda number: of_steps(20), backlog=0)
    long = endless.submit(of_steps(4_000, "x", prompt="long"))
    gang = endless.submit(of_steps(20, gang_size=2))
    assert _claims(endless) and endless.has_begun(long)
    replicas = [set(slot.replicas) for slot in endless.slots()]
    short = endless.submit(of_steps(2, "x", prompt="short"))
    assert all(before <= set(slot.replicas) for before, slot in zip(replicas, endless.slots(), strict=True))
    (key,) = [key for key in fleet.agents[SiteId("a")].attempts if key.job_id == long]
    fleet.end_attempt("a", AttemptKey(job_id=key.job_id, ordinal=key.ordinal), AttemptState.SUCCEEDED)
    endless.until_begun(gang, 60 * SECOND)
    endless.until_begun(short, 600 * SECOND)


def test_who_waits_for_a_slot_that_was_kept_begins_in_the_step_in_which_it_is_not() -> None:
    endless, gang = _waiting(gang_size=8, gpus=8)
    fleet = endless.fleet
    while all(slot.attempts for slot in endless.slots()):
        endless.advance()
    idle = [slot for slot in endless.slots() if not slot.attempts]
    waiting = [job.job_id for job in fleet.jobs.values() if job.state is JobState.QUEUED and job.spec.gang_size == 1]
    assert idle and len(waiting) >= len(idle) and not endless.has_begun(gang)
    fleet.ask(events.JobCancelRequested, tenant=fleet.jobs[gang].spec.tenant, job_id=gang, reason="")
    assert all(slot.attempts for slot in idle), "not when they look the next time"


@pytest.mark.parametrize(("spread_milli", "let_in"), [(1_000, True), (2_000, False)])
def test_what_is_let_in_is_over_in_time_even_if_it_takes_as_long_as_most_do(spread_milli: int, let_in: bool) -> None:
    """The policy says how long 95 % take of their prediction: what may take too long by that is not let in."""
    endless = crowded(gpus=2, priority=NORMAL, steps=400, backlog=0, policy=Policy(spread_milli=spread_milli))
    while any(slot.attempts for slot in endless.slots()):
        endless.advance()
    endless.submit(of_steps(1_000, prompt="long"))
    endless.submit(of_steps(20, gang_size=2))
    assert len(_claims(endless)) == 1
    short = endless.submit(of_steps(600, prompt="six tenths of what is left"))
    assert endless.has_begun(short) is let_in
