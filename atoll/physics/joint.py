"""How long fetches take that read several sites at once, where nothing real runs: rates add up, and what a site gives is shared.

Decides which fetches are slowed down, or quickened, when another one begins, ends, or loses a source. Times of one source alone are given
(`atoll.physics.hidden` knows them); must not know clocks, nor who waits for what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from atoll.model.ids import ModelId, NodeId, SiteId

_US: Final = 1_000_000

# To which site and node, and which model.
FetchKey = tuple[SiteId, NodeId, ModelId]


@dataclass(slots=True, kw_only=True)
class _Reading:
    size_bytes: int
    peers: dict[SiteId, int]  # what all of it takes from each of them alone
    origin_us: int
    origin_too: bool
    link_bytes_per_s: int


class JointFetches:
    """Fetches under way that read peer sites. Each change answers the other fetches that take another time from now on."""

    def __init__(self) -> None:
        self._readings: dict[FetchKey, _Reading] = {}
        self._at: dict[SiteId, dict[FetchKey, None]] = {}

    def begin(
        self, key: FetchKey, size_bytes: int, peers: Mapping[SiteId, int], origin_us: int, *, origin_too: bool, link_bytes_per_s: int
    ) -> tuple[FetchKey, ...]:
        """A fetch reads these sites (all of it takes so long from each alone), and the origin store beside them or when they are gone."""
        self._readings[key] = _Reading(
            size_bytes=size_bytes, peers=dict(peers), origin_us=origin_us, origin_too=origin_too, link_bytes_per_s=link_bytes_per_s
        )
        for site_id in peers:
            self._at.setdefault(site_id, {})[key] = None
        return self._others(key, *peers)

    def end(self, key: FetchKey) -> tuple[FetchKey, ...]:
        """A fetch is over."""
        reading = self._readings.pop(key, None)
        sites = tuple(reading.peers) if reading is not None else ()
        for site_id in sites:
            del self._at[site_id][key]
        return self._others(key, *sites)

    def end_of(self, site_id: SiteId) -> tuple[FetchKey, ...]:
        """All fetches to a site are over."""
        return tuple({other: None for key in [key for key in self._readings if key[0] == site_id] for other in self.end(key)})

    def lost(self, site_id: SiteId, model_id: ModelId | None) -> tuple[FetchKey, ...]:
        """A site gives a model (None: anything) no more: those that read it there, whom the rest of their sources must do."""
        found = tuple(key for key in self._at.get(site_id, {}) if model_id in (None, key[2]))
        for key in found:
            del self._readings[key].peers[site_id], self._at[site_id][key]
        return tuple(dict.fromkeys((*found, *self._at.get(site_id, {}))))

    def reads_peers(self, key: FetchKey) -> bool:
        """Whether a fetch has a peer site left."""
        return key in self._readings and bool(self._readings[key].peers)

    def whole_us(self, key: FetchKey) -> int:
        """What the whole of a fetch would take as things are now, with no other flow into its site."""
        reading = self._readings[key]
        alone_us = [us * len(self._at[site_id]) for site_id, us in reading.peers.items()]
        if not alone_us:
            return reading.origin_us
        if reading.origin_too:
            alone_us.append(reading.origin_us)
        return joint_us(reading.size_bytes, alone_us, reading.link_bytes_per_s)

    def share(self, key: FetchKey) -> float:
        """How much of the way into its site a fetch fills, with no other flow there: what its sources cannot fill is for others."""
        reading = self._readings[key]
        if not reading.peers:
            return 1.0
        link_us = reading.size_bytes * _US // max(reading.link_bytes_per_s, 1)
        return min(max(link_us, 1) / max(self.whole_us(key), 1), 1.0)

    def _others(self, key: FetchKey, *sites: SiteId) -> tuple[FetchKey, ...]:
        return tuple({other: None for site_id in sites for other in self._at.get(site_id, {}) if other != key})


def joint_us(size_bytes: int, alone_us: list[int], link_bytes_per_s: int) -> int:
    """Microseconds until bytes are there that several sources give at once, of each of which is known what it takes alone."""
    rate = sum(size_bytes * _US // max(us, 1) for us in alone_us)
    return size_bytes * _US // max(min(rate, link_bytes_per_s), 1)
