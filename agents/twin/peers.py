"""The ways between twins: how long weights take from one or several to another, who has them, and who hears when that changes.

Decides which twin can give what, and to how many at once. Twins of one process know each other; one of another process is taken to have
what the orchestrator says. Must not know why anything is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from agents.twin.truth import Truth
from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, ModelId, NodeId, SiteId
from atoll.model.job import JobSpec
from atoll.model.site import LinkSpec, SiteSpec
from atoll.physics.coldstart import transfer_us
from atoll.physics.joint import FetchKey, JointFetches


class Member(Protocol):
    """The weights of one twin."""

    def holds(self, model_id: ModelId) -> bool:
        """Whether one of its disks has the model."""

    def holds_adapter(self, adapter_id: AdapterId) -> bool:
        """Whether one of its disks has the adapter."""

    def retimed(self, node_id: NodeId, model_id: ModelId, whole_us: int, share: float) -> None:
        """The whole of a fetch under way takes as long as this from now on, with this share of the way to the site: other fetches share its
        sources, or no longer do."""


class TwinPeers:
    """Twins of one process, by site."""

    def __init__(
        self, sites: Iterable[SiteSpec] = (), links: Mapping[tuple[SiteId, SiteId], LinkSpec] | None = None, *, here: Iterable[SiteId] = ()
    ) -> None:
        """`sites` and `links` of the fleet file; `here`: the twins that this process runs."""
        self._sites = {spec.site_id: spec for spec in sites}
        self._links = links or {}
        self._here = frozenset(here)
        self._members: dict[SiteId, Member] = {}
        self._joint = JointFetches()

    def join(self, site_id: SiteId, member: Member) -> None:
        """A twin begins."""
        self._members[site_id] = member

    def leave(self, site_id: SiteId) -> None:
        """A twin ends."""
        if self._members.pop(site_id, None) is not None:
            self._retime(self._joint.end_of(site_id))
            self.lost(site_id, None)

    def lost(self, site_id: SiteId, model_id: ModelId | None) -> None:
        """A twin has a model (None: any) no more: who reads it there goes on with its other sources, or the origin store."""
        self._retime(self._joint.lost(site_id, model_id))

    def begin(
        self, key: FetchKey, size_bytes: int, peers: Mapping[SiteId, int], origin_us: int, *, origin_too: bool, left: float = 1.0
    ) -> int:
        """A fetch reads these twins, each of which would take so long alone; how long the whole of it takes as things are. `left`:
        the share that has not come yet."""
        del left
        spec = self._sites[key[0]]
        self._retime(self._joint.begin(key, size_bytes, peers, origin_us, origin_too=origin_too, link_bytes_per_s=spec.wan_bytes_per_s))
        return self._joint.whole_us(key)

    def share(self, key: FetchKey) -> float:
        """How much of the way to its site a fetch fills as things are, of those that have begun."""
        return self._joint.share(key)

    def end(self, key: FetchKey, *, left: float = 0.0) -> bool:
        """A fetch is over, or yields with this share left; whether it read peers to its end."""
        del left
        read = self._joint.reads_peers(key)
        self._retime(self._joint.end(key))
        return read

    def _retime(self, keys: Iterable[FetchKey]) -> None:
        for key in keys:
            member = self._members.get(key[0])
            if member is not None:
                member.retimed(key[1], key[2], self._joint.whole_us(key), self._joint.share(key))

    def fetch_us(self, truth: Truth, src: SiteId, dst: SiteId, model_id: ModelId, size_bytes: int, key: str) -> int | None:
        """How long a model takes from one site to another that has a link without end and reads nothing else: each link has a hidden factor
        of its own. None: it cannot be had there."""
        return self._link_us(truth, src, dst, size_bytes, key) if self._gives(src, model_id) else None

    def _link_us(self, truth: Truth, src: SiteId, dst: SiteId, size_bytes: int, key: str) -> int | None:
        link, ends = self._links.get((src, dst)), (self._sites.get(src), self._sites.get(dst))
        if link is None or ends[0] is None or ends[1] is None:
            return None
        rate = min(link.bytes_per_s, ends[0].wan_bytes_per_s)
        return truth.fetch_us(size_bytes, rate, link.rtt_us, SiteId(f"{src} to {dst}"), key)

    def adapter_us(self, truth: Truth, src: SiteId, dst: SiteId, adapter: AdapterSpec, key: str) -> int | None:
        """As `fetch_us`, of an adapter, which comes from one site alone and whose flow is too short to be counted."""
        member = self._members.get(src)
        there = member.holds_adapter(adapter.adapter_id) if member is not None else src not in self._here
        return self._link_us(truth, src, dst, adapter.weights_bytes, key) if there else None

    def input_us(self, truth: Truth, spec: SiteSpec, job: JobSpec) -> int:
        """How long the files of a job take to a site, from the site nearest to the asker if that is known: as it is predicted, times the
        hidden factor that results have too."""
        size, rate, rtt_us = sum(one.bytes for one in job.inputs), spec.wan_bytes_per_s, 0
        if not size:
            return 0
        if job.origin_site is not None:
            link = self._links.get((job.origin_site, spec.site_id)) or self._links.get((spec.site_id, job.origin_site))
            if link is not None:
                rate, rtt_us = min(link.bytes_per_s, rate), link.rtt_us
        return transfer_us(size, rate, rtt_us) * truth.factor_milli("fetch", spec.site_id) // 1_000

    def _gives(self, site_id: SiteId, model_id: ModelId) -> bool:
        member = self._members.get(site_id)
        return member.holds(model_id) if member is not None else site_id not in self._here
