"""Results as a simulation would leave them, made from a seed: the reference fleet, a day of pictures and films, without any simulation.

`slowness` makes a policy that is worse at everything, in per mille.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

from atoll import data
from atoll.catalog.fleet import parse_fleet
from atoll.packaged import load_packaged
from sims.results.parquet import Metadata, ResultWriter, SitePlace
from sims.results.rows import JobRow, SiteRow
from tests.architecture.sources import REPOSITORY

HOUR_US = 3_600_000_000
SAMPLE_US = 600_000_000
KIND_WEIGHTS = {"image": 0.8, "image-4k": 0.14, "video": 0.06}
EXECUTION_S = {"image": 4.0, "image-4k": 16.0, "video": 150.0}


def made_places(count: int = 36) -> tuple[SitePlace, ...]:
    """Sites of the reference fleet."""
    text = (REPOSITORY / "clusters.yaml").read_text(encoding="utf-8")
    fleet = parse_fleet(text, "clusters.yaml", load_packaged().gpus, data.fleet_wan_csv())
    return tuple(
        SitePlace(
            site_id=site.site_id,
            region=site.region,
            latitude_micro_deg=site.latitude_micro_deg,
            longitude_micro_deg=site.longitude_micro_deg,
            slots=max(sum(pool.nodes * pool.gpus_per_node for pool in site.pools) // 32, 1),
            gpu_types=tuple(pool.gpu_type for pool in site.pools),
        )
        for site in fleet.sites[:count]
    )


def made_metadata(seed: int = 1, policy: str = "default", *, places: tuple[SitePlace, ...] | None = None, warm_up_us: int = 0) -> Metadata:
    return Metadata(
        policy=policy,
        policy_digest=policy[:8].ljust(8, "0"),
        seed=seed,
        trace="generated: a day as on a public service",
        trace_licence="Apache-2.0",
        fleet="fleet-small",
        synthetic=True,
        load_milli=900,
        warm_up_us=warm_up_us,
        simulated_us=24 * HOUR_US,
        wall_us=31_000_000,
        digest=f"{seed:016x}",
        pooled_load_milli=860,
        ideal_load_milli=930,
        sites=made_places() if places is None else places,
    )


def made_jobs(metadata: Metadata, *, count: int = 4_000, slowness: int = 1000) -> Iterator[JobRow]:
    """Jobs in order of arrival. The same seed gives the same jobs, whatever the policy: only what became of them differs."""
    chance = random.Random(metadata.seed)
    moments = sorted(int(24 * HOUR_US * min(max(chance.betavariate(2.2, 1.8), 0.0), 1.0)) for _ in range(count))
    for number, arrival_us in enumerate(moments):
        yield _job(number, arrival_us, metadata, chance, slowness / 1000)


def _job(number: int, arrival_us: int, metadata: Metadata, chance: random.Random, slow: float) -> JobRow:
    kind = chance.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    site = chance.choice(metadata.sites)
    ideal_us = int(EXECUTION_S[kind] * 1e6 * chance.lognormvariate(0, 0.35))
    cold = chance.random() < 0.07 * slow
    fetched = cold and chance.random() < 0.4
    failed = chance.random() < 0.004
    busy = 1 + math.sin(arrival_us / (24 * HOUR_US) * math.pi) ** 4 * 3

    def about(seconds: float) -> int:
        return int(seconds * 1e6 * chance.lognormvariate(0, 0.8))

    terms = {
        "queue_us": int(about(0.6 * busy) * slow**2),
        "fetch_us": about(14) if fetched else 0,
        "stage_us": about(3) if cold else 0,
        "init_us": about(2) if cold else 0,
        "compile_us": about(4) if cold and kind == "video" else 0,
        "adapt_us": about(0.3) if chance.random() < 0.3 else 0,
        "input_us": about(0.2) if kind == "video" else 0,
        "execution_us": int(ideal_us * chance.uniform(1.0, 2.4)),
        "output_us": about(0.4),
    }
    took_us = sum(terms.values())
    deadline_ms = (2 * ideal_us + 10_000_000) // 1000
    return JobRow(
        number=number,
        model_id=f"model-{int(chance.paretovariate(0.9)) % 600}",
        tenant=f"tenant-{chance.randrange(14)}",
        origin="",
        priority="normal",
        kind=kind,
        gang_size=1,
        arrival_us=arrival_us,
        placed_us=arrival_us + terms["queue_us"] // 2,
        started_us=-1 if failed else arrival_us + took_us - terms["execution_us"] - terms["output_us"],
        ended_us=arrival_us + took_us,
        state="failed" if failed else "succeeded",
        site_id=site.site_id,
        pool_id=site.gpu_types[0].lower(),
        gpu_type=chance.choice(site.gpu_types),
        attempts=1,
        moves=0,
        cold=cold,
        fetched=fetched,
        adapter_misses=0,
        predicted_us=int(took_us * chance.uniform(0.8, 1.2)),
        quoted_p90_us=int(took_us * 1.5),
        **terms,
        deadline_ms=deadline_ms,
        deadline_missed=failed or took_us > deadline_ms * 1000,
        ideal_execution_us=ideal_us,
        price_usd_micros=int(terms["execution_us"] / 1e6 * chance.uniform(200, 1_500)),
    )


def made_sites(metadata: Metadata, *, slowness: int = 1000, samples: int = 144) -> Iterator[SiteRow]:
    """Samples of every site over the day, in order of time."""
    chance = random.Random(metadata.seed + 1)
    habits = {place.site_id: (chance.uniform(0.35, 0.75), chance.uniform(0, 0.25)) for place in metadata.sites}
    for sample in range(1, samples + 1):
        for place in metadata.sites:
            level, swing = habits[place.site_id]
            local = sample / 144 * 2 * math.pi + place.longitude_micro_deg / 180e6 * math.pi - 2
            share = min(max(level + swing * math.sin(local) + chance.gauss(0, 0.05), 0), 1)
            lost = place.site_id == metadata.sites[-1].site_id and 60 < sample < 75
            busy = 0 if lost else min(round(share * place.slots), place.slots)
            cold = 0 if lost else int(chance.expovariate(1 / (0.05 + place.slots * 0.02 * slowness / 1000)))
            yield SiteRow(
                at_us=sample * SAMPLE_US,
                site_id=place.site_id,
                slots=place.slots,
                slots_busy=busy,
                slots_loading=min(cold, place.slots - busy),
                queued_work_us=busy * 3_000_000,
                replicas_warm=place.slots,
                cold_starts=cold,
                evictions=int(cold * chance.uniform(0.3, 1)),
                fetched_bytes=cold * 12_000_000_000,
                egress_bytes=cold * 4_000_000_000,
                state="lost" if lost else "connected",
                usd_micros=int(place.slots * 1.9e6 / 6),
            )


def write_made(folder: Path, metadata: Metadata, *, count: int = 4_000, slowness: int = 1000, samples: int = 144) -> Path:
    """One such result in a folder."""
    with ResultWriter(folder, metadata) as writer:
        for job in made_jobs(metadata, count=count, slowness=slowness):
            writer.job(job)
        for site in made_sites(metadata, slowness=slowness, samples=samples):
            writer.site(site)
    return folder
