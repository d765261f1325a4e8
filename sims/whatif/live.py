"""A live fleet as a scenario: what an orchestrator tells of sites, models and copies, made into what a run begins with.

Decides what of a fleet can be played, and says what it leaves out. Must not know how it was asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agents.twin.holdings import Holding
from atoll.model.adapter import AdapterSpec
from atoll.model.errors import AtollError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId, NodeId, SiteId
from atoll.model.learned import Residual
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import Tier
from atoll.model.residency import CopyView
from atoll.model.site import LinkSpec, NodeSpec, PoolSpec, SiteAdmin, SiteConnection, SiteSpec
from atoll.model.views import PoolView, SiteView
from orchestrator.core.placement.policy import Policy
from sims.play.scenario import Beginning, Scenario
from sims.traces.variants import base_of

# Of a node that its operator did not declare only the GPUs are known: an ordinary host for the rest.
_NODE: Final = NodeSpec(host_memory_bytes=256 * 10**9, disk_cache_bytes=2 * 10**12, disk_bytes_per_s=2 * 10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A fleet as its orchestrator told it. `policy` as it runs by it: at a time scale, waits for people and networks are longer."""

    sites: tuple[SiteView, ...]
    links: tuple[LinkSpec, ...]
    models: tuple[ModelSpec, ...]
    adapters: tuple[AdapterSpec, ...]
    copies: Mapping[ModelId, tuple[CopyView, ...]]
    learned: tuple[Residual, ...]
    policy: Policy
    time_scale_milli: int = 1_000


def scenario_of(live: Live, gpus: Mapping[GpuTypeId, GpuType], asked: Collection[ModelId]) -> tuple[Scenario, tuple[str, ...]]:
    """The fleet as it is, for jobs of these models, and what of it is not played. AtollError where nothing can be."""
    sites, notes = [], []
    for view in live.sites:
        reason = _unplayable(view, gpus)
        if reason:
            notes.append(f"site {view.spec.site_id} is left out: {reason}")
        else:
            sites.append(replace(view.spec, pools=_pools(view)))
    if not sites:
        raise AtollError(f"no site of the fleet can be played ({notes[0]})" if notes else "the fleet has no sites")
    known = {site.site_id for site in sites}
    admin = {view.spec.site_id: view.admin for view in live.sites if view.spec.site_id in known}
    wanted = {*asked, *(ModelId(base_of(name)) for name in asked)}
    models = tuple(model for model in live.models if model.model_id in wanted or live.copies.get(model.model_id))
    beginning = Beginning(
        models=models,
        adapters=live.adapters,
        holdings=_holdings(sites, models, live.copies),
        cordoned=tuple(name for name, state in admin.items() if state is SiteAdmin.CORDONED),
        drained=tuple(name for name, state in admin.items() if state in (SiteAdmin.DRAINING, SiteAdmin.DRAINED)),
    )
    scenario = Scenario(
        sites=tuple(sites),
        links=tuple(link for link in live.links if link.src in known and link.dst in known),
        catalogue={model.model_id: model for model in live.models},
        gpus=gpus,
        policy=live.policy,
        time_scale_milli=live.time_scale_milli,
        beginning=beginning,
    )
    return scenario, tuple(notes)


def _unplayable(view: SiteView, gpus: Mapping[GpuTypeId, GpuType]) -> str:
    """Why a site is left out; "" if it is not."""
    if view.connection is not SiteConnection.CONNECTED:
        return view.connection.value if view.connection is not None else "it has never connected"
    if not any(pool.slots for pool in view.pools):
        return "it has no GPUs"
    unknown = [pool.gpu_type for pool in view.pools if pool.gpu_type not in gpus]
    return f"nothing is known of {', '.join(unknown)}" if unknown else ""


def _pools(view: SiteView) -> tuple[PoolSpec, ...]:
    """What the site has: as declared where that is what was found, else with ordinary hosts."""
    declared = {pool.pool_id: pool for pool in view.spec.pools}
    return tuple(_pool(told, declared.get(told.pool_id)) for told in view.pools if told.slots)


def _pool(told: PoolView, declared: PoolSpec | None) -> PoolSpec:
    per_node = max(told.slots // max(told.nodes, 1), 1)
    if declared is not None and declared.gpu_type == told.gpu_type:
        return replace(declared, nodes=told.nodes, gpus_per_node=per_node)
    return PoolSpec(
        pool_id=told.pool_id,
        gpu_type=told.gpu_type,
        nodes=told.nodes,
        gpus_per_node=per_node,
        node=_NODE,
        usd_micros_per_gpu_hour=told.usd_micros_per_gpu_hour,
    )


def _holdings(
    sites: Iterable[SiteSpec], models: Iterable[ModelSpec], copies: Mapping[ModelId, tuple[CopyView, ...]]
) -> Mapping[SiteId, Mapping[NodeId, Holding]]:
    """Copies by node. On which of a node's slots a replica is nobody tells: they are dealt out in turn."""
    slots = {
        (site.site_id, pool.node_id(index)): pool.gpus_per_node for site in sites for pool in site.pools for index in range(pool.nodes)
    }
    held: dict[tuple[SiteId, NodeId], dict[Tier, list[ModelSpec]]] = {}
    for model in models:
        for copy in copies.get(model.model_id, ()):
            if (copy.site_id, copy.node_id) in slots:
                tiers = held.setdefault((copy.site_id, copy.node_id), {})
                tiers.setdefault(copy.tier, []).extend([model] * min(copy.copies, slots[copy.site_id, copy.node_id]))
    found: dict[SiteId, dict[NodeId, Holding]] = {}
    for (site_id, node_id), tiers in held.items():
        replicas, count = tiers.get(Tier.GPU, []), slots[site_id, node_id]
        found.setdefault(site_id, {})[node_id] = Holding(
            disk=tuple(dict.fromkeys(tiers.get(Tier.DISK, []))),
            host=tuple(dict.fromkeys(tiers.get(Tier.HOST, []))),
            slots=tuple(tuple(dict.fromkeys(replicas[index::count])) for index in range(count)),
        )
    return found
