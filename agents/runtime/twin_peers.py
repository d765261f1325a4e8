"""The ways between twins: how long weights take from one to another, who has them, and who hears when they are gone.

Decides which twin can give what. Twins of one process know each other; one of another process is taken to have what the orchestrator says.
Must not know why anything is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from atoll.model.ids import ModelId, SiteId
from atoll.model.site import LinkSpec, SiteSpec
from atoll.physics.hidden import HiddenWorld


class Member(Protocol):
    """The weights of one twin."""

    def holds(self, model_id: ModelId) -> bool:
        """Whether one of its disks has the model."""

    def peer_lost(self, site_id: SiteId, model_id: ModelId | None) -> None:
        """Another twin has a model no more; None: it is gone with all it had."""


class TwinPeers:
    """Twins of one process, by site. All methods on the agents' event loop."""

    def __init__(
        self, sites: Iterable[SiteSpec] = (), links: Mapping[tuple[SiteId, SiteId], LinkSpec] | None = None, *, here: Iterable[SiteId] = ()
    ) -> None:
        """`sites` and `links` of the fleet file; `here`: the twins that this process runs."""
        self._sites = {spec.site_id: spec for spec in sites}
        self._links = links or {}
        self._here = frozenset(here)
        self._members: dict[SiteId, Member] = {}

    def join(self, site_id: SiteId, member: Member) -> None:
        """A twin begins."""
        self._members[site_id] = member

    def leave(self, site_id: SiteId) -> None:
        """A twin ends."""
        if self._members.pop(site_id, None) is not None:
            self.lost(site_id, None)

    def lost(self, site_id: SiteId, model_id: ModelId | None) -> None:
        """A twin has a model no more."""
        for other, member in list(self._members.items()):
            if other != site_id:
                member.peer_lost(site_id, model_id)

    def fetch_us(self, hidden: HiddenWorld, src: SiteId, dst: SiteId, model_id: ModelId, size_bytes: int, key: str) -> int | None:
        """How long a model takes from one site to another with no other flow: the link has a hidden factor of its own. None: it cannot be
        had there."""
        link, ends = self._links.get((src, dst)), (self._sites.get(src), self._sites.get(dst))
        if link is None or ends[0] is None or ends[1] is None or not self._gives(src, model_id):
            return None
        rate = min(link.bytes_per_s, ends[0].wan_bytes_per_s, ends[1].wan_bytes_per_s)
        return hidden.fetch_us(size_bytes, rate, link.rtt_us, SiteId(f"{src} to {dst}"), key)

    def _gives(self, site_id: SiteId, model_id: ModelId) -> bool:
        member = self._members.get(site_id)
        return member.holds(model_id) if member is not None else site_id not in self._here
