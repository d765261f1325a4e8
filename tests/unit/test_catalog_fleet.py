"""Fleet files: the reference fleet is what it claims to be, and every mistake is shown with its line and the remedy."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atoll import data
from atoll.catalog.fleet import dump_sites, parse_fleet, parse_site
from atoll.catalog.problems import PROBLEMS_MAX, SourceErrors
from atoll.model.errors import SourceError
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.site import LinkSpec, NodeSpec
from atoll.packaged import load_packaged
from atoll.wire.sites import link_spec_from_proto, link_spec_to_proto, site_spec_from_proto, site_spec_to_proto

REPOSITORY = Path(__file__).parents[2]
CLUSTERS = (REPOSITORY / "clusters.yaml").read_text(encoding="utf-8")
GPUS = load_packaged().gpus
REFERENCE = parse_fleet(CLUSTERS, "clusters.yaml", GPUS, data.fleet_wan_csv())

SMALL = textwrap.dedent(
    """\
    version: 1
    links:
    - {src: here, dst: there, rtt_ms: 21.5, gbit_per_s: 4.25, egress_usd_per_gb: 0.02}
    sites:
    - id: here
      region: NO
      wan_gbit_per_s: 10
      origin_gb_per_s: 1.5
      node: {memory_gb: 256, disk_cache_gb: 1000, disk_gb_per_s: 3}
      pools:
      - {id: big, gpu: H100-SXM, nodes: 2, gpus_per_node: 8}
      - id: small
        gpu: cpu
        nodes: 1
        gpus_per_node: 2
        node: {memory_gb: 8, disk_cache_gb: 20, disk_gb_per_s: 0.5, h2d_gb_per_s: 2}
    - id: there
      region: "Sao Paulo"
      wan_gbit_per_s: 1
      origin_gb_per_s: 0.1
    """
)


def refused(text: str) -> tuple[SourceError, ...]:
    with pytest.raises(SourceErrors) as caught:
        parse_fleet(text, "fleet.yaml", GPUS)
    assert all(error.file == "fleet.yaml" and error.line >= 1 for error in caught.value.errors)
    return caught.value.errors


def only(text: str) -> SourceError:
    errors = refused(text)
    assert len(errors) == 1, [str(error) for error in errors]
    return errors[0]


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_reference_fleet_is_what_it_claims() -> None:
    assert len(REFERENCE.sites) == 36
    assert len(REFERENCE.links) == 36 * 35
    slots: dict[str, int] = {}
    for site in REFERENCE.sites:
        assert site.synthetic and site.latitude_micro_deg and site.pools
        for pool in site.pools:
            slots[pool.gpu_type] = slots.get(pool.gpu_type, 0) + pool.slots
    assert sum(slots.values()) == 10_008
    assert len(slots) == 23
    assert (slots["H100-SXM"], slots["L4"], slots["GB200"], slots["RTX-3090"]) == (2_640, 688, 144, 24)


def test_reference_fleet_passes_the_api() -> None:
    for site in REFERENCE.sites:
        assert site_spec_from_proto(site_spec_to_proto(site)) == site
    for link in REFERENCE.links:
        assert link_spec_from_proto(link_spec_to_proto(link)) == link


def test_reference_fleet_and_catalogue_are_read_quickly() -> None:
    # Relative to this machine's speed: as long as counting to a million a few times. The best of three, since the garbage of all tests
    # before this one may be collected in the midst of it.
    def spent(work: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            before = time.process_time()
            work()
            times.append(time.process_time() - before)
        return min(times)

    reading = spent(lambda: (load_packaged(), parse_fleet(CLUSTERS, "clusters.yaml", GPUS, data.fleet_wan_csv())))
    assert reading < 2 * spent(lambda: sum(1 for number in range(5_000_000) if number >= 0))


def test_written_sites_read_back_equal() -> None:
    text = dump_sites(REFERENCE.sites, REFERENCE.links)
    assert parse_fleet(text, "again.yaml", GPUS) == REFERENCE
    assert parse_fleet(dump_sites([]), "none.yaml", GPUS).sites == ()


def test_units_and_defaults() -> None:
    fleet = parse_fleet(SMALL, "fleet.yaml", GPUS)
    here, there = fleet.sites
    assert (here.region, here.billing, here.synthetic) == ("NO", "reserved", False)
    assert (here.wan_bytes_per_s, here.origin_bytes_per_s) == (1_250_000_000, 1_500_000_000)
    assert here.pools[0].node == NodeSpec(host_memory_bytes=256 * 10**9, disk_cache_bytes=10**12, disk_bytes_per_s=3 * 10**9)
    assert here.pools[1].node.h2d_bytes_per_s == 2 * 10**9
    assert there.pools == ()
    assert fleet.links == (
        LinkSpec(src=SiteId("here"), dst=SiteId("there"), rtt_us=21_500, bytes_per_s=531_250_000, egress_usd_micros_per_gb=20_000),
    )


def test_one_site_alone() -> None:
    text = "id: lab\nregion: Berlin\nwan_gbit_per_s: 1\norigin_gb_per_s: 0.1\n"
    assert parse_site(text, "lab.yaml", GPUS).site_id == "lab"
    with pytest.raises(SourceErrors, match=r"lab.yaml:2: region is "):
        parse_site(text.replace("Berlin", "''"), "lab.yaml", GPUS)


def test_reference_links_without_a_deleted_site() -> None:
    kept = dump_sites(REFERENCE.sites[:3]).replace("version: 1\n", "version: 1\nlinks: reference\n")
    assert len(parse_fleet(kept, "fleet.yaml", GPUS, data.fleet_wan_csv()).links) == 3 * 2
    assert "not at hand" in only(kept).expected


@pytest.mark.parametrize(
    ("old", "new", "field", "expected"),
    [
        ("region: NO", "regoin: NO", "sites[0].regoin", "did you mean 'region'"),
        ("gpu: H100-SXM", "gpu: H100-SMX", "sites[0].pools[0].gpu", "did you mean 'H100-SXM'"),
        ("gpu: H100-SXM", "gpu: h100-sxm", "sites[0].pools[0].gpu", "did you mean 'H100-SXM'"),
        ("id: there", "id: here", "sites[1].id", "each site once"),
        ("id: small", "id: big", "sites[0].pools", "each pool of a site once"),
        ("dst: there", "dst: theer", "links[0].dst", "did you mean 'there'"),
        ("dst: there", "dst: here", "links[0].dst", "another site"),
        ("nodes: 2", "nodes: -2", "sites[0].pools[0].nodes", "from 1 to"),
        ("nodes: 2", "nodes: 2.5", "sites[0].pools[0].nodes", "a whole number"),
        ("nodes: 2", "nodes: 1000000", "sites[0].pools[0].nodes", "a whole number"),
        ("nodes: 2", "nodes: two", "sites[0].pools[0].nodes", "a whole number"),
        ("nodes: 2", "nodes: [2]", "sites[0].pools[0].nodes", "a whole number"),
        ("nodes: 2", "nodes: ~", "sites[0].pools[0].nodes", "a whole number"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: .nan", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: .inf", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: -1", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: 0", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: 1e99", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", f"wan_gbit_per_s: {'9' * 5000}", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("wan_gbit_per_s: 10", "wan_gbit_per_s: 10 Gbps", "sites[0].wan_gbit_per_s", "a number from 0.000000008 to 8000000"),
        ("region: NO", "region: {a: b}", "sites[0].region", "printable characters"),
        ("region: NO", "region:", "sites[0].region", "printable characters"),
        ("region: NO", f"region: {'x' * 64}", "sites[0].region", "1 to 63"),
        ("region: NO", "region: NO\n  synthetic: maybe", "sites[0].synthetic", "true or false"),
        ("region: NO", "region: NO\n  billing: spto", "sites[0].billing", "did you mean 'spot'"),
        ("region: NO", "region: NO\n  region: SE", "key", "stands in line 6 already"),
        ("region: NO", "region: NO\n  latitude: 91", "sites[0].latitude", "from -90 to 90"),
        ("version: 1", "version: 2", "version", "the only version"),
        ("version: 1", "versoin: 1\nversion: 1", "versoin", "did you mean 'version'"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_remedy(old: str, new: str, field: str, expected: str) -> None:
    text = SMALL.replace(old, new, 1)
    matching = [error for error in refused(text) if error.field == field]
    assert len(matching) == 1
    (error,) = matching
    assert expected in error.expected
    assert abs(error.line - line_of(SMALL, old)) <= 1 or field == "sites[0].pools"
    assert "\n" not in str(error) and len(str(error)) < 600


@pytest.mark.parametrize("name", ["a/b", "..", "a..b", "A", ".a", "-a", '"a\\nb"', '"a\\0"', "a" * 64, '""', "[a]", "{}", "~"])
def test_ids_that_are_no_names(name: str) -> None:
    errors = refused(SMALL.replace("id: there", f"id: {name}"))
    assert ("sites[1].id", line_of(SMALL, "id: there")) in {(error.field, error.line) for error in errors}


def test_names_of_nodes_must_fit() -> None:
    assert "so short that its nodes" in only(SMALL.replace("id: big", f"id: {'b' * 62}")).expected


def test_all_mistakes_at_once_in_order_of_line() -> None:
    text = SMALL.replace("nodes: 2", "nodes: 0").replace("rtt_ms: 21.5", "rtt_ms: fast").replace("region: NO", "reg: NO")
    assert [error.field for error in refused(text)] == ["links[0].rtt_ms", "sites[0].region", "sites[0].reg", "sites[0].pools[0].nodes"]


def test_a_hopeless_file_is_not_listed_whole() -> None:
    errors = refused("version: 1\nsites:\n" + "- id: UPPER\n" * 5_000)
    assert len(errors) == PROBLEMS_MAX


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("", 1, "file"),
        ("# only a note\n", 1, "file"),
        ("---", 1, "file"),
        ("version:\nsites: []\n", 1, "version"),
        ("version: 1\nsites: [", 2, "YAML"),
        ("version: 1\nsites:\n- id: a\n  region: 'x\n", 4, "YAML"),
        ("version: 1\nsites:\n- id: a\n region: x\n", 4, "YAML"),
        ("version: 1\n\tsites: 1\n", 2, "YAML"),
        ("version: 1\nsites: &all []\n", 2, "anchor"),
        ("version: 1\nsites: *all\n", 2, "alias"),
        ("version: 1\nsites: !!python/object/apply:os.system [ls]\n", 2, "tag"),
        ("version: 1\nsites: []\n---\nversion: 1\n", 3, "document"),
        ("version: 1\nsites:\n- \0", 3, "character"),
        ("version: 1\n\ud800", 2, "character"),
        ("- a\n- b\n", 1, "file"),
        ("just words", 1, "file"),
        ("? [a]\n: b\n", 1, "key"),
        ("[" * 1_000_000, 1, "depth"),
        ("- " * 100_000, 1, "depth"),
        ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 100)), 13, "depth"),
        ("#" * (4 * 1024 * 1024 + 1), 1, "file"),
    ],
)
def test_what_is_no_fleet_file(text: str, line: int, field: str) -> None:
    assert (line, field) in {(error.line, error.field) for error in refused(text)}


def test_values_may_look_like_anything_in_quotes() -> None:
    site = replace(REFERENCE.sites[0], region='a "b" \\ #: {[é', provider="true")
    assert parse_fleet(dump_sites([site]), "fleet.yaml", GPUS).sites == (site,)


def test_own_nodes_of_pools_survive() -> None:
    first, *rest = REFERENCE.sites[0].pools
    odd = replace(first, pool_id=PoolId("odd"), gpu_type=GpuTypeId("cpu"), gpu_memory_bytes=1, node=replace(first.node, h2d_bytes_per_s=7))
    site = replace(REFERENCE.sites[0], pools=(odd, *rest))
    assert parse_fleet(dump_sites([site]), "fleet.yaml", GPUS).sites == (site,)
