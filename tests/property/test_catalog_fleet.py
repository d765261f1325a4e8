"""Whatever a fleet file holds, it is read or refused with lines; what is written reads back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from atoll.catalog.fleet import FleetSpec, dump_sites, parse_fleet
from atoll.catalog.problems import PROBLEMS_MAX, SourceErrors
from atoll.model import limits
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.site import LinkSpec, NodeSpec, PoolSpec, SiteSpec

GPUS = tuple(GpuTypeId(name) for name in ("H100-SXM", "L4", "cpu"))
CLUSTERS = (Path(__file__).parents[2] / "clusters.yaml").read_text(encoding="utf-8")
# The head with its keys and three sites: mutations of it stay near what people write.
SEED = "version: 1\nlinks: []\n" + CLUSTERS[CLUSTERS.index("sites:\n") :][:1_500]
REFERENCE_LINKS = "src,dst,rtt_ms,per_vm_flow_gbps_est,egress_usd_per_gb\naws-use1,aws-usw2,68.3,4.25,0.09\n"


def read(text: str) -> FleetSpec | None:
    """The fleet, or None where it was refused in order; anything else is a failure."""
    try:
        return parse_fleet(text, "fleet.yaml", GPUS, REFERENCE_LINKS)
    except SourceErrors as error:
        found = error.errors
    assert 1 <= len(found) <= PROBLEMS_MAX
    for one in found:
        assert one.file == "fleet.yaml" and 1 <= one.line <= max(len(text.splitlines()), 1)
        assert str(one).isprintable() and len(str(one)) < 1_000
    return None


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    read(text)


@given(
    st.lists(
        st.sampled_from([*"-:?[]{},#&*!|>'\"%@` \n\t0a~\0", "\n  ", "- ", ": ", "sites", "version: 1\n", "---", "é", "\ud800"]), max_size=60
    )
)
def test_any_heap_of_yaml_marks(parts: list[str]) -> None:
    read("".join(parts))


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SEED)),
            st.integers(0, 30),
            st.one_of(
                st.text(max_size=8),
                st.sampled_from(["\n", "  ", "- ", "{", "}", "[", '"', "-1", ".nan", "1e400", "../", "&a ", "*a", "!!int "]),
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_mutation_of_a_fleet_file(edits: list[tuple[int, int, str]]) -> None:
    text = SEED
    for start, length, new in edits:
        text = text[:start] + new + text[start + length :]
    read(text)


_KEYS = st.sampled_from(["version", "links", "sites", "id", "region", "pools", "node", "gpu", "nodes", "src", "dst", "wan_gbit_per_s"])
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["reference", "cpu", "a/b", ".."])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=5)),
    max_leaves=25,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_any_well_formed_yaml(value: dict[str, Any]) -> None:
    read(yaml.safe_dump({"version": 1, **value}))


_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda name: ".." not in name)
_LABELS = st.text(max_size=63).filter(str.isprintable)
_BYTES = st.integers(0, limits.BYTES_MAX)
_RATES = st.integers(1, limits.RATE_BYTES_PER_S_MAX)
_PRICES = st.integers(0, limits.PRICE_USD_MICROS_MAX)
_NODES = st.builds(
    NodeSpec, host_memory_bytes=_BYTES, disk_cache_bytes=_BYTES, disk_bytes_per_s=_RATES, h2d_bytes_per_s=st.integers(0, 10**15)
)
_POOLS = st.builds(
    PoolSpec,
    pool_id=_NAMES.map(PoolId),
    gpu_type=st.sampled_from(GPUS),
    nodes=st.integers(1, 1_000),
    gpus_per_node=st.integers(1, 16),
    node=_NODES,
    usd_micros_per_gpu_hour=_PRICES,
    gpu_memory_bytes=_BYTES,
)
_SITES = st.builds(
    SiteSpec,
    site_id=_NAMES.map(SiteId),
    region=_LABELS.filter(bool),
    provider=_LABELS,
    latitude_micro_deg=st.integers(-90_000_000, 90_000_000),
    longitude_micro_deg=st.integers(-180_000_000, 180_000_000),
    pools=st.lists(_POOLS, max_size=3, unique_by=lambda pool: pool.pool_id).map(tuple),
    wan_bytes_per_s=_RATES,
    origin_bytes_per_s=_RATES,
    egress_usd_micros_per_gb=_PRICES,
    billing=st.sampled_from(["reserved", "on_demand", "spot"]),
    preemptions_per_million_gpu_hours=st.integers(0, 10**9),
    synthetic=st.booleans(),
    weights_url=st.sampled_from(["", "http://10.0.0.7:8443", "https://weights.lab.example/atoll"]),
)


@given(st.lists(_SITES, max_size=3, unique_by=lambda site: site.site_id), st.integers(0, 60_000_000), _RATES, _PRICES)
def test_what_is_written_reads_back_equal(sites: list[SiteSpec], rtt_us: int, bytes_per_s: int, price: int) -> None:
    links = tuple(
        LinkSpec(src=src.site_id, dst=dst.site_id, rtt_us=rtt_us, bytes_per_s=bytes_per_s, egress_usd_micros_per_gb=price)
        for src in sites
        for dst in sites
        if src is not dst
    )
    assert read(dump_sites(sites, links)) == FleetSpec(sites=tuple(sites), links=links)
