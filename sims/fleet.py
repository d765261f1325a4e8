"""A small fleet with its models and orders, drawn from the seed: uneven enough for every reason to reject a place to occur.

Decides what the world is made of. Sizes are small so that work takes seconds and memory and disks are tight.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from atoll.model.adapter import AdapterSpec
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, GpuTypeId, ModelId, PoolId, SiteId, TenantId
from atoll.model.job import Constraints, JobSpec, Priority
from atoll.model.modelspec import AdapterUse, DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.model.site import LinkSpec, NodeSpec, PoolSpec, SiteSpec
from sims.clients import Order
from sims.world import MILLISECOND_US

GB: Final = 10**9
_TFLOPS: Final = 10**12

GPUS: Final[dict[GpuTypeId, GpuType]] = {
    GpuTypeId(name): GpuType(
        gpu_type=GpuTypeId(name),
        vendor="none",
        arch="none",
        memory_bytes=memory_gb * GB,
        memory_bytes_per_s=memory_gb * 25 * GB,
        fp32_flops=tflops * _TFLOPS // 4,
        fp16_flops=tflops * _TFLOPS,
        fp8_flops=2 * tflops * _TFLOPS if memory_gb > 24 else 0,
        h2d_bytes_per_s=12 * GB,
        usd_micros_per_hour=memory_gb * 25_000,
        source="synthetic",
    )
    for name, memory_gb, tflops in (("S24", 24, 80), ("M48", 48, 180), ("L80", 80, 600))
}

_REFERENCE: Final = Shape(width=1024, height=1024, steps=20)
# Larger than any GPU: such a job can never be placed and must never be in anybody's way.
GIANT: Final = ModelId("giant")
# A prompt that every pipeline refuses: the job fails wherever it runs.
BAD_PROMPT: Final = "bad prompt"
# name, weights GB, parameters in billions
_MODELS: Final = (("tiny", 2, 1), ("small", 5, 2), ("medium", 11, 5), ("large", 18, 8), ("huge", 34, 16), ("giant", 200, 90))


# name, megabytes: so large that a small GPU does not hold all of them beside a model
_ADAPTERS: Final = (("ink", 100), ("wash", 300), ("noir", 2_000), ("neon", 3_500), ("clay", 4_500))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What operators declare at the start of a run."""

    sites: tuple[SiteSpec, ...]
    links: tuple[LinkSpec, ...]
    models: tuple[ModelSpec, ...]
    adapters: tuple[AdapterSpec, ...]


def _model(name: str, weights_gb: int, billions: int) -> ModelSpec:
    params = billions * 10**9
    tokens = 4_096
    return ModelSpec(
        model_id=ModelId(name),
        title=name,
        family="simulated",
        modality=Modality.IMAGE,
        pipeline_class="",
        weights_bytes=weights_gb * GB,
        resident_bytes=weights_gb * GB + GB // 2,
        activation_bytes=GB + weights_gb * GB // 20,
        default_shape=_REFERENCE,
        weights_digest=f"sha256:{len(name):064x}",
        origin_path=name,
        physics=ModelPhysics(
            kind=DenoiserKind.TRANSFORMER,
            denoiser_params=params,
            tokenwise_params=params,
            text_params=params // 4,
            vae_params=80_000_000,
            layers=24,
            hidden=2_048,
            text_tokens=256,
            reference=_REFERENCE,
            reference_tokens=tokens,
            reference_forward_flops=2 * params * tokens,
            reference_attention_flops=4 * 24 * tokens * tokens * 2_048,
            reference_decode_flops=5 * _TFLOPS,
            estimated=True,
        ),
        source="synthetic",
    )


def _adapter(name: str, megabytes: int) -> AdapterSpec:
    return AdapterSpec(
        adapter_id=AdapterId(name),
        family="simulated",
        rank=16,
        weights_bytes=megabytes * 10**6,
        weights_digest=f"sha256:{megabytes:064x}",
        origin_path=f"{name}.safetensors",
    )


def draw_fleet(chance: random.Random) -> Fleet:
    """Three to six uneven sites."""
    sites = tuple(_site(chance, index) for index in range(chance.randint(3, 6)))
    links = tuple(
        LinkSpec(
            src=src.site_id,
            dst=dst.site_id,
            rtt_us=chance.randint(2, 180) * MILLISECOND_US,
            bytes_per_s=chance.choice((50, 200, 1_000)) * 10**6,
            egress_usd_micros_per_gb=chance.choice((0, 20_000, 90_000)),
        )
        for src in sites
        for dst in sites
        if src is not dst
    )
    models = tuple(_model(*row) for row in _MODELS)
    return Fleet(sites=sites, links=links, models=models, adapters=tuple(_adapter(*row) for row in _ADAPTERS))


# In two fleets of three sites give weights to one another, most of them; what leaves them costs nothing, and some links are quick.
_PEERING_OF_3: Final = 2
_SERVES: Final = 0.8
_QUICK: Final = 0.5


def with_peers(fleet: Fleet, chance: random.Random) -> Fleet:
    """The same fleet, some of its sites giving weights to others. Drawn from a stream of its own: what came later does not change the
    rest of the fleets of seeds that failed once."""
    if chance.randrange(3) >= _PEERING_OF_3:
        return fleet
    sites = tuple(
        replace(
            spec,
            weights_url=f"http://{spec.site_id}.simulated" if chance.random() < _SERVES else "",
            wan_bytes_per_s=8 * GB,
            egress_usd_micros_per_gb=0,
        )
        for spec in fleet.sites
    )
    links = tuple(
        replace(link, bytes_per_s=chance.choice((2, 8)) * GB, egress_usd_micros_per_gb=0) if chance.random() < _QUICK else link
        for link in fleet.links
    )
    return replace(fleet, sites=sites, links=links)


def _site(chance: random.Random, index: int) -> SiteSpec:
    types = chance.sample(sorted(GPUS), chance.randint(1, 3))
    if index == 0 and GpuTypeId("L80") not in types:
        types.append(GpuTypeId("L80"))  # every model but the giant fits somewhere
    return SiteSpec(
        site_id=SiteId(f"site-{index}"),
        region=chance.choice(("north", "south")),
        provider="simulated",
        pools=tuple(
            PoolSpec(
                pool_id=PoolId(f"pool-{number}"),
                gpu_type=gpu_type,
                nodes=chance.randint(1, 2),
                gpus_per_node=4 if index == 0 and gpu_type == "L80" else chance.choice((1, 1, 2, 4)),  # every gang fits somewhere
                node=NodeSpec(
                    host_memory_bytes=256 * GB,
                    disk_cache_bytes=chance.choice((60, 120, 500)) * GB,
                    disk_bytes_per_s=chance.choice((1, 3, 6)) * GB,
                ),
                usd_micros_per_gpu_hour=GPUS[gpu_type].usd_micros_per_hour,
                gpu_memory_bytes=GPUS[gpu_type].memory_bytes,
            )
            for number, gpu_type in enumerate(types)
        ),
        wan_bytes_per_s=10**9,
        origin_bytes_per_s=chance.choice((500, 1_000, 4_000)) * 10**6,
        egress_usd_micros_per_gb=20_000,
        synthetic=True,
    )


def draw_order(chance: random.Random, number: int, fleet: Fleet) -> Order:
    """One job of a client."""
    model = chance.choices(fleet.models, weights=(30, 25, 20, 12, 6, 2))[0]
    start_timeout_ms = deadline_ms = 0
    if model.model_id == GIANT:
        start_timeout_ms = 60_000
    elif chance.random() < 0.1:
        start_timeout_ms = chance.choice((2_000, 30_000))
    elif chance.random() < 0.1:
        deadline_ms = chance.choice((5_000, 120_000))
    constraints = Constraints()
    if model.model_id != GIANT and chance.random() < 0.1:
        constraints = Constraints(gpu_types=(GpuTypeId("L80"),))
    elif model.model_id != GIANT and chance.random() < 0.05:
        constraints = Constraints(sites=(SiteId("site-0"),))
    gang_size = 1 if model.model_id == GIANT else chance.choices((1, 2, 4), weights=(88, 8, 4))[0]
    adapters = chance.sample(fleet.adapters, chance.choices((0, 1, 2), weights=(80, 14, 6))[0]) if model.model_id != GIANT else []
    spec = JobSpec(
        tenant=TenantId(chance.choice(("ada", "bob", "cyd"))),
        model_id=model.model_id,
        prompt=BAD_PROMPT if chance.random() < 0.03 else f"prompt {number}",
        seed=number,
        shape=Shape(width=1024, height=chance.choice((512, 1024)), steps=chance.randint(1, 12)),
        precision=Precision.BF16,
        priority=chance.choices(tuple(Priority), weights=(1, 6, 3))[0],
        deadline_ms=deadline_ms,
        start_timeout_ms=start_timeout_ms,
        adapters=tuple(AdapterUse(adapter_id=one.adapter_id) for one in adapters),
        gang_size=gang_size,
        constraints=constraints,
        origin_site=chance.choice(fleet.sites).site_id if chance.random() < 0.3 else None,
        simulated=True,
    )
    return Order(key=f"key-{number}", digest=f"digest-{number}", spec=spec)
