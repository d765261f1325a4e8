"""Whoever waits behind others is looked at when a place elsewhere gets better, in whatever way: and is told why it was moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import AttemptKey, ModelId, Ordinal, SiteId
from atoll.model.job import JobState
from atoll.model.limits import ATTEMPTS_PER_JOB_MAX
from atoll.model.report import AttemptProgress
from atoll.model.site import SiteRuntime
from orchestrator.core import events, invariants
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from orchestrator.core.residency import Target
from tests.unit.fleet_of_machines import GPUS, URGENT, Fleet, in_regions, model, pool, site, spec

_LONG = replace(spec().shape, steps=1_000)
_ONLY_B = in_regions("region-b")


def _fleet(policy: Policy | None = None, *, gpus_at_b: int = 1) -> Fleet:
    """Model m is warm at a, on one GPU; b has nothing yet. Weights come slowly."""
    sites = (site("a", pool("p", gpus=1)), site("b", pool("p", gpus=gpus_at_b)))
    fleet = Fleet(*sites, models=(model("m", 70), model("n", 70)), policy=policy)
    fleet.warm("a", "p-0", 0, "m", 70)
    fleet.report("a")
    return fleet


def _line_at_a(fleet: Fleet) -> AttemptKey:
    """One job executes at a, another is bound behind it."""
    fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(2)))
    first, second = fleet.agents[SiteId("a")].attempts
    fleet.running("a", first)
    assert not fleet.agents[SiteId("a")].attempts[second].stop
    return second


def _came_free() -> tuple[Fleet, Callable[[], object]]:
    fleet = _fleet()
    fleet.warm("b", "p-0", 0, "m", 70)
    fleet.report("b")
    fleet.submit(spec("m", shape=_LONG, constraints=_ONLY_B))
    (taken,) = fleet.agents[SiteId("b")].attempts
    fleet.running("b", taken)
    return fleet, lambda: fleet.end_attempt("b", taken)


def _model_came() -> tuple[Fleet, Callable[[], object]]:
    fleet = _fleet()

    def comes() -> None:
        fleet.warm("b", "p-0", 0, "m", 70)
        fleet.report("b")

    return fleet, comes


def _connected() -> tuple[Fleet, Callable[[], object]]:
    fleet = _fleet()
    fleet.warm("b", "p-0", 0, "m", 70)
    agent = fleet.agents[SiteId("b")]
    fleet.happen(events.SiteDisconnected(site_id=SiteId("b"), session=agent.session))
    return fleet, lambda: fleet.connect(agent.site)


def _uncordoned() -> tuple[Fleet, Callable[[], object]]:
    fleet = _fleet()
    fleet.warm("b", "p-0", 0, "m", 70)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    fleet.report("b")
    return fleet, lambda: fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")


def _breaker_closed() -> tuple[Fleet, Callable[[], object]]:
    """The probe runs another model, so that the slot of m was free all the time."""
    fleet = _fleet(Policy(breaker_failures=1, breaker_pause_ms=1_000), gpus_at_b=2)
    fleet.warm("b", "p-0", 0, "n", 70)
    fleet.warm("b", "p-0", 1, "m", 70)
    fleet.report("b")
    fleet.submit(spec("n", constraints=_ONLY_B))
    (bad,) = fleet.agents[SiteId("b")].attempts
    fleet.end_attempt("b", bad, AttemptState.FAILED, FailureKind.EXECUTION_FAILED)
    fleet.ask(events.JobCancelRequested, tenant=fleet.job(bad.job_id).spec.tenant, job_id=bad.job_id, reason="")
    fleet.submit(spec("n", prompt="probe", constraints=_ONLY_B))

    def closes() -> None:
        fleet.wait(2, reporting=("a", "b"))
        (probe,) = fleet.agents[SiteId("b")].attempts
        fleet.running("b", probe)
        assert not any(told.stop for told in fleet.agents[SiteId("a")].attempts.values())
        fleet.end_attempt("b", probe)

    return fleet, closes


def _weights_came() -> tuple[Fleet, Callable[[], object]]:
    fleet = _fleet()

    def comes() -> None:
        fleet.agents[SiteId("b")].disk.add("m")
        fleet.report("b")

    return fleet, comes


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_came_free, "b/p has a slot that came free: "),
        (_model_came, "b/p has the model in memory now: "),
        (_connected, "b/p connected: "),
        (_uncordoned, "b/p was uncordoned: "),
        (_breaker_closed, "b/p works again: "),
        (_weights_came, "b/p has the weights at its site now: "),
    ],
)
def test_who_waits_is_moved_when_a_place_gets_better_and_is_told_why(
    prepare: Callable[[], tuple[Fleet, Callable[[], object]]], words: str
) -> None:
    fleet, happens = prepare()
    second = _line_at_a(fleet)
    happens()
    assert fleet.agents[SiteId("a")].attempts[second].stop
    fleet.end_attempt("a", second, AttemptState.STOPPED)
    moved, placed = fleet.job(second.job_id).attempts
    assert (moved.site_id, placed.site_id) == ("a", "b")
    assert moved.failure is not None
    assert moved.failure.kind is FailureKind.MOVED
    assert moved.failure.message.startswith(words)
    assert " s better (" in moved.failure.message


def _free_later(gpus: int, policy: Policy | None = None) -> tuple[Fleet, list[AttemptKey]]:
    """Two lines at a, while b, where the model is warm on so many GPUs, is cordoned."""
    sites = (site("a", pool("p", gpus=2)), site("b", pool("p", gpus=gpus)))
    fleet = Fleet(*sites, models=(model("m", 70), model("n", 70)), policy=policy)
    for name, slots in (("a", 2), ("b", gpus)):
        for slot in range(slots):
            fleet.warm(name, "p-0", slot, "m", 70)
        fleet.report(name)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(4)))
    attempts = fleet.agents[SiteId("a")].attempts
    assert len(attempts) == 4
    by_slot: dict[int, list[AttemptKey]] = {}
    for key, told in attempts.items():
        by_slot.setdefault(told.slot.index, []).append(key)
    for first, _ in by_slot.values():
        fleet.running("a", first)
    return fleet, [second for _, second in by_slot.values()]


def _stopped(fleet: Fleet) -> list[AttemptKey]:
    return [key for key, told in fleet.agents[SiteId("a")].attempts.items() if told.stop]


def test_the_slot_is_kept_for_who_is_moved_to_it_until_the_attempt_has_stopped() -> None:
    fleet, waiting = _free_later(1)
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    (moved,) = _stopped(fleet)
    assert moved in waiting, "one slot, one move"
    # Whoever comes meanwhile, also with more urgency, does not take it; nor is it promised twice.
    fleet.submit(spec("m", prompt="urgent", shape=_LONG, priority=URGENT, constraints=_ONLY_B))
    fleet.report("b")
    assert not fleet.agents[SiteId("b")].attempts
    assert _stopped(fleet) == [moved]
    fleet.end_attempt("a", moved, AttemptState.STOPPED)
    first = next(iter(fleet.agents[SiteId("b")].attempts))
    assert first.job_id == moved.job_id


def test_a_slot_that_is_kept_in_vain_is_there_for_others_again() -> None:
    fleet, _ = _free_later(1, Policy(silent_after_ms=5_000))
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    fleet.submit(spec("m", prompt="other", constraints=_ONLY_B))
    assert not fleet.agents[SiteId("b")].attempts
    fleet.wait(6, reporting=("b",))
    assert fleet.agents[SiteId("b")].attempts, "a said nothing for as long as a site may be silent"


def test_who_waits_for_its_turn_has_the_slot_before_anybody_is_moved_also_if_many_are_looked_at_first() -> None:
    """More kinds of jobs that can go nowhere than are looked at in one step, then one that waits for b."""
    fleet, _ = _free_later(1)
    nowhere = in_regions("nowhere")
    fleet.submit(*(spec("m", shape=replace(_LONG, width=64 + 8 * number), constraints=nowhere) for number in range(70)))
    fleet.wait(0.1)
    fleet.submit(spec("m", prompt="waits", shape=_LONG, constraints=_ONLY_B))
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    fleet.wait(0.1)
    (there,) = fleet.agents[SiteId("b")].attempts.values()
    assert there.spec.prompt == "waits"
    assert not _stopped(fleet)


@pytest.mark.parametrize("moves_max", [1, 2])
def test_a_job_is_moved_so_often_at_most_also_if_it_was_in_vain(moves_max: int) -> None:
    fleet = _fleet(Policy(moves_max=moves_max))
    fleet.warm("b", "p-0", 0, "m", 70)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    fleet.report("b")
    behind = _line_at_a(fleet)
    for moved in (*[True] * moves_max, False):
        fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
        assert fleet.agents[SiteId("a")].attempts[behind].stop is moved
        fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
        if moved:
            fleet.end_attempt("a", behind, AttemptState.STOPPED)
            behind = fleet.job(behind.job_id).attempts[-1].key
            assert behind in fleet.agents[SiteId("a")].attempts, "b is closed again, so it waits at a as before"


def test_a_result_that_crosses_the_stop_counts_and_the_slot_is_free_again() -> None:
    fleet, waiting = _free_later(1)
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    (moved,) = _stopped(fleet)
    fleet.end_attempt("a", moved)
    assert fleet.job(moved.job_id).state is JobState.SUCCEEDED
    assert _stopped(fleet) == [key for key in waiting if key != moved], "the other one that waits has it"


def test_a_restart_in_the_midst_of_a_move_changes_nothing() -> None:
    fleet, _ = _free_later(2)
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    assert len(_stopped(fleet)) == 2
    twin = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    invariants.check(twin)
    for key in _stopped(fleet):
        step = fleet.end_attempt("a", key, AttemptState.STOPPED)
        assert twin.handle(fleet.recording[-1][1], fleet.now_us) == step
    assert twin.snapshot() == fleet.machine.snapshot()
    assert len(fleet.agents[SiteId("b")].attempts) == 2


def test_a_job_that_would_fail_if_it_were_tried_once_more_is_left_where_it_is() -> None:
    fleet, waiting = _free_later(1)
    for key in waiting:
        entry = fleet.machine.context.state.jobs[key.job_id]
        ended = replace(entry.job.attempts[0], state=AttemptState.LOST)
        last = replace(entry.job.attempts[0], key=AttemptKey(job_id=key.job_id, ordinal=Ordinal(ATTEMPTS_PER_JOB_MAX)))
        tried = tuple(replace(ended, key=AttemptKey(job_id=key.job_id, ordinal=Ordinal(n))) for n in range(1, ATTEMPTS_PER_JOB_MAX))
        entry.job = replace(entry.job, attempts=(*tried, last))
    event = events.SiteUncordoned(request=fleet.request(), actor="t", reason="r", site_id=SiteId("b"))
    fleet.machine.handle(event, fleet.now_us)
    assert not fleet.machine.context.state.moves


def _loads_at_b(waiting: int, *, on_disk: bool) -> Fleet:
    """So many lines at a. Site b has as many free GPUs, each in a node of its own, of the model its weights at most, and is cordoned."""
    at_b = pool("p", nodes=waiting, gpus=1)
    sites = (site("a", pool("p", gpus=waiting)), site("b", at_b, origin_gbs=8))
    fleet = Fleet(*sites, models=(model("m", 20),), runtime=SiteRuntime.TWIN)
    for slot in range(waiting):
        fleet.warm("a", "p-0", slot, "m", 20)
    fleet.agents[SiteId("b")].disk = {"m"} if on_disk else set()
    fleet.report("a")
    fleet.report("b")
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id="b")
    shape = replace(_LONG, steps=3_000)
    fleet.submit(*(spec("m", prompt=str(number), shape=shape, simulated=True) for number in range(2 * waiting)))
    heads: dict[int, AttemptKey] = {}
    for key, told in fleet.agents[SiteId("a")].attempts.items():
        heads.setdefault(told.slot.index, key)
    assert len(heads) == waiting
    for key in heads.values():
        fleet.running("a", key)
    return fleet


def test_one_flight_of_weights_to_a_site_and_the_others_follow_when_they_are_there() -> None:
    fleet = _loads_at_b(3, on_disk=False)
    fleet.machine.context.residency.targets[ModelId("m")] = Target(gpu=9)  # as many copies as anybody may want
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    (first,) = _stopped(fleet)
    fleet.end_attempt("a", first, AttemptState.STOPPED)
    loads = fleet.job(first.job_id).attempts[-1]
    assert loads.cold
    assert not _stopped(fleet), "they would wait for the same flight"
    fleet.agents[SiteId("b")].disk_of[loads.slot.node_id] = {"m"}
    fleet.report("b")
    moved = 0
    while keys := _stopped(fleet):
        moved += len(keys)
        for key in keys:
            fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert moved == 2
    assert len({told.slot.node_id for told in fleet.agents[SiteId("b")].attempts.values()}) == 3


def test_a_copy_more_than_is_wanted_is_loaded_only_once_the_one_before_counts() -> None:
    fleet = _loads_at_b(3, on_disk=True)
    fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id="b")
    for _ in range(3):
        (key,) = _stopped(fleet)
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    assert not _stopped(fleet)
    assert len(fleet.agents[SiteId("b")].attempts) == 3


def test_the_load_of_a_site_is_shared_with_one_that_connects_in_a_few_steps_and_nobody_is_moved_twice() -> None:
    """Two hundred jobs are bound at a, half of them behind the other half, when b connects with as many GPUs."""
    both = [site(name, pool("p", nodes=25, gpus=4)) for name in "ab"]
    fleet = Fleet(*both, models=(model("m", 30),), checked=False)
    for one in both:
        for node in range(25):
            for gpu in range(4):
                fleet.warm(one.site_id, f"p-{node}", gpu, "m", 30)
        fleet.report(one.site_id)
    at_a, at_b = (fleet.agents[one.site_id] for one in both)
    fleet.happen(events.SiteDisconnected(site_id=at_b.site.site_id, session=at_b.session))
    fleet.submit(*(spec("m", prompt=str(number), shape=_LONG) for number in range(200)))
    fleet.wait(0.1)
    heads: dict[tuple[str, int], AttemptKey] = {}
    for key, told in at_a.attempts.items():
        heads.setdefault((told.slot.node_id, told.slot.index), key)
    assert (len(at_a.attempts), len(heads)) == (200, 100)
    fleet.report("a", progress=tuple(AttemptProgress(key=key, state=AttemptState.RUNNING, steps_done=1) for key in heads.values()))
    fleet.connect(at_b.site)
    at_b = fleet.agents[at_b.site.site_id]
    assert len(_stopped(fleet)) == 64, "so many in one step, that those who come are not kept waiting"
    assert len(fleet.machine.snapshot().bettered) == 1, "the rest is not forgotten"
    deadline_us = fleet.machine.next_deadline()
    assert deadline_us is not None
    assert deadline_us <= fleet.now_us
    fleet.happen(events.TimerFired())
    assert sorted(str(key) for key in _stopped(fleet)) == sorted(str(key) for key in at_a.attempts if key not in heads.values())
    for key in _stopped(fleet):
        fleet.end_attempt("a", key, AttemptState.STOPPED)
    invariants.check(fleet.machine)
    assert (len(at_a.attempts), len(at_b.attempts)) == (100, 100)
    assert len({(told.slot.node_id, told.slot.index) for told in at_b.attempts.values()}) == 100, "each has a GPU of its own"
    assert {len(job.attempts) for job in fleet.jobs.values()} == {1, 2}
    assert not fleet.machine.snapshot().bettered
