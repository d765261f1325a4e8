"""Whether quotes hold: each job of a busy fleet is asked about in the moment before it is submitted, and its quote held against its end.

Three sites with 24 GPUs, hidden factors, nine models, gangs, three priorities, and a load that comes and goes: one of six jobs waits for
a place. The first third of the jobs, in which the fleet learns, is not counted. P50 should hold for half of each class and P90 for nine
tenths: chance alone moves a share of n by sqrt(0.09 / n) and more, since jobs that wait together are late together.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from atoll.model.ids import JobId, ModelId, TenantId
from atoll.model.job import Priority
from atoll.model.quote import Quote, Verdict
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.traces.job import TraceJob
from tests.simulation.played import Rows, three_sites

JOBS: Final = 4_000
WORLDS: Final = (1, 2)
_GAP_S: Final = 0.9
# Where a job would be offered a place at once, at a priority, on one GPU or more.
Class = tuple[str, str, str]


@dataclass(slots=True)
class Shares:
    """Jobs of a class, and of how many each quantile held."""

    jobs: int = 0
    p50: int = 0
    p90: int = 0


def scenario(seed: int) -> Scenario:
    """The fleet."""
    made = three_sites(seed=seed)
    sites = tuple(replace(one, pools=tuple(replace(pool, gpus_per_node=4) for pool in one.pools)) for one in made.sites)
    return replace(made, sites=sites, drain_us=made.drain_us * 10)


def jobs(count: int, seed: int) -> Iterator[TraceJob]:
    """Arrivals whose rate swings by half within a quarter of an hour, so that queues come and go."""
    chance, at_us = random.Random(seed), 0
    for number in range(count):
        busy = 1 + 0.5 * math.sin(at_us / 900e6 * 2 * math.pi)
        at_us += round(chance.expovariate(busy / _GAP_S) * 1e6)
        base = chance.choice(("sd", "sd", "flux", "wan"))
        yield TraceJob(
            arrival_us=at_us,
            model_id=ModelId(f"{base}--{chance.randrange(3)}"),
            tenant=TenantId(f"t{number % 5}"),
            steps=chance.randrange(20, 120),
            gang_size=2 if base == "wan" and chance.random() < 0.3 else 1,
            priority=chance.choice((Priority.NORMAL, Priority.NORMAL, Priority.BATCH, Priority.URGENT)),
        )


def held(seed: int, count: int = JOBS) -> dict[Class, Shares]:
    """Shares by class of one world."""
    quotes: dict[JobId, Quote] = {}
    rows, found = Rows(), defaultdict[Class, Shares](Shares)
    Player(scenario(seed), jobs(count, seed), rows, quoted=quotes.__setitem__).play()
    for row in rows.jobs:
        quote = quotes.get(JobId(f"j{row.number:09}"))
        if quote is None or quote.eta is None or row.number < count // 3 or row.state != "succeeded":
            continue
        when = "now" if quote.verdict is Verdict.NOW else "waits"
        one = found[when, str(row.priority), "gang" if row.gang_size > 1 else "single"]
        took_us = row.ended_us - row.arrival_us
        one.jobs += 1
        one.p50 += took_us <= quote.eta.end_p50_us - quote.at_us
        one.p90 += took_us <= quote.eta.end_p90_us - quote.at_us
    return dict(found)


def main() -> None:
    """A line for each class, of all worlds together."""
    total = defaultdict[Class, Shares](Shares)
    for seed in WORLDS:
        for name, one in held(seed).items():
            every = total[name]
            every.jobs, every.p50, every.p90 = every.jobs + one.jobs, every.p50 + one.p50, every.p90 + one.p90
    print(f"quotes of {JOBS:,} jobs each in {len(WORLDS)} worlds, the first third left out:", flush=True)
    for name in sorted(total):
        one = total[name]
        print(
            f"  {' '.join(name):24} {one.jobs:6,} jobs, P50 held for {one.p50 / one.jobs:4.0%}, P90 for {one.p90 / one.jobs:4.0%}",
            flush=True,
        )
