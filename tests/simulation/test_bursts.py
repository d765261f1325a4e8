"""A burst of one model that nobody has yet: those who wait until the weights have landed are told what the ways to their nodes will take,
all of them together, and no more wait at one site than are better off there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import JobId, ModelId, TenantId
from atoll.model.quote import Quote
from atoll.model.site import SiteSpec
from orchestrator.core.placement.policy import Policy
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.results.rows import JobRow
from sims.traces.job import TraceJob
from tests.simulation.played import CATALOGUE, AsPredicted, Rows, three_sites
from tests.unit.fleet_of_machines import GB, GPUS, SECOND, pool, site

# Copies ahead of demand would be copies of somebody else's.
ALONE = Policy(residency_interval_ms=7 * 86_400_000, learning=False)


def fleet(lan_gbs: int, origin_gbs: int, *, sites: int, nodes: int) -> Scenario:
    """Sites alike with so many nodes of eight GPUs, all of which share the way between them."""
    pools = replace(pool("p"), nodes=nodes, gpus_per_node=8)

    def one(name: str) -> SiteSpec:
        wide = site(name, pools, origin_gbs=origin_gbs)
        return replace(wide, wan_bytes_per_s=origin_gbs * GB, lan_bytes_per_s=lan_gbs * GB)

    made = tuple(one(f"s{number}") for number in range(sites))
    return replace(three_sites(), sites=made, links=(), policy=ALONE, catalogue=CATALOGUE, gpus=GPUS)


def burst(scenario: Scenario, count: int, *, gang_size: int) -> list[tuple[JobRow, Quote]]:
    """So many jobs at one moment: what became of each, and what it was quoted in the moment before it was submitted."""
    arrival_us, steps = 2 * SECOND, 1_000 if gang_size > 1 else 100
    jobs = [
        TraceJob(
            arrival_us=arrival_us, model_id=ModelId("wan"), tenant=TenantId("t"), gang_size=gang_size, steps=steps, width=2048, height=2048
        )
        for _ in range(count)
    ]
    rows, quotes = Rows(), dict[JobId, Quote]()
    assert Player(scenario, jobs, rows, truth=AsPredicted(), quoted=quotes.__setitem__).play().states == {"succeeded": count}
    return list(zip(sorted(rows.jobs, key=lambda row: row.number), quotes.values(), strict=True))


@pytest.mark.parametrize(
    ("lan_gbs", "origin_gbs"), [(1, 10), (5, 1)], ids=["the origin store is quicker than neighbours", "neighbours are quicker"]
)
@pytest.mark.parametrize(("gang_size", "count"), [(8, 16), (1, 96)], ids=["gangs", "single jobs"])
def test_a_burst_takes_about_as_long_as_it_was_told(lan_gbs: int, origin_gbs: int, gang_size: int, count: int) -> None:
    """Those who come at once share the ways to their nodes: the first of them are as late as the last, which knows of all."""
    found = burst(fleet(lan_gbs, origin_gbs, sites=2, nodes=10), count, gang_size=gang_size)
    assert len({row.site_id for row, _ in found}) == 2
    longer = [(row.ended_us - row.arrival_us) / (quote.eta.end_p50_us - quote.at_us) for row, quote in found if quote.eta is not None]
    assert len(longer) == count and max(longer) < 1.25
    assert 0.9 < longer[-1] < 1.1
