"""A fleet file (clusters.yaml) -> sites and the links between them, and sites back to text.

    version: 1
    links: reference            # or a list of {src, dst, rtt_ms, gbit_per_s, egress_usd_per_gb}, one per direction
    sites:
    - id: lab-berlin            # see `sites` for the keys of a site
      ...

Decides what a whole fleet must satisfy: each site once, links between known sites. Opens no file: the text of the reference links is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from atoll.catalog.csv_rows import read_rows
from atoll.catalog.figures import written
from atoll.catalog.problems import Problems, one_of
from atoll.catalog.sites import GBIT_PER_S, USD, quoted_text, read_site, write_site
from atoll.catalog.yaml_fields import UNREADABLE, Fields
from atoll.catalog.yaml_nodes import parse_yaml
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, SiteId
from atoll.model.site import LinkSpec, SiteSpec

VERSION: Final = 1
# Value of `links` that stands for the packaged table.
REFERENCE: Final = "reference"
_REFERENCE_FILE: Final = "fleet_wan.csv"
# Every pair of 1,000 sites, which no file of 4 MiB holds.
_LINKS_MAX: Final = 1_000_000
_MILLISECOND: Final = 1_000
# A round trip of a minute is a broken link.
_RTT_US_MAX: Final = 60_000_000
_LINK_COLUMNS: Final = frozenset({"src", "dst", "rtt_ms", "per_vm_flow_gbps_est", "egress_usd_per_gb"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """What a fleet file declares."""

    sites: tuple[SiteSpec, ...]
    links: tuple[LinkSpec, ...] = ()


def parse_fleet(text: str, file_name: str, gpus: Iterable[GpuTypeId], reference_links_text: str = "") -> FleetSpec:
    """All sites and links of a file. `gpus`: the known types. Raises SourceErrors with every mistake found."""
    problems = Problems(file_name)
    fields = Fields(parse_yaml(text, problems), "", problems)
    version = fields.whole("version", 1, 1_000_000)
    if version != VERSION:
        fields.wrong("version", version, f"{VERSION}, the only version there is")
    entries = fields.listed("sites", limits.SITES_MAX)
    if not fields.has("sites"):
        problems.add(fields.line, "sites", "missing", "a list of sites")
    known = tuple(gpus)
    sites: dict[SiteId, SiteSpec] = {}
    for entry in entries:
        site = read_site(entry, known)
        if site.site_id in sites and site.site_id != UNREADABLE:
            entry.wrong("id", site.site_id, "each site once")
        sites[site.site_id] = site
    links = _links(fields, sites, reference_links_text, problems)
    fields.finish()
    problems.check()
    return FleetSpec(sites=tuple(sites.values()), links=links)


def scaled(sites: Iterable[SiteSpec], numerator: int, denominator: int) -> tuple[SiteSpec, ...]:
    """The same sites with so many of their nodes, each pool at least one: what differs between sites stays, what is many becomes few.

    Links stay as fast as they are: one fetch takes as long as before, and fewer share the way.
    """
    if not 0 < numerator <= denominator:
        raise FieldError("scale", f"{numerator}/{denominator}", "a share above 0 and at most 1, such as 1/32")
    return tuple(
        replace(
            site,
            pools=tuple(
                replace(pool, nodes=max((2 * pool.nodes * numerator + denominator) // (2 * denominator), 1)) for pool in site.pools
            ),
        )
        for site in sites
    )


def parse_site(text: str, file_name: str, gpus: Iterable[GpuTypeId]) -> SiteSpec:
    """The one site of a text: a mapping with the keys of an entry of `sites`. Raises SourceErrors."""
    problems = Problems(file_name)
    site = read_site(Fields(parse_yaml(text, problems), "", problems), gpus)
    problems.check()
    return site


def parse_links_csv(text: str, file_name: str) -> tuple[LinkSpec, ...]:
    """Links of a table, one direction a row: src, dst, rtt_ms, per_vm_flow_gbps_est, egress_usd_per_gb. Raises SourceErrors."""
    problems = Problems(file_name)
    links = tuple(
        LinkSpec(
            src=SiteId(row.text("src")),
            dst=SiteId(row.text("dst")),
            rtt_us=row.figure("rtt_ms", _MILLISECOND, 0, _RTT_US_MAX),
            bytes_per_s=row.figure("per_vm_flow_gbps_est", GBIT_PER_S, 1, limits.RATE_BYTES_PER_S_MAX),
            egress_usd_micros_per_gb=row.figure("egress_usd_per_gb", USD, 0, limits.PRICE_USD_MICROS_MAX, default=0),
        )
        for row in read_rows(text, problems, _LINK_COLUMNS)
    )
    problems.check()
    return links


def dump_sites(sites: Iterable[SiteSpec], links: Iterable[LinkSpec] = ()) -> str:
    """A fleet file that `parse_fleet` reads back to equal sites and links."""
    lines = [f"version: {VERSION}"]
    links = tuple(links)
    if links:
        lines.append("links:")
        lines.extend(_link_text(link) for link in links)
    entries = [line for site in sites for line in write_site(site)]
    lines.extend(["sites:", *entries] if entries else ["sites: []"])
    return "\n".join(lines) + "\n"


def _links(fields: Fields, sites: dict[SiteId, SiteSpec], reference_links_text: str, problems: Problems) -> tuple[LinkSpec, ...]:
    text = fields.text_or_none("links")
    if text is not None:
        fields.asked("links")
        if text != REFERENCE:
            fields.wrong("links", text, f"a list of links, or {REFERENCE!r} for the links of the reference fleet")
        elif not reference_links_text:
            fields.wrong("links", text, "a list of links: the links of the reference fleet are not at hand here")
        else:
            # Whoever deletes a site from the reference fleet need not delete its links.
            every = parse_links_csv(reference_links_text, _REFERENCE_FILE)
            return tuple(link for link in every if link.src in sites and link.dst in sites)
        return ()
    return _listed_links(fields.listed("links", _LINKS_MAX), sites, problems)


def _listed_links(entries: list[Fields], sites: dict[SiteId, SiteSpec], problems: Problems) -> tuple[LinkSpec, ...]:
    links: dict[tuple[SiteId, SiteId], LinkSpec] = {}
    for entry in entries:
        link = LinkSpec(
            src=SiteId(entry.name("src")),
            dst=SiteId(entry.name("dst")),
            rtt_us=entry.figure("rtt_ms", _MILLISECOND, 0, _RTT_US_MAX),
            bytes_per_s=entry.figure("gbit_per_s", GBIT_PER_S, 1, limits.RATE_BYTES_PER_S_MAX),
            egress_usd_micros_per_gb=entry.figure("egress_usd_per_gb", USD, 0, limits.PRICE_USD_MICROS_MAX, 0),
        )
        entry.finish()
        for end, site_id in (("src", link.src), ("dst", link.dst)):
            if site_id not in sites and site_id != UNREADABLE:
                entry.wrong(end, site_id, one_of(site_id, sites, "site"))
        if link.src == link.dst != UNREADABLE:
            entry.wrong("dst", link.dst, "another site than src")
        if (link.src, link.dst) in links and UNREADABLE not in {link.src, link.dst}:
            problems.add(entry.line, entry.path, f"{link.src} to {link.dst}", "each direction of a link once")
        links[link.src, link.dst] = link
    return tuple(links.values())


def _link_text(link: LinkSpec) -> str:
    parts = [
        f"src: {quoted_text(link.src)}",
        f"dst: {quoted_text(link.dst)}",
        f"rtt_ms: {written(link.rtt_us, _MILLISECOND)}",
        f"gbit_per_s: {written(link.bytes_per_s, GBIT_PER_S)}",
    ]
    if link.egress_usd_micros_per_gb:
        parts.append(f"egress_usd_per_gb: {written(link.egress_usd_micros_per_gb, USD)}")
    return "- {" + ", ".join(parts) + "}"
