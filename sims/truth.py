"""How long things really take in the simulated world: the physics of the catalogue times hidden factors of each site.

Decides durations. The estimator never sees the factors; were truth equal to the prior, every prediction would be right by construction.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us
from sims.fleet import Fleet

# Spread of a hidden factor in log space: one in six is 40 % slower than the prior says, or worse.
_SIGMA: Final = 0.35


class Truth:
    """Durations of one run's world."""

    def __init__(self, seed: int, fleet: Fleet, gpus: Mapping[GpuTypeId, GpuType]) -> None:
        self._seed = seed
        self._gpus = gpus
        self._sites = {spec.site_id: spec for spec in fleet.sites}
        self._pools: dict[tuple[SiteId, PoolId], PoolSpec] = {
            (spec.site_id, pool.pool_id): pool for spec in fleet.sites for pool in spec.pools
        }
        self._factors: dict[tuple[SiteId, str], float] = {}

    def _factor(self, site_id: SiteId, component: str) -> float:
        found = self._factors.get((site_id, component))
        if found is None:
            chance = random.Random(f"{self._seed}/truth/{site_id}/{component}")
            found = self._factors[site_id, component] = chance.lognormvariate(0.0, _SIGMA)
        return found

    def fetch_us(self, site_id: SiteId, model: ModelSpec) -> int:
        """From the origin to a node's disk."""
        rate = self._sites[site_id].origin_bytes_per_s
        return int(transfer_us(model.weights_bytes, rate, 0) * self._factor(site_id, "fetch"))

    def load_us(self, site_id: SiteId, pool_id: PoolId, model: ModelSpec) -> int:
        """From a node's disk into a slot."""
        pool = self._pools[site_id, pool_id]
        h2d = pool.node.h2d_bytes_per_s or self._gpus[pool.gpu_type].h2d_bytes_per_s
        us = stage_us(model, pool.node.disk_bytes_per_s, h2d, False) + init_us(model)
        return int(us * self._factor(site_id, "load"))

    def step_us(self, site_id: SiteId, pool_id: PoolId, model: ModelSpec, spec: JobSpec) -> int:
        """One denoising step of a job."""
        gpu = self._gpus[self._pools[site_id, pool_id].gpu_type]
        us = execution_us(model, spec.shape, gpu, spec.precision) // spec.shape.steps
        return max(int(us * self._factor(site_id, f"execution/{pool_id}")), 1)
