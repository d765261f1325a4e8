"""One site of a fleet file: its keys -> `SiteSpec`, and back to text.

Decides the units in which a person writes a site. Whether sites and links fit together is `fleet`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from atoll.catalog.figures import written
from atoll.catalog.yaml_fields import UNREADABLE, Fields
from atoll.model import limits
from atoll.model.address import WEIGHTS_URL_RULE, parse_weights_url
from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, PoolId, SiteId, parse_name
from atoll.model.site import LAN_BYTES_PER_S, NodeSpec, PoolSpec, SiteSpec

GB: Final = 10**9
GBIT_PER_S: Final = 125_000_000
USD: Final = 10**6
_DEGREE: Final = 10**6
# As many GPUs as the largest site that was ever built has.
_GPUS_PER_SITE_MAX: Final = 131_072
_PREEMPTIONS_MAX: Final = 10**9
BILLING: Final = ("reserved", "on_demand", "spot")
# What YAML 1.1 readers take for something else than a word.
_NOT_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def read_site(fields: Fields, gpus: Iterable[GpuTypeId]) -> SiteSpec:
    """A site; mistakes are noted in the fields' Problems."""
    site_id = SiteId(fields.name("id"))
    region = fields.label("region")
    shared = fields.mapping("node")
    shared_node = _node(shared) if shared else None
    known = tuple(gpus)
    pools = [_pool(pool, known, shared_node) for pool in fields.listed("pools", limits.POOLS_PER_SITE_MAX)]
    _check_pools(fields, pools)
    spec = SiteSpec(
        site_id=site_id,
        region=region,
        provider=fields.label("provider", ""),
        latitude_micro_deg=fields.figure("latitude", _DEGREE, -90 * _DEGREE, 90 * _DEGREE, 0),
        longitude_micro_deg=fields.figure("longitude", _DEGREE, -180 * _DEGREE, 180 * _DEGREE, 0),
        pools=tuple(pools),
        wan_bytes_per_s=fields.figure("wan_gbit_per_s", GBIT_PER_S, 1, limits.RATE_BYTES_PER_S_MAX),
        origin_bytes_per_s=fields.figure("origin_gb_per_s", GB, 1, limits.RATE_BYTES_PER_S_MAX),
        lan_bytes_per_s=fields.figure("lan_gbit_per_s", GBIT_PER_S, 1, limits.RATE_BYTES_PER_S_MAX, LAN_BYTES_PER_S),
        egress_usd_micros_per_gb=fields.figure("egress_usd_per_gb", USD, 0, limits.PRICE_USD_MICROS_MAX, 0),
        billing=(fields.word("billing", BILLING, "billing") or BILLING[0]) if fields.has("billing") else BILLING[0],
        preemptions_per_million_gpu_hours=fields.whole("preemptions_per_million_gpu_hours", 0, _PREEMPTIONS_MAX, 0),
        synthetic=fields.flag("synthetic", default=False),
        weights_url=_weights_url(fields),
    )
    fields.asked("billing")
    fields.finish()
    return spec


def _weights_url(fields: Fields) -> str:
    text = fields.text("weights_url", WEIGHTS_URL_RULE, default="")
    if not text:
        return ""
    try:
        return parse_weights_url("weights_url", text)
    except FieldError as error:
        fields.wrong("weights_url", text, error.expected)
        return ""


def _node(fields: Fields) -> NodeSpec:
    node = NodeSpec(
        host_memory_bytes=fields.figure("memory_gb", GB, 0, limits.BYTES_MAX),
        disk_cache_bytes=fields.figure("disk_cache_gb", GB, 0, limits.BYTES_MAX),
        disk_bytes_per_s=fields.figure("disk_gb_per_s", GB, 1, limits.RATE_BYTES_PER_S_MAX),
        h2d_bytes_per_s=fields.figure("h2d_gb_per_s", GB, 0, limits.RATE_BYTES_PER_S_MAX, 0),
    )
    fields.finish()
    return node


def _pool(fields: Fields, gpus: tuple[GpuTypeId, ...], shared: NodeSpec | None) -> PoolSpec:
    own = fields.mapping("node")
    node = _node(own) if own else shared
    if node is None:
        fields.wrong("node", "missing", "the node's memory, disk and rates, here or at the site for all its pools")
        node = NodeSpec(host_memory_bytes=0, disk_cache_bytes=0, disk_bytes_per_s=1)
    gpu_type = GpuTypeId(fields.word("gpu", gpus, "GPU type") or next(iter(gpus), ""))
    pool = PoolSpec(
        pool_id=PoolId(fields.name("id")),
        gpu_type=gpu_type,
        nodes=fields.whole("nodes", 1, limits.NODES_PER_POOL_MAX),
        gpus_per_node=fields.whole("gpus_per_node", 1, limits.GPUS_PER_NODE_MAX),
        node=node,
        usd_micros_per_gpu_hour=fields.figure("usd_per_gpu_hour", USD, 0, limits.PRICE_USD_MICROS_MAX, 0),
        gpu_memory_bytes=fields.figure("gpu_memory_gb", GB, 0, limits.BYTES_MAX, 0),
    )
    fields.finish()
    last = pool.node_id(pool.nodes - 1)
    try:
        if pool.pool_id != UNREADABLE:
            parse_name("id", last)
    except FieldError:
        fields.wrong("id", pool.pool_id, f"a name so short that its nodes ({last}) have legal names too")
    return pool


def _check_pools(fields: Fields, pools: list[PoolSpec]) -> None:
    seen: set[PoolId] = set()
    for index, pool in enumerate(pools):
        if pool.pool_id in seen and pool.pool_id != UNREADABLE:
            fields.wrong("pools", f"[{index}].id {pool.pool_id}", "each pool of a site once")
        seen.add(pool.pool_id)
    total = sum(pool.slots for pool in pools)
    if total > _GPUS_PER_SITE_MAX:
        fields.wrong("pools", f"{total} GPUs", f"at most {_GPUS_PER_SITE_MAX} GPUs at one site")


def write_site(spec: SiteSpec) -> list[str]:
    """Lines of one entry of `sites:` that read back to an equal spec."""
    lines = [f"- id: {quoted_text(spec.site_id)}", f"  region: {quoted_text(spec.region)}"]
    if spec.provider:
        lines.append(f"  provider: {quoted_text(spec.provider)}")
    if spec.latitude_micro_deg or spec.longitude_micro_deg:
        lines.append(f"  latitude: {written(spec.latitude_micro_deg, _DEGREE)}")
        lines.append(f"  longitude: {written(spec.longitude_micro_deg, _DEGREE)}")
    lines.append(f"  billing: {quoted_text(spec.billing)}")
    if spec.preemptions_per_million_gpu_hours:
        lines.append(f"  preemptions_per_million_gpu_hours: {spec.preemptions_per_million_gpu_hours}")
    lines.append(f"  wan_gbit_per_s: {written(spec.wan_bytes_per_s, GBIT_PER_S)}")
    lines.append(f"  origin_gb_per_s: {written(spec.origin_bytes_per_s, GB)}")
    if spec.lan_bytes_per_s != LAN_BYTES_PER_S:
        lines.append(f"  lan_gbit_per_s: {written(spec.lan_bytes_per_s, GBIT_PER_S)}")
    if spec.egress_usd_micros_per_gb:
        lines.append(f"  egress_usd_per_gb: {written(spec.egress_usd_micros_per_gb, USD)}")
    if spec.weights_url:
        lines.append(f"  weights_url: {quoted_text(spec.weights_url)}")
    if spec.synthetic:
        lines.append("  synthetic: true")
    nodes = {pool.node for pool in spec.pools}
    if len(nodes) == 1:
        lines.append(f"  node: {_node_text(spec.pools[0].node)}")
    if spec.pools:
        lines.append("  pools:")
        lines.extend(f"  - {_pool_text(pool, with_node=len(nodes) > 1)}" for pool in spec.pools)
    return lines


def _node_text(node: NodeSpec) -> str:
    parts = [
        f"memory_gb: {written(node.host_memory_bytes, GB)}",
        f"disk_cache_gb: {written(node.disk_cache_bytes, GB)}",
        f"disk_gb_per_s: {written(node.disk_bytes_per_s, GB)}",
    ]
    if node.h2d_bytes_per_s:
        parts.append(f"h2d_gb_per_s: {written(node.h2d_bytes_per_s, GB)}")
    return "{" + ", ".join(parts) + "}"


def _pool_text(pool: PoolSpec, *, with_node: bool) -> str:
    parts = [
        f"id: {quoted_text(pool.pool_id)}",
        f"gpu: {quoted_text(pool.gpu_type)}",
        f"nodes: {pool.nodes}",
        f"gpus_per_node: {pool.gpus_per_node}",
    ]
    if pool.usd_micros_per_gpu_hour:
        parts.append(f"usd_per_gpu_hour: {written(pool.usd_micros_per_gpu_hour, USD)}")
    if pool.gpu_memory_bytes:
        parts.append(f"gpu_memory_gb: {written(pool.gpu_memory_bytes, GB)}")
    if with_node:
        parts.append(f"node: {_node_text(pool.node)}")
    return "{" + ", ".join(parts) + "}"


def quoted_text(text: str) -> str:
    """`text` as a YAML scalar: bare where it is a plain word, else in double quotes."""
    bare = text.replace("-", "").replace("_", "")
    if text and bare.isascii() and bare.isalnum() and text[0].isalpha() and text.lower() not in _NOT_WORDS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
