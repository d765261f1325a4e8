"""Sites, pools, nodes and links <-> messages. What an operator declares and what an agent claims is checked alike."""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.address import parse_weights_url
from atoll.model.errors import FieldError
from atoll.model.ids import NodeId, PoolId, SiteId, parse_gpu_type, parse_name
from atoll.model.site import LAN_BYTES_PER_S, Drain, LinkSpec, NodeSpec, PoolSpec, SiteSpec
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds

# GPUs of one site in all: the largest built has this many. An agent may claim no more, or its slots alone would fill our memory.
GPUS_PER_SITE_MAX: Final = 131_072
_LATITUDE_MAX: Final = 90_000_000
_LONGITUDE_MAX: Final = 180_000_000
_BYTES = limits.BYTES_MAX
_RATE = limits.RATE_BYTES_PER_S_MAX
_PRICE = limits.PRICE_USD_MICROS_MAX


def node_spec_to_proto(node: NodeSpec) -> pb.NodeSpec:
    """One host of a pool."""
    return pb.NodeSpec(
        host_memory_bytes=node.host_memory_bytes,
        disk_cache_bytes=node.disk_cache_bytes,
        disk_bytes_per_s=node.disk_bytes_per_s,
        h2d_bytes_per_s=node.h2d_bytes_per_s,
    )


def node_spec_from_proto(msg: pb.NodeSpec) -> NodeSpec:
    """FieldError naming the figure that cannot be."""
    return NodeSpec(
        host_memory_bytes=bounds.number("host_memory_bytes", msg.host_memory_bytes, 0, _BYTES),
        disk_cache_bytes=bounds.number("disk_cache_bytes", msg.disk_cache_bytes, 0, _BYTES),
        disk_bytes_per_s=bounds.number("disk_bytes_per_s", msg.disk_bytes_per_s, 0, _RATE),
        h2d_bytes_per_s=bounds.number("h2d_bytes_per_s", msg.h2d_bytes_per_s, 0, _RATE),
    )


def pool_spec_to_proto(pool: PoolSpec) -> pb.PoolSpec:
    """Identical GPUs of a site."""
    return pb.PoolSpec(
        pool_id=pool.pool_id,
        gpu_type=pool.gpu_type,
        nodes=pool.nodes,
        gpus_per_node=pool.gpus_per_node,
        node=node_spec_to_proto(pool.node),
        usd_micros_per_gpu_hour=pool.usd_micros_per_gpu_hour,
        gpu_memory_bytes=pool.gpu_memory_bytes,
    )


def pool_spec_from_proto(msg: pb.PoolSpec) -> PoolSpec:
    """FieldError naming the figure that cannot be. The pool's name must leave room for a node's number."""
    pool = PoolSpec(
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        gpu_type=parse_gpu_type("gpu_type", msg.gpu_type),
        nodes=bounds.number("nodes", msg.nodes, 1, limits.NODES_PER_POOL_MAX),
        gpus_per_node=bounds.number("gpus_per_node", msg.gpus_per_node, 1, limits.GPUS_PER_NODE_MAX),
        node=bounds.part("node", msg.node, node_spec_from_proto),
        usd_micros_per_gpu_hour=bounds.number("usd_micros_per_gpu_hour", msg.usd_micros_per_gpu_hour, 0, _PRICE),
        gpu_memory_bytes=bounds.number("gpu_memory_bytes", msg.gpu_memory_bytes, 0, _BYTES),
    )
    last: NodeId = pool.node_id(pool.nodes - 1)
    try:
        parse_name("pool_id", last)
    except FieldError:
        raise FieldError("pool_id", msg.pool_id, f"a name so short that its nodes ({last}) have legal names too") from None
    return pool


def pools_from_proto(field: str, msgs: list[pb.PoolSpec]) -> tuple[PoolSpec, ...]:
    """All pools of a site; FieldError for two of one name or more GPUs than a site can have."""
    pools = bounds.each(field, msgs, limits.POOLS_PER_SITE_MAX, pool_spec_from_proto)
    seen: set[PoolId] = set()
    for pool in pools:
        if pool.pool_id in seen:
            raise FieldError(field, pool.pool_id, "each pool once")
        seen.add(pool.pool_id)
    gpus = sum(pool.slots for pool in pools)
    if gpus > GPUS_PER_SITE_MAX:
        raise FieldError(field, f"{gpus} GPUs", f"at most {GPUS_PER_SITE_MAX} GPUs at one site")
    return pools


def site_spec_to_proto(spec: SiteSpec) -> pb.SiteSpec:
    """A site as declared."""
    return pb.SiteSpec(
        site_id=spec.site_id,
        region=spec.region,
        provider=spec.provider,
        latitude_micro_deg=spec.latitude_micro_deg,
        longitude_micro_deg=spec.longitude_micro_deg,
        pools=[pool_spec_to_proto(pool) for pool in spec.pools],
        wan_bytes_per_s=spec.wan_bytes_per_s,
        origin_bytes_per_s=spec.origin_bytes_per_s,
        lan_bytes_per_s=spec.lan_bytes_per_s,
        egress_usd_micros_per_gb=spec.egress_usd_micros_per_gb,
        billing=spec.billing,
        preemptions_per_million_gpu_hours=spec.preemptions_per_million_gpu_hours,
        synthetic=spec.synthetic,
        weights_url=spec.weights_url,
    )


def site_spec_from_proto(msg: pb.SiteSpec) -> SiteSpec:
    """FieldError naming the figure that cannot be. Empty billing is "reserved"."""
    return SiteSpec(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        region=_region("region", msg.region),
        provider=bounds.label("provider", msg.provider),
        latitude_micro_deg=bounds.number("latitude_micro_deg", msg.latitude_micro_deg, -_LATITUDE_MAX, _LATITUDE_MAX),
        longitude_micro_deg=bounds.number("longitude_micro_deg", msg.longitude_micro_deg, -_LONGITUDE_MAX, _LONGITUDE_MAX),
        pools=pools_from_proto("pools", list(msg.pools)),
        wan_bytes_per_s=bounds.number("wan_bytes_per_s", msg.wan_bytes_per_s, 1, _RATE),
        origin_bytes_per_s=bounds.number("origin_bytes_per_s", msg.origin_bytes_per_s, 1, _RATE),
        lan_bytes_per_s=bounds.number("lan_bytes_per_s", msg.lan_bytes_per_s, 0, _RATE) or LAN_BYTES_PER_S,
        egress_usd_micros_per_gb=bounds.number("egress_usd_micros_per_gb", msg.egress_usd_micros_per_gb, 0, _PRICE),
        billing=bounds.label("billing", msg.billing, 63) or "reserved",
        preemptions_per_million_gpu_hours=bounds.number(
            "preemptions_per_million_gpu_hours", msg.preemptions_per_million_gpu_hours, 0, bounds.COUNT_MAX
        ),
        synthetic=msg.synthetic,
        weights_url=parse_weights_url("weights_url", msg.weights_url) if msg.weights_url else "",
    )


def _region(field: str, value: str) -> str:
    # As a job's constraint on regions, or no job could name it.
    if not value or len(value) > 63 or not value.isprintable():
        raise FieldError(field, value, "1 to 63 printable characters")
    return value


def link_spec_to_proto(link: LinkSpec) -> pb.LinkSpec:
    """What one flow between two sites gets."""
    return pb.LinkSpec(
        src=link.src,
        dst=link.dst,
        rtt_us=link.rtt_us,
        bytes_per_s=link.bytes_per_s,
        egress_usd_micros_per_gb=link.egress_usd_micros_per_gb,
    )


def link_spec_from_proto(msg: pb.LinkSpec) -> LinkSpec:
    """FieldError naming the figure that cannot be."""
    return LinkSpec(
        src=SiteId(parse_name("src", msg.src)),
        dst=SiteId(parse_name("dst", msg.dst)),
        rtt_us=bounds.instant("rtt_us", msg.rtt_us),
        bytes_per_s=bounds.number("bytes_per_s", msg.bytes_per_s, 1, _RATE),
        egress_usd_micros_per_gb=bounds.number("egress_usd_micros_per_gb", msg.egress_usd_micros_per_gb, 0, _PRICE),
    )


def drain_to_proto(drain: Drain) -> pb.Drain:
    """A drain that was asked for."""
    return pb.Drain(deadline_us=drain.deadline_us, started_us=drain.started_us, reason=drain.reason, actor=drain.actor)


def drain_from_proto(msg: pb.Drain) -> Drain:
    """FieldError naming the figure that cannot be."""
    return Drain(
        deadline_us=bounds.instant("deadline_us", msg.deadline_us),
        started_us=bounds.instant("started_us", msg.started_us),
        reason=bounds.line(msg.reason),
        actor=bounds.label("actor", msg.actor),
    )
