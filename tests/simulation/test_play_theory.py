"""Runs against theory: queues of one server, processor sharing, and caches, for which formulas say what comes of them.

A run is compared twice: job by job with a schedule made by hand, which is exact for its arrivals and services, and by its mean with the
formula, within four standard errors. The schedule by hand meets the formula too, over a hundred times as many jobs: there the error is
small. Seeds are fixed: what is asserted of chance was decided by the first run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from agents.twin.plant import Plant
from sims.play.player import Player
from sims.results.rows import JobRow
from tests.simulation.played import Rows
from tests.simulation.theory import SECOND_US, Queue, Services, by_cycles, one_server, played_waits_us, queue

MEAN_US = 2 * SECOND_US
# Nine short jobs to one that takes eleven times as long, as pictures and films: a coefficient of variation of 1.5.
SHORT_US, LONG_US, SHORT_SHARE = SECOND_US, 11 * SECOND_US, 0.9
# The first job of a run finds nothing loaded: its fetch, staging and building take a microsecond each.
COLD_US = 3
NEVER_MS = 7 * 86_400_000


def constant(_: random.Random) -> int:
    return MEAN_US


def two_kinds(chance: random.Random) -> int:
    return SHORT_US if chance.random() < SHORT_SHARE else LONG_US


# Second moments, in square microseconds.
SQUARES = {constant: MEAN_US**2, two_kinds: round(SHORT_SHARE * SHORT_US**2 + (1 - SHORT_SHARE) * LONG_US**2)}


def residual_us(load: float, draw: Callable[[random.Random], int]) -> float:
    """W0: what is left on average of the job in service when another arrives."""
    return load / MEAN_US * SQUARES[draw] / 2


def as_by_hand(found_us: list[int], asked: Queue, *, setup_us: int = 0) -> tuple[int, ...]:
    """Job by job; the jobs that found the server idle."""
    schedule = asked.by_hand(setup_us=setup_us)
    late_us = [found - wanted for found, wanted in zip(found_us, schedule.waits_us, strict=True)]
    assert min(late_us) >= 0 and max(late_us) <= COLD_US
    return schedule.found_idle


@pytest.mark.parametrize("draw", [constant, two_kinds])
def test_waits_are_what_pollaczek_and_khinchine_say(draw: Callable[[random.Random], int]) -> None:
    """M/G/1: W = W0 / (1 - load)."""
    load = 0.5
    theory_us = residual_us(load, draw) / (1 - load)
    asked = queue(1_200, round(MEAN_US / load), draw, seed=1)
    _, waits_us = played_waits_us(one_server(), asked, Services(asked.services_us))
    found_idle = as_by_hand(waits_us, asked)
    assert by_cycles(waits_us, found_idle).agrees(theory_us)
    by_hand = queue(120_000, round(MEAN_US / load), draw, seed=2).by_hand(way_us=0)
    assert by_cycles(by_hand.waits_us, by_hand.found_idle).agrees(theory_us, error_max=0.03)


def test_waits_of_classes_are_what_cobham_says() -> None:
    """M/G/1 with two priorities, nobody interrupted: W1 = W0 / (1 - load1), W2 = W0 / ((1 - load1) (1 - load))."""
    load, share = 0.6, 0.4
    urgent_us = residual_us(load, two_kinds) / (1 - load * share)
    theory_us = {True: urgent_us, False: urgent_us / (1 - load)}
    asked = queue(1_500, round(MEAN_US / load), two_kinds, seed=2, urgent_share=share)
    _, waits_us = played_waits_us(one_server(ageing_ms=NEVER_MS), asked, Services(asked.services_us))
    found_idle = as_by_hand(waits_us, asked)
    long = queue(150_000, round(MEAN_US / load), two_kinds, seed=3, urgent_share=share)
    by_hand = long.by_hand(way_us=0)
    for urgent, wanted_us in theory_us.items():
        found = by_cycles(waits_us, found_idle, lambda number: asked.urgent[number] == urgent)  # noqa: B023 - called at once
        assert found.agrees(wanted_us)
        found = by_cycles(by_hand.waits_us, by_hand.found_idle, lambda number: long.urgent[number] == urgent)  # noqa: B023 - as above
        assert found.agrees(wanted_us, error_max=0.03)


class _Emptied(Rows):
    """Takes all that the server holds when nobody is left."""

    player: Player

    def job(self, row: JobRow) -> None:
        super().job(row)
        if not self.player.open_jobs:
            (site,) = self.player.sites
            node_id = site.spec.pools[0].node_id(0)
            site.befall(partial(Plant.take, site.plant, node_id))
            site.befall(partial(Plant.give_back, site.plant, node_id))


def test_waits_for_a_server_that_goes_cold_are_what_welch_says() -> None:
    """M/G/1 with set-up: each busy period begins with a load of D, so W = W0 / (1 - load) + (2 D + rate D^2) / (2 (1 + rate D))."""
    load, setup_us = 0.5, 3 * SECOND_US
    opened = load / MEAN_US * setup_us
    theory_us = residual_us(load, two_kinds) / (1 - load) + setup_us * (2 + opened) / (2 * (1 + opened))
    asked, rows = queue(1_200, round(MEAN_US / load), two_kinds, seed=4), _Emptied()
    # Nothing is loaded ahead of demand: the residency loop does not run.
    scenario = one_server(residency_interval_ms=NEVER_MS)
    rows.player = Player(scenario, asked.jobs, rows, truth=Services(asked.services_us, setup_us=setup_us))
    rows.player.play()
    ordered = sorted(rows.jobs, key=lambda row: row.number)
    waits_us = [row.ended_us - row.arrival_us - row.execution_us for row in ordered]
    found_idle = as_by_hand(waits_us, asked, setup_us=setup_us)
    assert [row.number for row in ordered if row.cold] == list(found_idle)
    assert by_cycles(waits_us, found_idle).agrees(theory_us)
    by_hand = queue(120_000, round(MEAN_US / load), two_kinds, seed=5).by_hand(setup_us=setup_us, way_us=0)
    assert by_cycles(by_hand.waits_us, by_hand.found_idle).agrees(theory_us, error_max=0.03)
