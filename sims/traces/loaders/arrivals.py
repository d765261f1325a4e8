"""Records that say when requests came and little else: two LLM services of an hour (Azure, 2023), and clients' rates (ServeGen).

Decides arrivals; who asks for what is drawn as for a made-up trace, and all but the arrival is named as made up.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from math import gamma
from random import Random
from typing import Final

from atoll import data
from atoll.catalog.gpus import parse_gpus
from atoll.model.errors import FieldError, SourceError
from atoll.model.ids import GpuTypeId
from sims.traces.generating import REFERENCE_GPU, Generator, Settings
from sims.traces.job import TraceJob
from sims.traces.loaders.records import Loader, Record, arrival_us, csv_rows, moment_us, number_of
from sims.traces.metadata import TraceMeta

_US: Final = 1_000_000
_WINDOW_S: Final = 600
_RATE_MAX: Final = 100_000.0
_MADE_UP: Final = ("model_id", "tenant", "width", "height", "frames", "batch", "adapters", "origin", "session")


def _filled(record: Record, arrivals: Iterator[int], jobs_per_hour: float) -> Iterator[TraceJob]:
    reference = parse_gpus(data.gpus_csv(), "gpus.csv")[GpuTypeId(REFERENCE_GPU)]
    settings = Settings(seed=record.seed, jobs_per_hour=jobs_per_hour, diurnal=False, launches=False)
    return Generator(settings, record.catalogue, reference).jobs_at(arrivals)


def azure_jobs(record: Record) -> Iterator[TraceJob]:
    """A job for each request of the service."""
    first_us = [0]

    def make(row: dict[str, str]) -> int:
        us = moment_us(row, "TIMESTAMP")
        first_us[0] = first_us[0] or us
        if us < first_us[0]:
            raise FieldError("TIMESTAMP", row["TIMESTAMP"], "a moment that is not before the first")
        return us - first_us[0]

    # Two services of an hour with 9,000 and 19,000 requests.
    return _filled(record, record.each(csv_rows(record.path, ("TIMESTAMP", "ContextTokens")), make), 10_000)


def servegen_jobs(record: Record) -> Iterator[TraceJob]:
    """Arrivals of all clients: in each of its windows a client's gaps are of the Gamma or Weibull distribution that was fitted to them."""
    windows: dict[int, list[tuple[str, float, str, float]]] = defaultdict(list)

    def make(row: dict[str, str]) -> None:
        begins_s = int(number_of(row, "t_s", 0, 10**8))
        rate = number_of(row, "rate_rps", 0, _RATE_MAX)
        if row["dist"] not in {"Gamma", "Weibull"}:
            raise FieldError("dist", row["dist"], "Gamma or Weibull")
        if rate > 0:
            windows[begins_s].append((row["client"], rate, row["dist"], number_of(row, "p1", 1e-4, 1e6)))

    list(record.each(csv_rows(record.path, ("client", "t_s", "rate_rps", "dist", "p1")), make))
    if not windows:
        raise SourceError(str(record.path), 0, "rows", "none", "at least one window of a client")
    first_s = min(windows)
    rates = [sum(rate for _, rate, _, _ in clients) for clients in windows.values()]
    arrivals = (us for begins_s in sorted(windows) for us in _window(record, begins_s, first_s, windows[begins_s]))
    return _filled(record, arrivals, max(sum(rates) / len(rates) * 3_600, 1.0))


def _window(record: Record, begins_s: int, first_s: int, clients: list[tuple[str, float, str, float]]) -> Iterator[int]:
    return heapq.merge(
        *(
            _client(record.random("window", client, begins_s), rate, dist, shape, begins_s - first_s)
            for client, rate, dist, shape in clients
        )
    )


def _client(random: Random, rate: float, dist: str, shape: float, begins_s: int) -> Iterator[int]:
    """Arrivals of one client in one window: gaps of mean 1 / rate, and of the fitted distribution's form."""
    now_s = random.random() / rate
    while now_s < _WINDOW_S:
        yield arrival_us(begins_s + now_s)
        if dist == "Gamma":
            now_s += random.gammavariate(shape, 1 / (rate * shape))
        else:
            now_s += random.weibullvariate(1 / (rate * gamma(1 + 1 / max(shape, 0.1))), max(shape, 0.1))


AZURE: Final = Loader(
    name="azure-llm",
    about="arrivals of two LLM services in an hour (Azure, 2023)",
    meta=TraceMeta(source="Azure/AzurePublicDataset, LLM inference 2023", licence="CC BY 4.0", synthesised=_MADE_UP),
    jobs=azure_jobs,
)
SERVEGEN: Final = Loader(
    name="servegen",
    about="arrivals by clients' rates and fitted gaps over days (ServeGen)",
    meta=TraceMeta(source="alibaba/ServeGen, clients' windows", licence="Apache-2.0", synthesised=(*_MADE_UP, "arrivals within a window")),
    jobs=servegen_jobs,
)
