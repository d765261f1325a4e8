"""What a run costs, in calls of functions: they are the same on every machine, where times are not."""

from __future__ import annotations

from cProfile import Profile
from dataclasses import replace

import pytest

from sims.play.player import Player
from sims.play.scenario import SECOND_US, Scenario
from sims.traces.job import TraceJob
from tests.simulation.played import Rows, mixed, three_sites


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Loops are compiled before anything is counted."""
    Player(three_sites(), mixed(30), Rows()).play()


def calls(scenario: Scenario, jobs: list[TraceJob]) -> int:
    player, profile = Player(scenario, jobs, Rows()), Profile()
    profile.runcall(player.play)
    return sum(entry.callcount for entry in profile.getstats())


def wide(nodes: int) -> Scenario:
    """The three sites with so many nodes of eight GPUs each."""
    scenario = three_sites()
    sites = (replace(one, pools=tuple(replace(pool, nodes=nodes, gpus_per_node=8) for pool in one.pools)) for one in scenario.sites)
    return replace(scenario, sites=tuple(sites))


def of_a_silent_report(scenario: Scenario) -> float:
    """What a report costs that says nothing new: a minute more in which nothing happens, by its reports."""
    (first,) = mixed(1)
    runs = [calls(scenario, [first, replace(first, arrival_us=first.arrival_us + wait_s * SECOND_US)]) for wait_s in (120, 180)]
    return (runs[1] - runs[0]) / (60 * len(scenario.sites))


def test_a_job_is_bounded_work() -> None:
    assert calls(three_sites(), list(mixed(100))) < 17_000 * 100


def test_what_says_nothing_new_costs_next_to_nothing() -> None:
    assert of_a_silent_report(three_sites()) < 185
    # A fifth of the nodes is told again each second: of 64 GPUs more some 13, and each is looked at for whether it is as it was told.
    assert of_a_silent_report(wide(8)) < 230
