"""How long a model's weights take to each pool where no node of the site has them, and where they come from: origin store or peer site.

Decides the source: the one that is cheapest in time and money together, with no other flow, at the weight of a normal job; the origin
store where none is cheaper. One decision per model and pool, the same for every class, for copies ahead of demand and for quotes.

| source | time |
|---|---|
| origin store | bytes / the site's measured or declared rate from it, corrected by what was learned of the site |
| peer site | RTT + bytes / the least of the link's rate and the two sites' own links to others, corrected likewise, apart |

Left out: rates of several sources do not add up, one is read at a time; and flows at the peer's end, which are not counted.
Must not know classes of jobs, nor what else a place costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from atoll.model.ids import ModelId, SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.site import LinkSpec
from orchestrator.core.learning.factors import Factors, PoolFactors
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import FETCH_MAX_US, UNREACHABLE, Ints
from orchestrator.core.placement.terms import net

# A rate of 0 would divide by zero; a byte per second says "never" as well.
RATE_MIN: Final = 1
_MB_PER_GB: Final = 1_000
# A petabyte stands for anything larger, and a price of 1,000 dollars a GB and of 10,000 in all: products of them stay in int64.
_BYTES_MAX: Final = 10**15
_USD_MICROS_PER_GB_MAX: Final = 10**9
_USD_MICROS_MAX: Final = 10**10
# Ways of models kept: those of one round. What is dropped takes 50 us to compute again.
_KEPT: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Per pool: microseconds of a fetch with no other flow, whose weights they are (number in `sites`; -1: the origin store's), and what
    the peer's owner charges for them to leave. `peers` None: from the origin store everywhere."""

    us: Ints
    sites: tuple[SiteId, ...] = ()
    peers: Ints | None = None
    usd_micros: Ints | None = None
    # What it was made for.
    model: ModelSpec
    version: int
    learned: int
    held: int

    def source(self, pool: int) -> SiteId | None:
        """The peer site from which a pool gets the weights; None: the origin store."""
        if self.peers is None or self.peers[pool] < 0:
            return None
        return self.sites[int(self.peers[pool])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """Pools to which a site's links lead: their numbers, round trip, bytes per second, micro-dollars per GB."""

    own: int  # number of one of its own
    pools: Ints
    rtt_us: Ints
    bytes_per_s: Ints
    usd_micros_per_gb: Ints


class Sources:
    """Ways of models, computed when first asked for."""

    __slots__ = ("_columns", "_factors", "_layout", "_leaving", "_links", "_policy", "_pools", "_reaches", "_ways")

    def __init__(
        self, columns: Columns, policy: Policy, links: Mapping[tuple[SiteId, SiteId], LinkSpec], factors: PoolFactors
    ) -> None:
        self._columns = columns
        self._policy = policy
        self._links = links
        self._factors = factors
        self._ways: dict[ModelId, Ways] = {}
        self._reaches: dict[SiteId, _Reach | None] = {}
        self._leaving: dict[SiteId, list[LinkSpec]] = {}
        self._pools: dict[SiteId, list[Column]] = {}
        self._layout: list[Column] | None = None

    def forget(self) -> None:
        """Links changed."""
        self._ways.clear()
        self._layout = None

    def of(self, model: ModelSpec, factors: Factors | None = None) -> Ways:
        """The ways of a model in the fleet as it is. `factors`: the model's, if they are at hand."""
        columns, model_id = self._columns, model.model_id
        learned, held = self._factors.version_of(model_id), columns.peers.version(model_id)
        known = self._ways.get(model_id)
        if known is not None and (known.version, known.learned, known.held) == (columns.version, learned, held) and known.model is model:
            return known
        while len(self._ways) >= _KEPT:
            del self._ways[next(iter(self._ways))]
        factors = factors or self._factors.of(model_id, columns.columns, (Component.FETCH, Component.PEER))
        ways = self._ways[model_id] = self._compute(model, factors, learned, held)
        return ways

    def _compute(self, model: ModelSpec, factors: Factors, learned: int, held: int) -> Ways:
        columns = self._columns
        prior_us = np.minimum(transfer_us(model.weights_bytes, columns.origin_rate), FETCH_MAX_US)
        origin_us = np.minimum(factors.times(Component.FETCH, prior_us), FETCH_MAX_US)
        ways = Ways(us=origin_us, model=model, version=columns.version, learned=learned, held=held)
        if not held:
            return ways
        reaches = [(site_id, reach) for site_id in columns.peers.of(model.model_id) if (reach := self._reach(site_id)) is not None]
        if not reaches:
            return ways
        return self._with_peers(ways, tuple(site_id for site_id, _ in reaches), [reach for _, reach in reaches], factors)

    def _with_peers(self, ways: Ways, sites: tuple[SiteId, ...], reaches: list[_Reach], factors: Factors) -> Ways:
        size, simulated = min(ways.model.weights_bytes, _BYTES_MAX), self._columns.simulated
        pools = np.concatenate([reach.pools for reach in reaches])
        number = np.repeat(np.arange(len(reaches)), [len(reach.pools) for reach in reaches])
        rtt_us = np.concatenate([reach.rtt_us for reach in reaches])
        prior_us = np.minimum(rtt_us + transfer_us(size, np.concatenate([reach.bytes_per_s for reach in reaches])), FETCH_MAX_US)
        us = np.minimum(prior_us * factors.milli[Component.PEER][pools] // 1_000, FETCH_MAX_US)
        per_gb = np.concatenate([reach.usd_micros_per_gb for reach in reaches])
        usd_micros = np.minimum(per_gb * (size // 10**6) // _MB_PER_GB, _USD_MICROS_MAX)
        cost = us + self._price_us(usd_micros)
        # Twins have no bytes to give to a real site.
        alike = simulated[pools] == np.repeat(simulated[[reach.own for reach in reaches]], [len(reach.pools) for reach in reaches])
        cost = np.where(alike, cost, UNREACHABLE)
        order = np.lexsort((number, cost, pools))
        _, first = np.unique(pools[order], return_index=True)
        best = order[first]
        best = best[cost[best] < ways.us[pools[best]]]
        if not len(best):
            return ways
        found_us, peers, found_usd = ways.us.copy(), np.full(len(ways.us), -1, dtype=np.int64), np.zeros(len(ways.us), dtype=np.int64)
        found_us[pools[best]], peers[pools[best]], found_usd[pools[best]] = us[best], number[best], usd_micros[best]
        return Ways(
            us=found_us,
            sites=sites,
            peers=peers,
            usd_micros=found_usd,
            model=ways.model,
            version=ways.version,
            learned=ways.learned,
            held=ways.held,
        )

    def price_us(self, ways: Ways) -> Ints:
        """Per pool what the owner of the peer charges for the weights, as delay of a normal job."""
        return np.zeros(len(ways.us), dtype=np.int64) if ways.usd_micros is None else self._price_us(ways.usd_micros)

    def _price_us(self, usd_micros: Ints) -> Ints:
        return usd_micros * (self._policy.seconds_per_dollar if net.NAME in self._policy.terms else 0)

    def _reach(self, site_id: SiteId) -> _Reach | None:
        """Where a site's links lead."""
        columns = self._columns.columns
        if columns is not self._layout:
            self._layout, self._reaches, self._leaving, self._pools = columns, {}, {}, {}
            for column in columns:
                self._pools.setdefault(column.site.site_id, []).append(column)
            for link in self._links.values():
                self._leaving.setdefault(link.src, []).append(link)
        if site_id not in self._reaches:
            self._reaches[site_id] = self._measure(site_id)
        return self._reaches[site_id]

    def _measure(self, site_id: SiteId) -> _Reach | None:
        own = self._pools[site_id][0]
        spec = own.site.record.spec
        found = [
            (
                column.index,
                link.rtt_us,
                max(min(link.bytes_per_s, spec.wan_bytes_per_s, column.site.record.spec.wan_bytes_per_s), RATE_MIN),
                min(link.egress_usd_micros_per_gb or spec.egress_usd_micros_per_gb, _USD_MICROS_PER_GB_MAX),
            )
            for link in self._leaving.get(site_id, ())
            for column in self._pools.get(link.dst, ())
        ]
        if not found:
            return None
        table = np.array(found, dtype=np.int64)
        return _Reach(own=own.index, pools=table[:, 0], rtt_us=table[:, 1], bytes_per_s=table[:, 2], usd_micros_per_gb=table[:, 3])


def transfer_us(size: int, rates: Ints) -> Ints:
    """Microseconds for so many bytes, computed in thousands of them so that int64 holds a petabyte, which stands for anything larger."""
    return np.asarray(min(size, _BYTES_MAX) // 1_000 * 1_000_000 // np.maximum(rates // 1_000, RATE_MIN), dtype=np.int64)
