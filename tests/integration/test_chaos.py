"""The short form of `make chaos`: a real orchestrator and real agents, killed once under load; every promise is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.chaos.faults import FAULTS
from tests.chaos.programs import Fleet, fleet_of
from tests.chaos.run import declare, gap_after, play


def test_all_agents_and_the_orchestrator_are_killed_under_load_and_no_promise_is_broken(
    tmp_path: Path, free_ports: Callable[[], int]
) -> None:
    fleet = fleet_of(tmp_path, free_ports)
    strikes = {fault.name: fault.strike for fault in FAULTS}

    async def both(fleet: Fleet, chance: Random) -> None:
        await strikes["all-sites-killed"](fleet, chance)
        await strikes["orchestrator-killed"](fleet, chance)

    try:
        declare(fleet)
        outcome = asyncio.run(play(fleet, replace(FAULTS[0], strike=both), times=1, rate=100, seed=1))
    finally:
        asyncio.run(fleet.end())
    assert outcome.broken == ()
    assert outcome.accepted > 100 and outcome.replayed and len(outcome.history.seen) > 100


def test_a_gap_is_the_longest_time_without_an_answer_after_a_strike() -> None:
    before, after = [float(at) / 10 for at in range(11)], [4.0, 4.1, 9.0]
    assert gap_after([*after, *before], 1.0) == 3.0
    assert round(gap_after([*before, *after], 3.9), 3) == 4.9
    assert gap_after([], 1.0) == 0.0
