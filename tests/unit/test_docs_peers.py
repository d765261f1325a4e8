"""The table of docs/placement.md about weights from peer sites: every figure by plain arithmetic and by a real core."""

from __future__ import annotations

import re
from dataclasses import replace

from atoll.model.ids import SiteId
from atoll.model.job import Constraints
from atoll.model.quote import Quote
from atoll.model.site import LinkSpec
from orchestrator.core import events
from orchestrator.core.placement.policies import DEFAULT
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GB, Fleet, model, pool, site, spec
from tests.unit.test_placement_by_hand import PAGE

WEIGHTS_GB, ORIGIN_S = 20, 20.0
HERE, PEER = SiteId("here"), SiteId("peer")


def _rows() -> list[tuple[float, float, float, str, str, bool]]:
    (text,) = re.findall(r"^(\| peer \|.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return [(float(rtt), float(rate), float(usd), fetch, link, source == "peer") for _, rtt, rate, usd, fetch, link, source in cells]


def test_the_table_is_right_by_hand_and_by_the_core() -> None:
    rows = _rows()
    assert len(rows) == 5 and {row[-1] for row in rows} == {True, False}
    for rtt_ms, rate, usd, fetch, link, from_peer in rows:
        peer_s, price_s = rtt_ms / 1_000 + WEIGHTS_GB / rate, usd * WEIGHTS_GB * DEFAULT.seconds_per_dollar
        assert (peer_s + price_s < ORIGIN_S) is from_peer
        assert (fetch, link) == ((f"{peer_s:.3f}", f"{price_s:.3f}") if from_peer else (f"{ORIGIN_S:.3f}", "0.000"))
        sites = [replace(site(name, pool("p")), wan_bytes_per_s=20 * GB, weights_url=f"http://{name}") for name in (HERE, PEER)]
        fleet = Fleet(*sites, models=(model("m", WEIGHTS_GB),))
        way = LinkSpec(
            src=PEER, dst=HERE, rtt_us=int(rtt_ms * 1_000), bytes_per_s=int(rate * GB), egress_usd_micros_per_gb=int(usd * 10**6)
        )
        fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(), links=(way,)))
        fleet.agents[PEER].disk = {"m"}
        fleet.report(PEER)
        quote = fleet.machine.quote_job(spec(constraints=Constraints(sites=(HERE,))), fleet.now_us)
        assert isinstance(quote, Quote) and quote.chosen is not None
        terms = dict(zip(TERM_NAMES, quote.chosen.terms_us, strict=True))
        assert (f"{terms['fetch'] / 1e6:.3f}", f"{terms['link'] / 1e6:.3f}") == (fetch, link)
        assert quote.chosen.fetch_from == (PEER if from_peer else None)
