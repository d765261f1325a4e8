"""Runs of a whole fleet in virtual time: every job ends once, seconds add up, queues are as theory says, the same seed is the same run."""

from __future__ import annotations

import heapq
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from atoll.model.ids import JobId, ModelId, TenantId
from atoll.model.job import JobState
from atoll.model.quote import Quote
from atoll.model.report import AttemptProgress, SlotFacts
from orchestrator.core import attempts, sites
from orchestrator.core.context import Context
from orchestrator.core.placement.column import Column
from orchestrator.core.state import Site, Slot
from sims.play.player import Played, Player
from sims.play.scenario import Scenario
from sims.results.rows import NEVER_US, REFUSED, TERMS
from sims.traces.job import TraceJob
from tests.architecture.sources import REPOSITORY
from tests.simulation.played import Law, Rows, mixed, one_pool, poisson, three_sites

SERVICE_US = 20_000_000
# A service of few reports, for runs of many jobs.
SHORT_US = 2_000_000


def played(scenario: Scenario, jobs: list[TraceJob], **options: object) -> tuple[Played, Rows, Player]:
    rows = Rows()
    player = Player(scenario, jobs, rows, **options)  # type: ignore[arg-type]  # by name
    return player.play(), rows, player


def test_asking_what_each_job_is_offered_changes_nothing_and_nearly_all_are_done_by_their_p90() -> None:
    offered: dict[JobId, Quote] = {}
    rows = Rows()
    asked = Player(three_sites(), mixed(150, gap_s=4.0), rows, quoted=offered.__setitem__).play()
    assert asked.digest == Player(three_sites(), mixed(150, gap_s=4.0), Rows()).play().digest
    assert len(offered) == 150
    held = []
    for row in rows.jobs:
        eta = offered[JobId(f"j{row.number:09}")].eta
        if row.state == JobState.SUCCEEDED and eta is not None:
            held.append(row.arrival_us <= eta.end_p50_us <= eta.end_p90_us and row.ended_us <= eta.end_p90_us)
    assert len(held) > 100 and sum(held) > 0.75 * len(held)


def test_every_job_ends_once_and_its_seconds_add_up() -> None:
    jobs = list(mixed(250))
    found, rows, _ = played(three_sites(), jobs, checked=True)
    assert sorted(row.number for row in rows.jobs) == list(range(250))
    assert found.jobs == 250 == sum(found.states.values())
    assert set(found.states) <= {"succeeded", "expired"} and found.states["succeeded"] > 200
    for row in rows.jobs:
        assert row.arrival_us == jobs[row.number].arrival_us
        if row.state == JobState.SUCCEEDED:
            assert sum(getattr(row, f"{term}_us") for term in TERMS) == row.ended_us - row.arrival_us
            assert row.arrival_us <= row.placed_us <= row.started_us <= row.ended_us
            assert row.execution_us > 0 and row.price_usd_micros > 0 and row.gpu_type
            assert row.cold == (row.stage_us + row.init_us > 0)
        assert row.deadline_missed == (
            row.deadline_ms > 0 and (row.state != JobState.SUCCEEDED or row.ended_us - row.arrival_us > row.deadline_ms * 1_000)
        )
    assert {row.kind for row in rows.jobs} == {"image"}
    assert any(row.adapter_misses for row in rows.jobs) and any(row.fetched for row in rows.jobs)
    assert sum(row.cold_starts for row in rows.sites) >= sum(row.cold for row in rows.jobs) > 0
    assert sum(row.fetched_bytes for row in rows.sites) > 0
    assert {row.state for row in rows.sites} == {"connected"}


def test_what_has_ended_is_in_no_memory() -> None:
    _, _, player = played(three_sites(), list(mixed(120)))
    state = player.brain.machine.context.state
    assert not state.jobs and not state.keys
    for site in player.sites:
        assert not site.machine.state.works and not site.plant._runs
        # The last ends are acknowledged by a message that was still on its way when the run was over.
        assert len(site.machine.state.outbox) + len(site.machine.state.ended) <= 4


def test_the_trace_is_read_one_job_ahead() -> None:
    read = 0

    def watched() -> object:
        nonlocal read
        for job in mixed(60):
            read += 1
            assert read <= len(rows.jobs) + player.open_jobs + 1
            yield job

    rows = Rows()
    player = Player(three_sites(), watched(), rows)  # type: ignore[arg-type]  # an iterator
    player.play()
    assert read == 60


def test_littles_law() -> None:
    """The mean number in the system, looked at from outside at moments of its own, is the rate of arrivals times the time in it."""
    jobs = list(mixed(400, gap_s=1.0))
    rows = Rows()
    player = Player(three_sites(), jobs, rows)
    seen: list[int] = []

    def look() -> None:
        seen.append(player.open_jobs)
        player.timeline.after(250_000, look)

    look()
    found = player.play()
    inside_us = sum(row.ended_us - row.arrival_us for row in rows.jobs)
    # Both see the same whole run, from empty to empty: what is left is the grid of the looks.
    assert sum(seen) / len(seen) * player.timeline.now == pytest.approx(inside_us, rel=0.02)
    assert found.jobs == 400


@pytest.mark.parametrize("servers", [1, 4])
def test_servers_are_the_queue_of_the_same_arrivals_and_services(servers: int) -> None:
    """By the recursion of Lindley, of Kiefer and Wolfowitz for several, which is exact for any law: what is left are a few milliseconds of
    messages for each job in a busy period."""
    law, jobs = Law(SERVICE_US, exponential=True), poisson(1_500, SERVICE_US * 10 // (8 * servers), seed=3)
    _, rows, _ = played(one_pool(servers), jobs, truth=law)
    free_us, wanted, got = [0] * servers, [], []
    for row in sorted(rows.jobs, key=lambda row: row.number):
        ends_us = max(heapq.heappop(free_us), row.arrival_us) + row.execution_us
        heapq.heappush(free_us, ends_us)
        wanted.append(ends_us - row.arrival_us)
        got.append(row.ended_us - row.arrival_us)
    assert sum(got) >= sum(wanted)
    assert sum(got) == pytest.approx(sum(wanted), rel=0.005)
    assert sorted(law.drawn.values()) == sorted(row.execution_us for row in rows.jobs)


@pytest.mark.parametrize(("servers", "load", "count"), [(1, 0.5, 2_000), (4, 0.6, 4_000)])
def test_waiting_is_what_erlang_says(servers: int, load: float, count: int) -> None:
    """M/M/c. The tolerance is four standard errors of the mean of batches, which waits of neighbours being alike make wide."""
    jobs = poisson(count, round(SHORT_US / servers / load), seed=11)
    _, rows, _ = played(one_pool(servers), jobs, truth=Law(SHORT_US, exponential=True))
    waits = [row.ended_us - row.arrival_us - row.execution_us for row in sorted(rows.jobs, key=lambda row: row.number)]
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    must_wait = last / (sum(offered**number / math.factorial(number) for number in range(servers)) + last)
    theory_us = must_wait * SHORT_US / (servers * (1 - load))
    batches = [sum(waits[start : start + count // 20]) / (count // 20) for start in range(0, count, count // 20)]
    mean_us = sum(batches) / len(batches)
    error_us = math.sqrt(sum((batch - mean_us) ** 2 for batch in batches) / (len(batches) - 1) / len(batches))
    assert error_us < 0.25 * theory_us, "the run is too short to say anything"
    assert abs(mean_us - theory_us) < 4 * error_us


def test_constant_services_at_several_servers_are_served_in_order_of_arrival() -> None:
    """M/D/c: no schedule by hand differs, because equal jobs leave in the order in which they came."""
    jobs = poisson(800, SERVICE_US // 3, seed=5)
    _, rows, _ = played(one_pool(4), jobs, truth=Law(SERVICE_US, exponential=False))
    free_us, wanted_us = [0] * 4, 0
    for job in jobs:
        ended_us = max(heapq.heappop(free_us), job.arrival_us) + SERVICE_US
        heapq.heappush(free_us, ended_us)
        wanted_us += ended_us - job.arrival_us
    assert sum(row.ended_us - row.arrival_us for row in rows.jobs) == pytest.approx(wanted_us, rel=0.005)
    ordered = sorted(rows.jobs, key=lambda row: row.number)
    assert sum(after.started_us < before.started_us - 1_000_000 for before, after in pairwise(ordered)) == 0


def test_what_the_model_cannot_make_is_refused_and_counted() -> None:
    film = TraceJob(arrival_us=0, model_id=ModelId("sd"), tenant=TenantId("t"), frames=81, deadline_ms=1_000)
    found, rows, _ = played(three_sites(), [film, *poisson(3, SERVICE_US, seed=1)])
    assert found.states == {REFUSED: 1, "succeeded": 3}
    refused = next(row for row in rows.jobs if row.state == REFUSED)
    assert refused.deadline_missed and refused.ended_us == refused.started_us == NEVER_US


def test_what_no_site_can_run_is_left_over_when_the_run_ends() -> None:
    big = TraceJob(arrival_us=0, model_id=ModelId("sd"), tenant=TenantId("t"), gang_size=8)
    found, rows, player = played(three_sites(), [big])
    assert Counter(row.state for row in rows.jobs) == {"queued": 1}
    assert rows.jobs[0].ended_us == NEVER_US
    assert found.simulated_us == pytest.approx(player._scenario.drain_us, abs=10_000_000)


def test_what_is_not_looked_at_in_reports_would_have_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = played(three_sites(), list(mixed(150, gap_s=0.5)))
    as_known, take_over = sites._as_known, sites._slot_reported
    known: Counter[bool] = Counter()

    def watched(ctx: Context, column: Column, slot: Slot, facts: SlotFacts) -> bool:
        skipped, before = as_known(column.site, slot, facts), repr(replace(slot, told=None))
        take_over(ctx, column, slot, facts)
        known[skipped] += 1
        assert not skipped or repr(replace(slot, told=None)) == before, "but for what is remembered of the report itself"
        return False  # nothing counts as told, of slots or nodes

    def taken_over(ctx: Context, site: Site, told: tuple[AttemptProgress, ...]) -> None:
        for progress in told:
            attempts.progressed(ctx, site, progress)

    monkeypatch.setattr(sites, "_is_known", lambda *_: False)
    monkeypatch.setattr(sites, "_slot_reported", watched)
    monkeypatch.setattr(sites, "_progress_reported", taken_over)
    again, _, _ = played(three_sites(), list(mixed(150, gap_s=0.5)))
    assert again.digest == found.digest
    assert known[True] > 500 and known[False] > 500, "hundreds of both"


_DIGEST = """
from sims.play.player import Player
from tests.simulation.played import Rows, mixed, three_sites
print(Player(three_sites(seed={seed}), mixed(80), Rows()).play().digest)
"""


def _digest(hash_seed: int, seed: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST.format(seed=seed)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_same_seed_is_the_same_run_in_every_interpreter() -> None:
    assert _digest(1, 0) == _digest(2, 0) != _digest(1, 1)
