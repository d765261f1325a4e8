"""What befalls sites: jobs end once all the same, each kind shows where it should, and what befalls is the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agents.core.events import AttemptFinished, ReplicaLoaded, SlotLost, SlotReady
from agents.core.outputs import LoadReplica, RequestResync, RunAttempt, SendEvents, SendReport
from agents.twin.plant import Plant
from atoll.model.errors import FieldError
from atoll.model.ids import AttemptKey, JobId, Ordinal, SiteId, SlotRef
from atoll.model.site import SiteRuntime
from atoll.physics.coldstart import first_generation_us
from orchestrator.core.events import SessionRef
from orchestrator.core.placement.policy import Policy
from sims.play.player import Played, Player
from sims.play.site import PlayedSite
from sims.play.timeline import Timeline
from sims.play.weather import WEATHERS, Weather
from tests.simulation.played import CATALOGUE, AsPredicted, Law, Rows, mixed, three_sites
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, spec
from tests.unit.fleet_of_machines import site as site_of
from tests.unit.test_core_learning import placed, term

DAY_MILLI = 24 * 1_000


def played(weather: Weather, count: int = 200) -> tuple[Played, Rows]:
    rows = Rows()
    scenario = replace(three_sites(), weather=weather, sample_us=1_000_000)
    return Player(scenario, mixed(count), rows, checked=True).play(), rows


def test_a_site_that_nobody_hears_is_lost_and_its_jobs_end_elsewhere() -> None:
    found, rows = played(Weather(outages_per_day_milli=6 * DAY_MILLI, outage_s=400))
    assert found.jobs == len(rows.jobs) == sum(found.states.values()) and found.states["succeeded"] > 150
    assert {row.state for row in rows.sites} >= {"connected", "silent", "lost"}
    assert any(row.attempts > 1 for row in rows.jobs)


def test_nodes_that_are_taken_back_lose_what_runs_on_them() -> None:
    scenario = three_sites()
    spot = tuple(replace(one, preemptions_per_million_gpu_hours=5_000_000) for one in scenario.sites)
    rows = Rows()
    scenario = replace(scenario, sites=spot, weather=Weather(reclaims=True, reclaim_s=20))
    found = Player(scenario, mixed(300), rows, checked=True).play()
    assert found.jobs == len(rows.jobs) and found.states["succeeded"] > 200
    assert any(row.attempts > 1 and row.state == "succeeded" for row in rows.jobs)


def test_slow_sites_take_longer() -> None:
    calm, _ = played(Weather())
    slow = Weather(slow_per_day_milli=1_000_000, slow_s=86_400, slow_milli=3_000)
    found, rows = played(slow)
    _, quick = played(Weather())
    assert sum(row.execution_us for row in rows.jobs) > 2 * sum(row.execution_us for row in quick.jobs)
    assert found.digest != calm.digest


def test_maintenance_drains_a_site_and_opens_it_again() -> None:
    found, rows = played(Weather(maintenances_per_day_milli=10 * DAY_MILLI, maintenance_s=60))
    assert found.jobs == len(rows.jobs)
    seen = {row.state for row in rows.sites}
    assert "connected" in seen and seen & {"draining", "drained"}


def test_drift_is_small_and_the_same_for_the_same_seed() -> None:
    drifting = Weather(drift_milli=50)
    (first, one), (second, _) = played(drifting, 60), played(drifting, 60)
    _, calm = played(Weather(), 60)
    assert first.digest == second.digest
    assert sum(row.execution_us for row in one.jobs) == pytest.approx(sum(row.execution_us for row in calm.jobs), rel=0.2)


def _told(weather: Weather) -> tuple[Played, PlayedSite, list[tuple[int, int, bool]]]:
    """A run, and of each message of the first site when it was said, when it was heard, and whether it is a report."""
    player = Player(replace(three_sites(), weather=weather), mixed(60), Rows())
    (first, *_), said, heard = player.sites, dict[int, int](), list[tuple[int, int, bool]]()
    say, arrived = first._say, first._arrived_up

    def noted(command: SendReport | SendEvents | RequestResync) -> None:
        said[id(command)] = player.timeline.now
        kept.append(command)
        say(command)

    def came(session: SessionRef, command: SendReport | SendEvents | RequestResync) -> None:
        heard.append((said[id(command)], player.timeline.now, isinstance(command, SendReport)))
        arrived(session, command)

    kept: list[object] = []  # so that no other one gets its id
    first._say, first._arrived_up = noted, came  # type: ignore[method-assign]  # listened to
    return player.play(), first, heard


def test_reports_come_late_and_nothing_overtakes_them() -> None:
    late_ms = 800
    _, _, calm = _told(Weather())
    (way_us,) = {came_us - said_us for said_us, came_us, _ in calm}
    found, _, hazy = _told(Weather(reports_late_ms=late_ms))
    assert found.jobs == sum(found.states.values()) and found.states["succeeded"] > 40
    assert [said_us for said_us, _, _ in hazy] == sorted(said_us for said_us, _, _ in hazy)
    assert [came_us for _, came_us, _ in hazy] == sorted(came_us for _, came_us, _ in hazy)
    late_us = [came_us - said_us - way_us for said_us, came_us, _ in hazy]
    assert min(late_us) >= 0
    # Exponential lateness, and behind whatever is later: the mean is no less than that, but for its error.
    reports = [late for late, (_, _, is_report) in zip(late_us, hazy, strict=True) if is_report]
    assert sum(reports) / len(reports) > 1_000 * late_ms * (1 - 4 / len(reports) ** 0.5)


def test_lost_reports_are_as_many_as_are_said_to_be_and_no_end_is_among_them() -> None:
    lost = 0.3
    found, site, heard = _told(Weather(reports_lost_milli=round(1_000 * lost)))
    said = site.machine.state.report_seq
    came = sum(is_report for _, _, is_report in heard)
    assert abs(said - came - said * lost) < 4 * math.sqrt(said * lost * (1 - lost))
    assert found.states["succeeded"] > 40


def test_the_weathers_by_name_are_possible_and_others_are_named() -> None:
    for weather in WEATHERS.values():
        weather.check()
    with pytest.raises(FieldError, match=r"weather\.slow_milli is 0: expected"):
        Weather(slow_milli=0).check()


def test_a_plant_forgets_what_a_taken_node_was_doing() -> None:
    timeline, told = Timeline(), list[object]()
    plant = Plant(site_of("s", pool("p")), gpus=GPUS, truth=Law(10, exponential=False), timers=timeline, tell=told.append)
    one = next(iter(CATALOGUE.values()))
    node_id = pool("p").node_id(0)
    slots = [SlotRef(pool_id=pool("p").pool_id, node_id=node_id, index=index) for index in range(2)]
    key = AttemptKey(job_id=JobId("j"), ordinal=Ordinal(1))
    plant.perform(LoadReplica(slot=slots[0], model=one))
    timeline.run(1_000_000)
    plant.perform(RunAttempt(slot=slots[0], key=key, spec=spec(simulated=True), model=one, stop_after_ms=10**9, request_id=""))
    plant.perform(LoadReplica(slot=slots[1], model=one))
    plant.take(node_id)
    timeline.run(10_000_000)
    assert [type(event) for event in told].count(SlotLost) == 2
    assert sum(isinstance(event, ReplicaLoaded) for event in told) == 1
    assert not any(isinstance(event, AttemptFinished) for event in told)
    plant.give_back(node_id)
    assert [type(event) for event in told[-2:]] == [SlotReady, SlotReady]
    plant.perform(LoadReplica(slot=slots[0], model=one))
    timeline.run(20_000_000)
    assert isinstance(told[-1], ReplicaLoaded) or any(isinstance(event, ReplicaLoaded) for event in told[-3:])


def test_where_all_lasts_as_physics_say_a_new_process_takes_as_long_as_was_predicted_the_first_time_and_the_second() -> None:
    timeline, told = Timeline(), list[object]()
    plant = Plant(site_of("s", pool("p", gpus=1)), gpus=GPUS, truth=AsPredicted(), timers=timeline, tell=told.append)
    fleet = Fleet(site_of("s", pool("p", gpus=1)), policy=replace(Policy(), silent_after_ms=10**9), runtime=SiteRuntime.TWIN)
    slot = SlotRef(pool_id=pool("p").pool_id, node_id=pool("p").node_id(0), index=0)
    fleet.agents[SiteId("s")].fresh = {(slot.node_id, 0)}
    fleet.warm("s", slot.node_id, 0, "m")
    fleet.report("s")
    plant.take(slot.node_id)
    plant.give_back(slot.node_id)
    plant.perform(LoadReplica(slot=slot, model=model("m")))
    timeline.run(100_000_000)
    for first_us in (first_generation_us(), 0):
        attempt = placed(fleet, simulated=True)
        wanted = spec(simulated=True)
        plant.perform(RunAttempt(slot=slot, key=attempt.key, spec=wanted, model=model("m"), stop_after_ms=10**9, request_id=""))
        timeline.run(timeline.now + 1_000_000_000)
        assert isinstance(told[-1], AttemptFinished)
        assert told[-1].times.run_us == term(attempt, "init") + term(attempt, "execution")
        assert term(attempt, "init") == first_us
        fleet.end_attempt("s", attempt.key, times=told[-1].times)
