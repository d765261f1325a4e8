"""Which sources a fetch reads: the best of all sets, however many there are, and one more source never makes it dearer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.ids import SiteId
from atoll.model.limits import FETCH_SOURCES_MAX
from atoll.model.site import LinkSpec
from orchestrator.core import events
from orchestrator.core.placement import sets
from orchestrator.core.placement.policies import DEFAULT
from orchestrator.core.placement.sources import Ways
from tests.unit.fleet_of_machines import GB, Fleet, model, pool, site

HERE = SiteId("here")
WEIGHTS_GB = 20
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A site with a link to the one that fetches, and how many fetches it gives to already."""

    rtt_ms: int
    mb_per_s: int
    usd_micros_per_gb: int
    flows: int

    @property
    def rate(self) -> int:
        return self.mb_per_s * 10**6 // (1 + self.flows)

    @property
    def beside_us(self) -> int:
        return self.rtt_ms * 1_000 + self.usd_micros_per_gb * WEIGHTS_GB * DEFAULT.seconds_per_dollar


_PEERS = st.builds(
    Peer,
    rtt_ms=st.sampled_from([0, 1, 30, 30, 400, 5_000]),
    mb_per_s=st.integers(1, 12_000),
    usd_micros_per_gb=st.sampled_from([0, 0, 1_000, 10_000, 90_000]),
    flows=st.integers(0, 3),
)


def _ways(peers: list[Peer], having: int, own_mb_per_s: int, origin_mb_per_s: int) -> tuple[Ways, int]:
    """The ways of a model that the first `having` peers hold, and the number of the pool that fetches."""
    here = replace(site(HERE, pool("p")), wan_bytes_per_s=own_mb_per_s * 10**6, origin_bytes_per_s=origin_mb_per_s * 10**6)
    sites, links = [here], []
    for number, peer in enumerate(peers):
        name = SiteId(f"peer-{number}")
        sites.append(replace(site(name, pool("p")), wan_bytes_per_s=20 * GB, weights_url=f"http://{name}"))
        links.append(
            LinkSpec(
                src=name,
                dst=HERE,
                rtt_us=peer.rtt_ms * 1_000,
                bytes_per_s=peer.mb_per_s * 10**6,
                egress_usd_micros_per_gb=peer.usd_micros_per_gb,
            )
        )
    fleet = Fleet(*sites, models=(model("m", WEIGHTS_GB),), checked=False)
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(), links=tuple(links)))
    ctx = fleet.machine.context
    for number, peer in enumerate(peers):
        ctx.columns.peers.reads([SiteId(f"peer-{number}")] * peer.flows, 1)
        if number < having:
            fleet.agents[SiteId(f"peer-{number}")].disk = {"m"}
            fleet.report(f"peer-{number}")
    column = ctx.columns.by_pool[HERE, pool("p").pool_id]
    return ctx.estimator.ways(ctx.state.models[model("m").model_id]), column.index


def _cost_us(ways: Ways, index: int) -> int:
    return int(ways.us[index]) + (int(ways.leaving_us[index]) if ways.leaving_us is not None else 0)


_CASES = st.tuples(st.lists(_PEERS, min_size=1, max_size=7), st.integers(100, 20_000), st.integers(10, 4_000))


@SETTINGS
@given(_CASES)
def test_no_set_of_sources_is_cheaper_than_the_one_that_is_meant(case: tuple[list[Peer], int, int]) -> None:
    peers, own, origin = case
    ways, index = _ways(peers, len(peers), own, origin)
    link = max(own, origin) * 10**6
    size = WEIGHTS_GB * GB
    best = size * 1_000_000 // (origin * 10**6)
    for count in range(1, FETCH_SOURCES_MAX + 1):
        for together in combinations([None, *(one for one in peers if one.rate >= origin * 10**6 // 8)], count):
            rate = min(sum(one.rate if one is not None else origin * 10**6 for one in together), link)
            if together != (None,):
                best = min(best, max(one.beside_us if one is not None else 0 for one in together) + size * 1_000_000 // rate)
    # Rates are reckoned in whole thousands of bytes; and peers that would save less than a 64th beside the origin store are left in peace.
    assert best * 499 // 500 <= _cost_us(ways, index) <= best * 65 // 63
    if ways.source(index) is not None:
        assert _cost_us(ways, index) <= best * 501 // 500


@SETTINGS
@given(_CASES)
def test_one_more_source_never_makes_a_fetch_dearer(case: tuple[list[Peer], int, int]) -> None:
    peers, own, origin = case
    costs = [_cost_us(*_ways(peers, having, own, origin)) for having in range(len(peers) + 1)]
    assert costs == sorted(costs, reverse=True)


@SETTINGS
@given(_CASES)
def test_as_many_sources_are_told_as_are_read_and_each_is_worth_it(case: tuple[list[Peer], int, int]) -> None:
    peers, own, origin = case
    ways, index = _ways(peers, len(peers), own, origin)
    source = ways.source(index)
    if source is None:
        assert ways.us[index] == WEIGHTS_GB * GB * 1_000_000 // (origin * 10**6) and _cost_us(ways, index) == ways.us[index]
        return
    assert 1 <= len(source.sites) + source.origin_too <= FETCH_SOURCES_MAX and len(set(source.sites)) == len(source.sites)
    rates = [peers[int(name.removeprefix("peer-"))].rate for name in source.sites]
    assert rates == sorted(rates, reverse=True)
    link, together = max(own, origin) * 10**6, sum(rates) + source.origin_too * origin * 10**6
    least = min([*rates, origin * 10**6] if source.origin_too else rates)
    # Without the one that gives least, a 64th of what all together could give would be missing.
    eligible = [origin * 10**6, *(one.rate for one in peers if one.rate >= origin * 10**6 // 8)]
    whole = min(sum(sorted(eligible, reverse=True)[:FETCH_SOURCES_MAX]), link)
    assert len(rates) + source.origin_too == 1 or min(together - least, link) < whole * 63 // 64 + 2_000_000


@SETTINGS
@given(st.integers(0, 2**32))
def test_machine_code_plain_python_and_numpy_find_the_same_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pools, lines = int(rng.integers(1, 12)), int(rng.integers(0, 60))
    table = np.column_stack(
        (
            rng.integers(0, pools, lines),
            rng.integers(-2, 20, lines),
            rng.choice([0, 1, 10**6, 10**9, 10**12], lines) * rng.integers(1, 4, lines),
            rng.choice([0, 50_000, 10**9], lines),
            rng.choice([0, 50_000, 10**7, 10**15], lines),
        )
    )
    table = np.ascontiguousarray(table[np.lexsort((table[:, 1], -table[:, 2], table[:, 4], table[:, 0]))], dtype=np.int64)
    alone_us = rng.choice([10**5, 10**8, 2**45], pools)
    ingress, milli = rng.choice([1, 10**9, 10**12], pools), rng.choice([250, 1_000, 4_000], pools)
    size = int(rng.choice([0, 999, 10**10, 10**15]))
    found = []
    for one in (sets.cheapest_rows, sets.cheapest_columns, getattr(sets.cheapest_rows, "py_func", sets.cheapest_rows)):
        cost_us, us = alone_us.copy(), alone_us.copy()
        members = np.full((pools, FETCH_SOURCES_MAX), sets.NOBODY, dtype=np.int64)
        one(table, size, ingress, milli, cost_us, us, members)
        found.append((cost_us.tolist(), us.tolist(), members.tolist()))
    assert found[0] == found[1] == found[2]
    assert (found[0][0] <= alone_us).all()
