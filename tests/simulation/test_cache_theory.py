"""A GPU as a cache of models whose eviction is by age: it misses when a list by hand says, and as often as Che's approximation says."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.ids import ModelId, TenantId
from orchestrator.core.placement.policy import Eviction
from sims.play.player import Player
from sims.traces.job import TraceJob
from tests.simulation.played import Rows
from tests.simulation.theory import SECOND_US, Services, by_cycles, one_server
from tests.unit.fleet_of_machines import model

# One at a time: each job has ended when the next one comes.
GAP_US = 10 * SECOND_US
SERVICE_US = SECOND_US // 10
NEVER_MS = 7 * 86_400_000
# A GPU has 80 GB, of which 2 are for activations.
ROOM_GB = 78


def cold(asked: Sequence[int], kept: int, eviction: Eviction = Eviction.LRU) -> list[bool]:
    """Of each request for the model with this number, whether a GPU that has room for so many had to load it. Nothing is loaded ahead."""
    scenario = one_server(eviction=eviction, residency_interval_ms=NEVER_MS)
    catalogue = {one.model_id: one for one in (model(f"m{number}", ROOM_GB // kept) for number in set(asked))}
    jobs = [TraceJob(arrival_us=turn * GAP_US, model_id=ModelId(f"m{number}"), tenant=TenantId("t")) for turn, number in enumerate(asked)]
    rows = Rows()
    Player(replace(scenario, catalogue=catalogue), jobs, rows, truth=Services([SERVICE_US] * len(asked))).play()
    return [row.cold for row in sorted(rows.jobs, key=lambda row: row.number)]


def missed(asked: Sequence[int], kept: int) -> list[bool]:
    """Of each request, whether it is not among the last ones that differ."""
    held, found = OrderedDict[int, None](), []
    for number in asked:
        found.append(number not in held)
        held[number] = None
        held.move_to_end(number)
        if len(held) > kept:
            held.popitem(last=False)
    return found


def che(shares: Sequence[float], kept: int) -> float:
    """The share of requests that hit: those that come again within the time in which so many different ones are asked for."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(1 - math.exp(-share * middle) for share in shares) > kept else (middle, high)
    return sum(share * (1 - math.exp(-share * low)) for share in shares)


def independent(shares: Sequence[float], count: int, *, seed: int) -> list[int]:
    """Requests of which none knows of another."""
    return random.Random(seed).choices(range(len(shares)), shares, k=count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 7), min_size=1, max_size=30))
def test_any_requests_miss_where_a_list_by_hand_misses(kept: int, asked: list[int]) -> None:
    assert cold(asked, kept) == missed(asked, kept)


def test_a_price_keeps_what_is_asked_for_often_where_age_keeps_what_was_asked_for_last() -> None:
    """Two models take turns with ten that come once each: by age one of the two always leaves, by price they stay once they are known."""
    asked = [number for turn in range(10) for number in (0, 0, 1, 1, 2 + turn, 12 + turn)]
    by_age, by_price = cold(asked, 2), cold(asked, 2, Eviction.PRICE)
    assert by_age == missed(asked, 2)
    assert sum(by_price) < sum(by_age)


def test_independent_requests_hit_as_often_as_che_says() -> None:
    weights = [1 / (rank + 1) for rank in range(40)]
    shares, kept = [weight / sum(weights) for weight in weights], 13
    theory = che(shares, kept)
    asked = independent(shares, 800, seed=1)
    misses = cold(asked, kept)
    assert misses == missed(asked, kept)
    # The cache fills within some 50 requests. Hits of requests that are far apart are as good as independent: batches may begin anywhere.
    hits = [int(not miss) for miss in misses[100:]]
    assert by_cycles(hits, range(len(hits))).agrees(theory)
    # Over many requests chance is small, and what is left is by how much the approximation is off: a tenth of a hundredth.
    long = [int(not miss) for miss in missed(independent(shares, 200_000, seed=2), kept)]
    found = by_cycles(long, range(len(long)))
    assert abs(found.mean - theory) < 4 * found.error + 0.001
