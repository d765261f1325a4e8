"""How long things really take in the simulated world: the hidden truth of `atoll.physics.hidden`, asked in the world's own terms.

Decides which draw belongs to which piece of work. The estimator never sees it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from atoll.model.adapter import AdapterSpec
from atoll.model.gpu import GpuType
from atoll.model.ids import AttemptKey, GpuTypeId, PoolId, SiteId
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec
from atoll.physics.hidden import HiddenWorld
from sims.fleet import Fleet

# Dropping references, as when a replica is evicted.
_TAKE_OFF_US: Final = 50_000


class Truth:
    """Durations of one run's world, microseconds."""

    def __init__(self, seed: int, fleet: Fleet, gpus: Mapping[GpuTypeId, GpuType]) -> None:
        self._hidden = HiddenWorld(seed)
        self._gpus = gpus
        self._sites = {spec.site_id: spec for spec in fleet.sites}
        self._links = {(link.src, link.dst): link for link in fleet.links}
        self._pools: dict[tuple[SiteId, PoolId], PoolSpec] = {
            (spec.site_id, pool.pool_id): pool for spec in fleet.sites for pool in spec.pools
        }
        self._asked: Counter[tuple[SiteId, str]] = Counter()

    def _next(self, site_id: SiteId, what: str) -> str:
        """Each fetch and each load of a site is a draw of its own."""
        self._asked[site_id, what] += 1
        return f"{what}-{self._asked[site_id, what]}"

    def fetch_us(self, site_id: SiteId, model: ModelSpec) -> int:
        """From the origin to a node's disk."""
        rate = self._sites[site_id].origin_bytes_per_s
        return self._hidden.fetch_us(model.weights_bytes, rate, 0, site_id, self._next(site_id, "fetch"))

    def peer_us(self, src: SiteId, dst: SiteId, model: ModelSpec) -> int | None:
        """From another site to a node's disk, if that site's own link had no end; each link has a hidden factor of its own. None: there is
        no link."""
        link = self._links.get((src, dst))
        if link is None:
            return None
        rate = min(link.bytes_per_s, self._sites[src].wan_bytes_per_s)
        way = SiteId(f"{src} to {dst}")
        return self._hidden.fetch_us(model.weights_bytes, rate, link.rtt_us, way, self._next(way, "fetch"))

    def link_bytes_per_s(self, site_id: SiteId) -> int:
        """What comes into a site at most."""
        return self._sites[site_id].wan_bytes_per_s

    def copy_us(self, site_id: SiteId, model: ModelSpec) -> int:
        """From another node of the site to a node's disk."""
        rate = self._sites[site_id].lan_bytes_per_s
        return self._hidden.fetch_us(model.weights_bytes, rate, 0, site_id, self._next(site_id, "fetch"))

    def adapter_fetch_us(self, site_id: SiteId, adapter: AdapterSpec) -> int:
        """From the origin to a node's disk."""
        rate = self._sites[site_id].origin_bytes_per_s
        return self._hidden.fetch_us(adapter.weights_bytes, rate, 0, site_id, self._next(site_id, "adapter"))

    def adapter_peer_us(self, src: SiteId, dst: SiteId, adapter: AdapterSpec) -> int | None:
        """From another site to a node's disk. None: there is no link."""
        link = self._links.get((src, dst))
        if link is None:
            return None
        rate = min(link.bytes_per_s, self._sites[src].wan_bytes_per_s)
        way = SiteId(f"{src} to {dst}")
        return self._hidden.fetch_us(adapter.weights_bytes, rate, link.rtt_us, way, self._next(way, "adapter"))

    def adapt_us(self, site_id: SiteId, adapters: tuple[AdapterSpec, ...]) -> int:
        """From a node's disk onto a replica; what is only taken off takes a moment."""
        return sum(self._hidden.patch_us(one, site_id, self._next(site_id, "adapt")) for one in adapters) or _TAKE_OFF_US

    def load_us(self, site_id: SiteId, pool_id: PoolId, model: ModelSpec, *, from_host: bool = False) -> int:
        """From a node's disk, or its memory, into a slot."""
        pool = self._pools[site_id, pool_id]
        h2d = pool.node.h2d_bytes_per_s or self._gpus[pool.gpu_type].h2d_bytes_per_s
        key = self._next(site_id, "load")
        stage_us = self._hidden.stage_us(model, pool.node.disk_bytes_per_s, h2d, from_host, site_id, key)
        return stage_us + self._hidden.init_us(model, site_id, key)

    def first_generation_us(self, site_id: SiteId, key: AttemptKey) -> int:
        """What an attempt takes longer because it is the first of its slot's process."""
        return self._hidden.first_generation_us(site_id, str(key))

    def step_us(self, site_id: SiteId, pool_id: PoolId, model: ModelSpec, spec: JobSpec, key: AttemptKey) -> int:
        """One denoising step of an attempt."""
        gpu = self._gpus[self._pools[site_id, pool_id].gpu_type]
        us = self._hidden.execution_us(model, spec.denoised, gpu, spec.precision, site_id, str(key), gang_size=spec.gang_size)
        return max(us // spec.shape.steps, 1)
