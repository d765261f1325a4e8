"""The table of docs/placement.md about weights from peer sites: every figure by plain arithmetic and by a real core."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import combinations

from atoll.model.ids import SiteId
from atoll.model.job import Constraints
from atoll.model.limits import FETCH_SOURCES_MAX
from atoll.model.quote import Quote
from atoll.model.site import LinkSpec
from orchestrator.core import events
from orchestrator.core.placement.policies import DEFAULT
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GB, Fleet, model, pool, site, spec
from tests.unit.test_placement_by_hand import PAGE

WEIGHTS_GB, ORIGIN_GBS = 20, 1.0
HERE = SiteId("here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A line of the first column; the origin store is one without a name."""

    name: str
    rtt_s: float
    gbs: float
    usd: float
    flows: int

    @property
    def rate(self) -> float:
        return self.gbs / (1 + self.flows)

    @property
    def beside_s(self) -> float:
        return self.rtt_s + self.usd * WEIGHTS_GB * DEFAULT.seconds_per_dollar


def _rows() -> list[tuple[list[Source], float, str, str, str]]:
    (text,) = re.findall(r"^(\| peers: .*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    found = []
    for line in text.splitlines()[2:]:
        peers, own, *told = [cell.strip() for cell in line.strip("|").split("|")]
        sources = []
        for number, one in enumerate(peers.split(";")):
            rtt_ms, gbs, usd, flows = (float(figure) for figure in one.split(","))
            sources.append(Source(name=f"peer-{number}", rtt_s=rtt_ms / 1_000, gbs=gbs, usd=usd, flows=int(flows)))
        found.append((sources, float(own), *told))
    return found


def _by_hand(peers: list[Source], own_gbs: float) -> tuple[str, str, str]:
    """Every set of sources tried out."""
    origin = Source(name="", rtt_s=0, gbs=ORIGIN_GBS, usd=0, flows=0)
    chosen: tuple[Source, ...] = (origin,)
    best = fetch_s = WEIGHTS_GB / ORIGIN_GBS
    for size in range(1, FETCH_SOURCES_MAX + 1):
        for together in combinations([origin, *(peer for peer in peers if peer.rate >= ORIGIN_GBS / 8)], size):
            moved_s = WEIGHTS_GB / min(sum(one.rate for one in together), max(own_gbs, ORIGIN_GBS))
            cost_s = max(one.beside_s for one in together) + moved_s
            worth = all(
                WEIGHTS_GB / min(sum(other.rate for other in together if other is not one) or 1e-9, own_gbs) > moved_s * 64 / 63
                for one in together
            )
            if cost_s < best - 1e-9 and worth:
                best, chosen = cost_s, together
                fetch_s = max(one.rtt_s for one in together) + moved_s
    count = sum(bool(one.name) for one in chosen)
    named = [f"{count} peer{'s' if count > 1 else ''}"] if count else []
    named += ["the origin store"] if origin in chosen else []
    return f"{fetch_s:.3f}", f"{best - fetch_s:.3f}", " and ".join(named)


def _by_a_core(peers: list[Source], own_gbs: float) -> tuple[str, str, str]:
    """Each peer gives another model to as many sites as is said, and then a job is quoted."""
    here = replace(site(HERE, pool("p")), wan_bytes_per_s=int(own_gbs * GB))
    sites, links, readers = [here], [], []
    for peer in peers:
        name = SiteId(peer.name)
        sites.append(replace(site(peer.name, pool("p")), wan_bytes_per_s=20 * GB, weights_url=f"http://{peer.name}"))
        for goal in (HERE, *(SiteId(f"{peer.name}-reader-{number}") for number in range(peer.flows))):
            link = LinkSpec(
                src=name,
                dst=goal,
                rtt_us=int(peer.rtt_s * 1_000_000),
                bytes_per_s=int(peer.gbs * GB),
                egress_usd_micros_per_gb=int(peer.usd * 10**6),
            )
            links.append(link)
            if goal != HERE:
                sites.append(replace(site(goal, pool("p")), wan_bytes_per_s=20 * GB))
                readers.append(goal)
    fleet = Fleet(*sites, models=(model("m", WEIGHTS_GB), model("other", WEIGHTS_GB)))
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(), links=tuple(links)))
    for peer in peers:
        fleet.agents[SiteId(peer.name)].disk = {"m", "other"}
        fleet.report(peer.name)
    for goal in readers:
        fleet.submit(spec("other", prompt=goal, constraints=Constraints(sites=(goal,))))
    quote = fleet.machine.quote_job(spec(constraints=Constraints(sites=(HERE,))), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None
    terms, fetch_from = dict(zip(TERM_NAMES, quote.chosen.terms_us, strict=True)), quote.chosen.fetch_from
    count = len(fetch_from.sites) if fetch_from is not None else 0
    named = [f"{count} peer{'s' if count > 1 else ''}"] if count else []
    named += ["the origin store"] if fetch_from is None or fetch_from.origin_too else []
    return f"{terms['fetch'] / 1e6:.3f}", f"{terms['link'] / 1e6:.3f}", " and ".join(named)


def test_the_table_is_right_by_hand_and_by_the_core() -> None:
    rows = _rows()
    assert len(rows) == 11 and len({told for *_, told in rows}) == 4
    for peers, own_gbs, *told in rows:
        assert (_by_hand(peers, own_gbs), _by_a_core(peers, own_gbs)) == (tuple(told), tuple(told)), (peers, own_gbs)
