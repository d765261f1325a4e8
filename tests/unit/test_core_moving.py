"""Re-placement and regret: who waits behind others goes to a slot that came free, and who has no second place goes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import AttemptKey, ModelId, SiteId
from atoll.model.job import JobState
from orchestrator.core import events
from orchestrator.core.events import TimerFired
from orchestrator.core.machine import restore
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, Fleet, in_regions, model, pool, site, spec

_LONG = replace(spec().shape, steps=1_000)


def _two_sites(policy: Policy | None = None) -> Fleet:
    """One GPU each, the model warm; loading it anew would take longer than any wait here."""
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)), models=(model("m", 70),), policy=policy)
    for name in "ab":
        fleet.warm(name, "p-0", 0, "m", 70)
        fleet.report(name)
    return fleet


def _behind(fleet: Fleet) -> tuple[str, AttemptKey, AttemptKey]:
    """A site with two attempts: its name, the one that executes and the one behind it."""
    for name, agent in fleet.agents.items():
        if len(agent.attempts) == 2:
            first, second = agent.attempts
            return name, first, second
    raise AssertionError("no site has two attempts")


def _full(fleet: Fleet) -> tuple[str, str, AttemptKey]:
    """Three long jobs on two GPUs: the site with two of them, the other, and the attempt that waits."""
    fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(3)))
    name, first, second = _behind(fleet)
    other = "b" if name == "a" else "a"
    for where, key in ((name, first), (other, next(iter(fleet.agents[SiteId(other)].attempts)))):
        fleet.running(where, key)
    return name, other, second


def test_an_attempt_that_waits_is_moved_to_a_slot_that_came_free() -> None:
    fleet = _two_sites()
    name, other, second = _full(fleet)
    fleet.end_attempt(other, next(iter(fleet.agents[SiteId(other)].attempts)))
    assert fleet.agents[SiteId(name)].attempts[second].stop
    fleet.end_attempt(name, second, AttemptState.STOPPED)
    job = fleet.job(second.job_id)
    assert [attempt.site_id for attempt in job.attempts] == [name, other]
    failure = job.attempts[0].failure
    assert failure is not None and failure.kind is FailureKind.MOVED and "came free" in failure.message


def _line_at_a(usd_micros: tuple[int, int], deadline_ms: int = 0) -> tuple[Fleet, AttemptKey]:
    """Both sites are at work, b for much longer; one more job is bound behind the work at a. Only what they cost differs."""
    sites = (site(name, replace(pool("p", gpus=1), usd_micros_per_gpu_hour=usd)) for name, usd in zip("ab", usd_micros, strict=True))
    fleet = Fleet(*sites, models=(model("m", 70),), policy=Policy(silent_after_ms=10**9))
    for name in "ab":
        fleet.warm(name, "p-0", 0, "m", 70)
        fleet.report(name)
    for name, steps in (("a", 200), ("b", 1_000)):
        fleet.submit(spec(prompt=name, shape=replace(spec().shape, steps=steps), constraints=in_regions(f"region-{name}")))
        fleet.running(name, next(iter(fleet.agents[SiteId(name)].attempts)))
    fleet.submit(spec(prompt="behind", deadline_ms=deadline_ms))
    (job,) = [job for job in fleet.jobs.values() if job.spec.prompt == "behind"]
    assert [attempt.site_id for attempt in job.attempts] == ["a"]
    return fleet, job.attempts[0].key


@pytest.mark.parametrize(
    ("usd_micros", "moves"), [((500_000, 500_000), True), ((500_000, 4_000_000_000), False), ((1_200_000_000, 1_200_000_000), True)]
)
def test_what_both_places_cost_alone_decides_whether_to_move(usd_micros: tuple[int, int], *, moves: bool) -> None:
    fleet, key = _line_at_a(usd_micros)
    fleet.end_attempt("b", next(iter(fleet.agents[SiteId("b")].attempts)))
    assert fleet.agents[SiteId("a")].attempts[key].stop is moves


@pytest.mark.parametrize(("deadline_ms", "moves"), [(0, True), (3_600_000, False)])
def test_a_job_that_is_in_time_at_a_cheap_place_is_not_moved_to_a_dear_one_that_came_free(deadline_ms: int, *, moves: bool) -> None:
    fleet, key = _line_at_a((500_000, 40_000_000), deadline_ms)
    fleet.end_attempt("b", next(iter(fleet.agents[SiteId("b")].attempts)))
    assert fleet.agents[SiteId("a")].attempts[key].stop is moves


def test_nothing_that_began_is_moved_and_nobody_more_often_than_the_policy_allows() -> None:
    begun = _two_sites()
    name, other, second = _full(begun)
    begun.running(name, second)
    begun.end_attempt(other, next(iter(begun.agents[SiteId(other)].attempts)))
    assert not begun.agents[SiteId(name)].attempts[second].stop
    never = _two_sites(Policy(moves_max=0))
    name, other, second = _full(never)
    never.end_attempt(other, next(iter(never.agents[SiteId(other)].attempts)))
    assert not never.agents[SiteId(name)].attempts[second].stop


def test_a_small_gain_is_no_reason_to_move() -> None:
    fleet = _two_sites(Policy(move_gain_min_ms=3_600_000))
    name, other, second = _full(fleet)
    fleet.end_attempt(other, next(iter(fleet.agents[SiteId(other)].attempts)))
    assert not fleet.agents[SiteId(name)].attempts[second].stop


def test_who_begins_in_a_moment_stays_however_much_waits_behind_it() -> None:
    """Three stand one behind the other at a, the first of them nearly done, when b opens with a slot for each of the others."""
    sites = (site("a", pool("p", gpus=1)), site("b", pool("p", gpus=2)))
    fleet = Fleet(*sites, models=(model("m", 70),), policy=Policy(slot_depth=3))
    for name, slot in (("a", 0), ("b", 0), ("b", 1)):
        fleet.warm(name, "p-0", slot, "m", 70)
        fleet.report(name)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(3)))
    attempts = fleet.agents[SiteId("a")].attempts
    first, second, third = attempts
    fleet.running("a", first, steps=990)
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    assert [attempts[key].stop for key in (first, second, third)] == [False, False, True]


def test_those_for_whom_one_copy_more_does_not_pay_keep_nobody_from_a_slot_in_which_his_model_is() -> None:
    """Twenty kinds of jobs wait longest, and could load at b, from its memory, what has copies enough; then one whose model is there."""
    kinds = 20
    sites = (site("a", pool("p", nodes=3, gpus=7)), site("b", pool("p", gpus=1)))
    fleet = Fleet(*sites, models=(model("m", 40), model("n", 30)), checked=False)
    for slot in range(kinds):
        fleet.warm("a", f"p-{slot // 7}", slot % 7, "m", 40)
    for name, node, gpu in (("a", "p-2", 6), ("b", "p-0", 0)):
        fleet.warm(name, node, gpu, "n", 30)
    fleet.agents[SiteId("b")].disk.add("m")
    fleet.agents[SiteId("b")].host["p-0"] = {"m"}
    for name in "ab":
        fleet.report(name)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    fleet.submit(*(spec("m", prompt=str(number), shape=replace(_LONG, steps=80)) for number in range(kinds)))
    fleet.submit(spec("n", prompt="first", shape=replace(_LONG, steps=60)))
    attempts = fleet.agents[SiteId("a")].attempts
    for key in list(attempts):
        fleet.running("a", key)
    fleet.submit(*(spec("m", shape=replace(_LONG, width=64 + 8 * number, steps=20)) for number in range(kinds)))
    fleet.submit(spec("n", prompt="second"))
    assert len(attempts) == 2 * kinds + 2
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    assert [told.spec.prompt for told in attempts.values() if told.stop] == ["second"]


def test_waiting_jobs_come_before_moves() -> None:
    fleet = _two_sites()
    name, other, second = _full(fleet)
    fleet.submit(*(spec("m", prompt=f"more {number}", shape=_LONG) for number in range(2)))
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert waiting
    fleet.end_attempt(other, next(iter(fleet.agents[SiteId(other)].attempts)))
    assert not fleet.agents[SiteId(name)].attempts[second].stop


def test_who_has_no_second_place_gets_the_best_one_though_the_other_came_first() -> None:
    """Model m is warm at a and b, n at a only: m came first, and leaves the one slot of a to n."""
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)), models=(model("m", 30), model("n", 30)))
    for name, held in (("a", "m"), ("a", "n"), ("b", "m")):
        fleet.warm(name, "p-0", 0, held, 30)
    for name in "ab":
        fleet.report(name)
    first = spec("m", constraints=in_regions("region-a", "region-b"))
    fleet.submit(first, spec("n"))
    places = {job.spec.model_id: job.attempts[0].site_id for job in fleet.jobs.values()}
    assert places == {ModelId("m"): SiteId("b"), ModelId("n"): SiteId("a")}


def _one_slot_and_two(window_ms: int) -> Fleet:
    """Model m is warm at a and b, n at a only, x at c, which is for the first to come."""
    sites = (site(name, pool("p", gpus=1)) for name in "abc")
    fleet = Fleet(*sites, models=(model("m", 30), model("n", 30), model("x", 30)), arrival_window_ms=window_ms)
    for name, held in (("a", "m"), ("a", "n"), ("b", "m"), ("c", "x")):
        fleet.warm(name, "p-0", 0, held, 30)
    for name in "abc":
        fleet.report(name)
    fleet.now_us += 1_000_000
    return fleet


def _places(fleet: Fleet) -> dict[str, str]:
    return {job.spec.model_id: job.attempts[0].site_id for job in fleet.jobs.values() if job.attempts}


def test_jobs_that_come_one_by_one_within_the_window_are_placed_together_and_the_first_at_once() -> None:
    fleet = _one_slot_and_two(window_ms=10)
    fleet.submit(spec("x"))
    assert _places(fleet) == {"x": "c"}, "after a quiet moment nobody is held"
    fleet.now_us += 1_000
    fleet.submit(spec("m", constraints=in_regions("region-a", "region-b")))
    closes_us = fleet.machine.next_deadline()
    assert closes_us is not None
    assert fleet.now_us < closes_us < fleet.now_us + 10_000, "time is asked for when the window closes"
    fleet.now_us += 1_000
    fleet.submit(spec("n"))
    assert _places(fleet) == {"x": "c"}
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    step = fleet.happen(TimerFired(), closes_us - fleet.now_us)
    assert _places(fleet) == {"x": "c", "m": "b", "n": "a"}, "m came first, and leaves the one slot of a to n"
    assert again.handle(TimerFired(), fleet.now_us) == step, "what is held outlives a restart"


def test_a_class_that_waits_is_not_held_by_another_of_its_kind_that_comes_within_the_window() -> None:
    """Two wait for the one slot that has x; one more comes just before it is free."""
    fleet = _one_slot_and_two(window_ms=10)
    only_c = in_regions("region-c")
    fleet.submit(*(spec("x", prompt=str(number), shape=_LONG, constraints=only_c) for number in range(3)))
    fleet.now_us += 20_000
    fleet.submit(spec("m"))
    fleet.now_us += 1_000
    fleet.submit(spec("x", prompt="one more", shape=_LONG, constraints=only_c))
    waiting = [job.job_id for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert len(waiting) == 2
    first = next(iter(fleet.agents[SiteId("c")].attempts))
    fleet.running("c", first)
    fleet.end_attempt("c", first)
    assert fleet.job(waiting[0]).state is not JobState.QUEUED, "in the very step in which the slot came free"


def test_what_a_baseline_placed_is_neither_moved_nor_ordered_for_the_sake_of_cost() -> None:
    for name in ("round-robin", "random", "least-loaded"):
        fleet = _two_sites(POLICIES[name])
        fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(4)))
        for where, agent in fleet.agents.items():
            if agent.attempts:
                fleet.running(where, next(iter(agent.attempts)))
        some = next(where for where, agent in fleet.agents.items() if agent.attempts)
        for key in list(fleet.agents[some].attempts):
            fleet.end_attempt(some, key)
        assert not any(told.stop for agent in fleet.agents.values() for told in agent.attempts.values()), name
