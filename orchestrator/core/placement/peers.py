"""Which sites can give which models (or adapters) to other sites, and how many fetches each gives to already.

Decides who serves: a site that has said where its weights can be read, speaks to us, has told all it has, and was not removed. A cordon
or a drain changes nothing of that: reading a disk is no work of a slot, what is read is verified by its digest, and the time before a site
goes is the best to copy what only it has. A silent one serves nobody: whoever cannot reach us is a poor bet for reaching others.
An index that can be rebuilt from the sites' state at any time. A model's `version` changes whenever other sites can give it than before, or
one of them gives to more or fewer fetches, so that only its fetches are reckoned again. Must not know links, rates or prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from atoll.model.ids import SiteId
from atoll.model.site import SiteAdmin, SiteConnection
from orchestrator.core.state import Node, Site

Name = TypeVar("Name", bound=str)


class Peers(Generic[Name]):
    """Sites by the models on their disks, which of them serve, and what they give."""

    __slots__ = ("_all_of", "_changes", "_disks", "_flows", "_models", "_serving", "_versions")

    def __init__(self, all_of: Callable[[Node], Iterable[Name]]) -> None:
        """`all_of`: what is on a node's disk."""
        self._all_of = all_of
        # Of each model, on how many nodes' disks a site has it.
        self._disks: dict[Name, dict[SiteId, int]] = {}
        self._models: dict[SiteId, set[Name]] = {}  # the same, by site
        self._flows: dict[SiteId, int] = {}
        self._serving: dict[SiteId, None] = {}
        self._versions: dict[Name, int] = {}
        self._changes = 0

    def rebuild(self, sites: Iterable[Site]) -> None:
        """Count anew: sites or pools came or went."""
        self._disks, self._models, self._flows, self._versions = {}, {}, {}, {}
        sites = tuple(sites)
        self._serving = {site.site_id: None for site in sites if serves(site)}
        for site in sites:
            for pool in site.pools.values():
                for node in pool.nodes:
                    for model_id in self._all_of(node):
                        self.held(site.site_id, model_id, 1)
                    for sources in node.sources.values():
                        self.reads(sources, 1)

    def held(self, site_id: SiteId, model_id: Name, step: int) -> None:
        """A disk of the site has the model now, or (-1) no more."""
        sites = self._disks.setdefault(model_id, {})
        before = sites.get(site_id, 0)
        if before + step > 0:
            sites[site_id] = before + step
            self._models.setdefault(site_id, set()).add(model_id)
        else:
            sites.pop(site_id, None)
            self._models.get(site_id, set()).discard(model_id)
            if not sites:
                del self._disks[model_id]
        if site_id in self._serving and (before == 0) != (before + step <= 0):
            self._changed((model_id,))

    def reads(self, sources: Iterable[SiteId], step: int) -> None:
        """A fetch from these sites began, or (-1) is over: what each gives is shared by so many."""
        for site_id in sources:
            flows = self._flows.get(site_id, 0) + step
            if flows > 0:
                self._flows[site_id] = flows
            else:
                self._flows.pop(site_id, None)
            if site_id in self._serving:
                self._changed(self._models.get(site_id, ()))

    def flows(self, site_id: SiteId) -> int:
        """How many fetches read from a site."""
        return self._flows.get(site_id, 0)

    def heard(self, site: Site) -> None:
        """A site spoke, fell silent, or is declared anew."""
        now = serves(site)
        if now == (site.site_id in self._serving):
            return
        if now:
            self._serving[site.site_id] = None
        else:
            del self._serving[site.site_id]
        self._changed(self._models.get(site.site_id, ()))

    def _changed(self, models: Iterable[Name]) -> None:
        self._changes += 1
        for model_id in models:
            if any(site_id in self._serving for site_id in self._disks.get(model_id, ())):
                self._versions[model_id] = self._changes
            else:
                self._versions.pop(model_id, None)

    def version(self, model_id: Name) -> int:
        """Another number after each change; 0 while no site can give the model."""
        return self._versions.get(model_id, 0)

    def of(self, model_id: Name) -> list[SiteId]:
        """The sites that can give a model to others, by name."""
        return sorted(site_id for site_id in self._disks.get(model_id, ()) if site_id in self._serving)


def serves(site: Site) -> bool:
    """Whether others may be sent to this site for weights."""
    heard = site.connection is SiteConnection.CONNECTED and site.reported
    return bool(site.record.spec.weights_url) and heard and site.record.admin is not SiteAdmin.REMOVED
