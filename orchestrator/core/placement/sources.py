"""How long a model's weights take to each pool where no node of the site has them, and where they come from: origin store, peers, or both.

Decides the sources: those that are cheapest in time and money together, with no other flow into the site, at the weight of a normal job;
the origin store alone where nothing is cheaper. One decision per model and pool, the same for every class, for copies ahead of demand and
for quotes.

| sources | time |
|---|---|
| the origin store | bytes / the site's measured or declared rate from it, corrected by what was learned of the site |
| peer sites, perhaps with it | longest RTT + bytes / the least of their rates' sum and the site's own link, corrected likewise, apart |

A peer that gives to others already gives one more its rate / (1 + those flows). Sources are read at once, `FETCH_SOURCES_MAX` at most, none
that adds next to nothing, and no peer that gives little beside the origin store. What peers charge counts as if all came from the dearest:
who gives how much is seen only while it comes. With that the best set is found exactly, so one more source never makes a fetch dearer.
Must not know classes of jobs, nor what else a place costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import FetchFrom
from atoll.model.site import LinkSpec
from orchestrator.core.learning.factors import Factors, PoolFactors
from orchestrator.core.placement.adapting import AdapterWays
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import FETCH_MAX_US, UNREACHABLE, USD_MICROS_MAX, Ints
from orchestrator.core.placement.sets import BYTES_MAX, NOBODY, ORIGIN, RATE_MIN, Offers, cheapest, transfer_us
from orchestrator.core.placement.terms import net

_MB_PER_GB: Final = 1_000
# A price of 1,000 dollars a GB stands for anything larger: products of it stay in int64.
_USD_MICROS_PER_GB_MAX: Final = 10**9
# A peer's uplink is not taken for less than one part in so many of what the origin store gives.
_PARTS_OF_ORIGIN: Final = 8
# A petabyte a second.
_KB_PER_S_MAX: Final = 10**12
# Ways of models kept: those of one round. What is dropped takes 50 us to compute again, with ten peers 120.
_KEPT: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Per pool: microseconds of a fetch with no other flow into its site, whose weights they are (`peers`: numbers in `sites`, the one that
    gives most first, a line for each pool), and what the peers' owners charge for them to leave, as delay of a normal job. `peers` None:
    from the origin store alone everywhere."""

    us: Ints
    sites: tuple[SiteId, ...] = ()
    peers: Ints | None = None
    leaving_us: Ints | None = None
    # What it was made for.
    model: ModelSpec
    version: int
    learned: int
    held: int
    _told: dict[int, FetchFrom | None] = field(default_factory=dict, compare=False)  # each decision tells of nine places

    def source(self, pool: int) -> FetchFrom | None:
        """The peer sites from which a pool gets the weights; None: from the origin store alone."""
        if self.peers is None:
            return None
        if pool not in self._told:
            numbers = self.peers[pool].tolist()
            sites = tuple([self.sites[number] for number in numbers if number >= 0])
            self._told[pool] = FetchFrom(sites=sites, origin_too=ORIGIN in numbers) if sites else None
        return self._told[pool]


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

    __slots__ = ("_adapters", "_columns", "_factors", "_layout", "_leaving", "_links", "_policy", "_pools", "_reaches", "_ways")

    def __init__(self, columns: Columns, policy: Policy, links: Mapping[tuple[SiteId, SiteId], LinkSpec], factors: PoolFactors) -> None:
        self._columns = columns
        self._policy = policy
        self._links = links
        self._factors = factors
        self._ways: dict[ModelId, Ways] = {}
        self._adapters: dict[AdapterId, AdapterWays] = {}
        self._reaches: dict[SiteId, _Reach | None] = {}
        self._leaving: dict[SiteId, list[LinkSpec]] = {}
        self._pools: dict[SiteId, list[Column]] = {}
        self._layout: list[Column] | None = None

    def forget(self) -> None:
        """Links changed."""
        self._ways.clear()
        self._adapters.clear()
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

    def of_adapter(self, adapter: AdapterSpec) -> AdapterWays:
        """The ways of an adapter: small, so that one source is read, and nothing is learned of it apart from putting it on a replica."""
        columns = self._columns
        held = columns.adapter_peers.version(adapter.adapter_id)
        known = self._adapters.get(adapter.adapter_id)
        if known is not None and (known.version, known.held) == (columns.version, held) and known.adapter is adapter:
            return known
        while len(self._adapters) >= _KEPT:
            del self._adapters[next(iter(self._adapters))]
        us = np.minimum(transfer_us(adapter.weights_bytes, columns.origin_rate), FETCH_MAX_US)
        ways = AdapterWays(us=us, adapter=adapter, version=columns.version, held=held)
        found = {site_id: reach for site_id in columns.adapter_peers.of(adapter.adapter_id) if (reach := self._reach(site_id)) is not None}
        if found:
            sites = tuple(found)
            offers = self._offers(us, adapter.weights_bytes, sites, list(found.values()), np.full_like(us, 1_000))
            rates = np.minimum(offers.bytes_per_s, self._ingress()[offers.pools])
            cost_us = np.where(offers.number >= 0, offers.fixed_us + transfer_us(adapter.weights_bytes, rates), UNREACHABLE)
            order = np.lexsort((offers.number, cost_us, offers.pools))
            _, first = np.unique(offers.pools[order], return_index=True)
            best = order[first]
            best = best[cost_us[best] < us[offers.pools[best]]]
            peers = np.full(len(us), NOBODY, dtype=np.int64)
            peers[offers.pools[best]] = offers.number[best]
            us = us.copy()
            us[offers.pools[best]] = cost_us[best]
            ways = AdapterWays(us=us, sites=sites, peers=peers, adapter=adapter, version=columns.version, held=held)
        self._adapters[adapter.adapter_id] = ways
        return ways

    def _ingress(self) -> Ints:
        """What comes into each pool's site at most. One that has measured more from the origin store than its link is said to carry has the
        better link."""
        return np.maximum(self._columns.wan_rate, self._columns.origin_rate)

    def _with_peers(self, ways: Ways, sites: tuple[SiteId, ...], reaches: list[_Reach], factors: Factors) -> Ways:
        size, peer_milli = min(ways.model.weights_bytes, BYTES_MAX), factors.milli[Component.PEER]
        best = cheapest(ways.us, self._offers(ways.us, size, sites, reaches, peer_milli), size, self._ingress(), peer_milli)
        if (best.members[:, 0] == NOBODY).all():
            return ways
        return Ways(
            us=best.us,
            sites=sites,
            peers=best.members,
            leaving_us=np.maximum(best.cost_us - best.us, 0),
            model=ways.model,
            version=ways.version,
            learned=ways.learned,
            held=ways.held,
        )

    def _offers(self, alone_us: Ints, size: int, sites: tuple[SiteId, ...], reaches: list[_Reach], peer_milli: Ints) -> Offers:
        size, simulated = min(size, BYTES_MAX), self._columns.simulated
        lengths = [len(reach.pools) for reach in reaches]
        pools = np.concatenate([reach.pools for reach in reaches])
        flows = np.repeat(np.array([self._columns.peers.flows(site_id) for site_id in sites], dtype=np.int64), lengths)
        bytes_per_s = np.concatenate([reach.bytes_per_s for reach in reaches]) // (1 + flows)
        rtt_us = np.concatenate([reach.rtt_us for reach in reaches]) * peer_milli[pools] // 1_000
        per_gb = np.concatenate([reach.usd_micros_per_gb for reach in reaches])
        price_us = np.minimum(per_gb * (size // 10**6) // _MB_PER_GB, USD_MICROS_MAX) * self._us_per_usd_micro()
        # The origin store is a source like others where it is not the only one: at the rate that is predicted for it alone.
        origin_rate = np.minimum(size // 1_000 * 1_000_000 // np.maximum(alone_us, 1), _KB_PER_S_MAX) * 1_000
        # Twins have no bytes to give to a real site.
        alike = simulated[pools] == np.repeat(simulated[[reach.own for reach in reaches]], lengths)
        worth = alike & (bytes_per_s >= origin_rate[pools] // _PARTS_OF_ORIGIN)
        number = np.repeat(np.arange(len(reaches)), lengths)
        here = np.unique(pools[worth])
        nothing = np.zeros_like(here)
        return Offers(
            pools=np.concatenate([here, pools[worth]]),
            number=np.concatenate([np.full_like(here, ORIGIN), number[worth]]),
            bytes_per_s=np.concatenate([origin_rate[here], np.maximum(bytes_per_s[worth], RATE_MIN)]),
            rtt_us=np.concatenate([nothing, rtt_us[worth]]),
            fixed_us=np.concatenate([nothing, (rtt_us + price_us)[worth]]),
        )

    def price_us(self, ways: Ways) -> Ints:
        """Per pool what the owners of the peers charge for the weights, as delay of a normal job."""
        return np.zeros(len(ways.us), dtype=np.int64) if ways.leaving_us is None else ways.leaving_us

    def _us_per_usd_micro(self) -> int:
        return self._policy.seconds_per_dollar if net.NAME in self._policy.terms else 0

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
                min(link.rtt_us, FETCH_MAX_US),
                max(min(link.bytes_per_s, spec.wan_bytes_per_s), RATE_MIN),
                min(link.egress_usd_micros_per_gb or spec.egress_usd_micros_per_gb, _USD_MICROS_PER_GB_MAX),
            )
            for link in self._leaving.get(site_id, ())
            for column in self._pools.get(link.dst, ())
        ]
        if not found:
            return None
        table = np.array(found, dtype=np.int64)
        return _Reach(own=own.index, pools=table[:, 0], rtt_us=table[:, 1], bytes_per_s=table[:, 2], usd_micros_per_gb=table[:, 3])
