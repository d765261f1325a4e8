"""Queues by hand: laws whose draws a test chooses, schedules to compare a run with, and how far a mean may be from what theory says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise

from atoll.model.gpu import GpuType
from atoll.model.ids import ModelId, SiteId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.results.rows import JobRow
from sims.traces.job import TraceJob
from tests.simulation.played import Law, Rows, one_pool

# Services are short, so that a job costs few reports: a report a minute, and nobody looks at sites.
SECOND_US = 1_000_000
_MINUTE_MS = 60_000
_HOUR_US = 3_600 * SECOND_US
# Of an assignment to the site, and of the news of its end, where the orchestrator is at the site.
_WAYS_US = 400


class Services(Law):
    """The job with number n takes `services_us[n]`; a pipeline is built in `setup_us`."""

    def __init__(self, services_us: Sequence[int], *, setup_us: int = 1) -> None:
        super().__init__(1, exponential=False)
        self._services_us = services_us
        self._setup_us = setup_us

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        del model, shape, gpu, precision, site_id, gang_size
        return self._services_us[int(key.partition("/")[0].removeprefix("j"))]

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        del model, site_id, key
        return self._setup_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What each job waits, by number, and which jobs find the server idle."""

    waits_us: tuple[int, ...]
    found_idle: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Arrivals, services and classes of the jobs of one run, by number."""

    arrivals_us: tuple[int, ...]
    services_us: tuple[int, ...]
    urgent: tuple[bool, ...]

    @property
    def jobs(self) -> list[TraceJob]:
        """As a trace."""
        return [
            TraceJob(
                arrival_us=at_us,
                model_id=ModelId("sd"),
                tenant=TenantId("t"),
                priority=Priority.URGENT if urgent else Priority.NORMAL,
            )
            for at_us, urgent in zip(self.arrivals_us, self.urgent, strict=True)
        ]

    def by_hand(self, *, setup_us: int = 0, way_us: int = _WAYS_US) -> Schedule:
        """One server, the urgent first, in order of arrival among equals, and nobody is interrupted. `setup_us`: what an idle one takes to
        begin; `way_us`: what passes with each job besides, before the next one begins."""
        waits, idle, heap, now_us, coming = [0] * len(self.arrivals_us), [0], list[tuple[bool, int]](), 0, 0
        while heap or coming < len(waits):
            begins_us = now_us
            if not heap and self.arrivals_us[coming] > now_us:
                now_us = self.arrivals_us[coming]
                begins_us = now_us + setup_us
                idle.append(coming)
            while coming < len(waits) and self.arrivals_us[coming] <= now_us:
                heappush(heap, (not self.urgent[coming], coming))
                coming += 1
            _, number = heappop(heap)
            waits[number] = begins_us + way_us - self.arrivals_us[number]
            now_us = begins_us + way_us + self.services_us[number]
        return Schedule(waits_us=tuple(waits), found_idle=tuple(dict.fromkeys(idle)))


def queue(count: int, mean_gap_us: int, draw: Callable[[random.Random], int], *, seed: int, urgent_share: float = 0.0) -> Queue:
    """Poisson arrivals, and services as they are drawn."""
    chance, at_us, arrivals = random.Random(seed), 0, []
    for _ in range(count):
        at_us += round(chance.expovariate(1 / mean_gap_us))
        arrivals.append(at_us)
    services = tuple(draw(chance) for _ in range(count))
    return Queue(arrivals_us=tuple(arrivals), services_us=services, urgent=tuple(chance.random() < urgent_share for _ in range(count)))


def one_server(**policy: object) -> Scenario:
    """A queue with one server that looks at nothing but jobs."""
    scenario = one_pool(1)
    quiet = replace(scenario.policy, report_interval_ms=_MINUTE_MS, silent_after_ms=2 * _MINUTE_MS, preemptions_max=0)
    return replace(scenario, sample_us=_HOUR_US, policy=replace(quiet, **policy))  # type: ignore[arg-type]  # fields of Policy


def played_waits_us(scenario: Scenario, asked: Queue, law: Law, rows: Rows | None = None) -> tuple[list[JobRow], list[int]]:
    """Rows by number, and what each job waited."""
    rows = rows or Rows()
    Player(scenario, asked.jobs, rows, truth=law).play()
    ordered = sorted(rows.jobs, key=lambda row: row.number)
    assert [row.execution_us for row in ordered] == list(asked.services_us)
    return ordered, [row.ended_us - row.arrival_us - row.execution_us for row in ordered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over a run, and its standard error."""

    mean: float
    error: float

    def agrees(self, theory: float, *, within_errors: float = 4.0, error_max: float = 0.25) -> bool:
        """Four standard errors: a run of another seed would disagree once in 16,000, one that is wrong by two errors more nearly always. A
        run whose error is a quarter of what is to be shown says nothing, and that is no agreement."""
        return self.error < error_max * theory and abs(self.mean - theory) < within_errors * self.error


def by_cycles(waits_us: Sequence[int], found_idle: Sequence[int], chosen: Callable[[int], bool] = lambda _: True) -> Estimate:
    """The mean wait of the chosen jobs. Waits of one busy period are alike; those of different ones are independent, and so is each stretch
    that begins with an idle server. So the run is cut there, into some thirty stretches, and the error is that of a ratio of their sums
    and sizes."""
    starts, least = [0], len(waits_us) // 30
    for number in found_idle:
        if number - starts[-1] >= least:
            starts.append(number)
    stretches = [[waits_us[one] for one in range(start, end) if chosen(one)] for start, end in pairwise([*starts, len(waits_us)])]
    count = sum(map(len, stretches))
    mean = sum(map(sum, stretches)) / count
    spread = sum((sum(one) - mean * len(one)) ** 2 for one in stretches)
    return Estimate(mean=mean, error=math.sqrt(spread * len(stretches) / (len(stretches) - 1)) / count)
