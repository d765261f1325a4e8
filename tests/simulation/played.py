"""Small fleets and traces to play in tests, and laws of nature for which theory knows what comes of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from agents.twin.truth import Truth
from atoll.model.adapter import AdapterSpec
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, ModelId, SiteId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.model.site import LinkSpec
from atoll.physics import coldstart
from atoll.physics.execution import execution_us
from orchestrator.core.placement.policy import Policy
from sims.play.scenario import Scenario
from sims.results.rows import JobRow, SiteRow
from sims.traces.job import TraceJob
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site

CATALOGUE = {one.model_id: one for one in (model("sd"), model("flux", 24), model("wan", 28))}


@dataclass
class Rows:
    """A sink that keeps everything."""

    jobs: list[JobRow] = field(default_factory=list)
    sites: list[SiteRow] = field(default_factory=list)

    def job(self, row: JobRow) -> None:
        self.jobs.append(row)

    def site(self, row: SiteRow) -> None:
        self.sites.append(row)


def three_sites(*, seed: int = 0, policy: Policy = Policy()) -> Scenario:
    """Three sites with peers, few GPUs and disks that do not hold everything."""
    node = replace(pool("p").node, host_memory_bytes=60 * GB, disk_cache_bytes=200 * GB)
    pools = replace(pool("p"), nodes=2, gpus_per_node=2, node=node)
    sites = tuple(replace(site(name, pools), region=name.upper(), weights_url=f"http://{name}") for name in ("ams", "fra", "lon"))
    names = [one.site_id for one in sites]
    links = tuple(LinkSpec(src=src, dst=dst, rtt_us=12_000, bytes_per_s=GB) for src in names for dst in names if src != dst)
    return Scenario(sites=sites, links=links, catalogue=CATALOGUE, gpus=GPUS, policy=policy, seed=seed)


def mixed(count: int, *, seed: int = 1, gap_s: float = 2.0) -> Iterator[TraceJob]:
    """Jobs of nine models at random moments, some with adapters, some in a hurry."""
    chance, at_us = random.Random(seed), 0
    for _ in range(count):
        at_us += round(chance.expovariate(1 / gap_s) * 1e6)
        base = chance.choice(("sd", "sd", "flux", "wan"))
        yield TraceJob(
            arrival_us=at_us,
            model_id=ModelId(f"{base}--{chance.randrange(3)}"),
            tenant=TenantId(f"t{chance.randrange(5)}"),
            steps=chance.randrange(5, 30),
            adapters=(AdapterUse(adapter_id=AdapterId(f"{base}-{chance.randrange(4)}")),) if chance.random() < 0.3 else (),
            origin=chance.choice(("", "AMS", "lon")),
            priority=chance.choice((Priority.NORMAL, Priority.NORMAL, Priority.BATCH, Priority.URGENT)),
            deadline_ms=chance.choice((0, 0, 60_000, 600_000)),
        )


class Law(Truth):
    """Executions last as `mean_us` and the law say, whatever they are of; everything else takes no time."""

    def __init__(self, mean_us: int, *, exponential: bool) -> None:
        self._mean_us = mean_us
        self._exponential = exponential
        self.drawn: dict[str, int] = {}

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        del model, shape, gpu, precision, site_id, gang_size
        even = (int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") + 1) / (2**64 + 1)
        found = self.drawn[key.partition("/")[0]] = round(self._mean_us * (-math.log(even) if self._exponential else 1))
        return found

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        del size_bytes, bytes_per_s, rtt_us, site_id, key
        return 1

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        del model, disk_bytes_per_s, h2d_bytes_per_s, from_host, site_id, key
        return 1

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        del model, site_id, key
        return 1

    def first_generation_us(self, site_id: SiteId, key: str) -> int:
        del site_id, key
        return 1

    def patch_us(self, adapter: AdapterSpec, site_id: SiteId, key: str) -> int:
        del adapter, site_id, key
        return 1

    def compile_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        del model, gpu, site_id, key
        return 1

    def artifact_load_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        del model, gpu, site_id, key
        return 1

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        del component, site_id
        return 0


class AsPredicted(Law):
    """Everything lasts as physics says: what decisions reckon with is what happens."""

    def __init__(self) -> None:
        super().__init__(0, exponential=False)

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        del site_id, key
        return execution_us(model, shape, gpu, precision, gang_size=gang_size)

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        del site_id, key
        return coldstart.transfer_us(size_bytes, bytes_per_s, rtt_us)

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        del site_id, key
        return coldstart.stage_us(model, disk_bytes_per_s, h2d_bytes_per_s, from_host)

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        del site_id, key
        return coldstart.init_us(model)

    def first_generation_us(self, site_id: SiteId, key: str) -> int:
        del site_id, key
        return coldstart.first_generation_us()

    def patch_us(self, adapter: AdapterSpec, site_id: SiteId, key: str) -> int:
        del site_id, key
        return coldstart.patch_us(adapter)


def poisson(count: int, mean_gap_us: int, *, seed: int) -> list[TraceJob]:
    """Equal jobs at random moments."""
    chance, at_us, found = random.Random(seed), 0, []
    for _ in range(count):
        at_us += round(chance.expovariate(1 / mean_gap_us))
        found.append(TraceJob(arrival_us=at_us, model_id=ModelId("sd"), tenant=TenantId("t")))
    return found


def one_pool(slots: int) -> Scenario:
    """One site where the orchestrator is too, whose slots take one job at a time: a queue with so many servers and no way to them."""
    pools = replace(pool("p"), nodes=1, gpus_per_node=slots)
    policy = Policy(name="queue", slot_depth=1, arrival_window_ms=0, report_interval_ms=5_000)
    return Scenario(sites=(site("here", pools),), links=(), catalogue=CATALOGUE, gpus=GPUS, policy=policy, commit_us=0)
