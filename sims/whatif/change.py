"""What is changed of a fleet: sites less, sites more, another policy.

Decides what a change makes of a scenario. Must not know what comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from atoll.model.errors import ConflictError, NotFoundError, StateError
from atoll.model.ids import SiteId
from atoll.model.site import LinkSpec, SiteSpec
from orchestrator.core.placement.policy import Policy
from sims.play.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, of one kind or of several at once. Links may be to sites that there are."""

    drains: tuple[SiteId, ...] = ()
    sites: tuple[SiteSpec, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    policy: Policy | None = None

    @property
    def words(self) -> str:
        """The change, as the end of "what if"."""
        parts = [f"site {name} were drained" for name in self.drains]
        parts += [f"site {site.site_id} were added" for site in self.sites]
        parts += [f"policy {self.policy.name} ({self.policy.identity.digest}) were in use"] if self.policy is not None else []
        return " and ".join(parts)

    def made(self, scenario: Scenario, time_scale_milli: int = 1_000) -> Scenario:
        """The scenario with it, of a fleet that runs at this time scale.

        An error of the model where it cannot be: no such site, one that there is, none left.
        """
        known = {site.site_id for site in scenario.sites}
        closed = {*scenario.beginning.drained, *scenario.beginning.cordoned}
        for name in self.drains:
            if name not in known:
                raise NotFoundError("site", name, f"those that can be played are {', '.join(sorted(known))}")
            if name in closed:
                raise StateError(f"site {name} takes no new work already")
        for site in self.sites:
            if site.site_id in known:
                raise ConflictError(f"site {site.site_id} exists already: expected a name of its own")
        drained = (*scenario.beginning.drained, *self.drains)
        if not self.sites and known <= {*drained, *scenario.beginning.cordoned}:
            raise StateError("no site would take work any more")
        return replace(
            scenario,
            sites=(*scenario.sites, *self.sites),
            links=(*scenario.links, *self.links),
            policy=scenario.policy if self.policy is None else self.policy.at_scale(time_scale_milli),
            # The orchestrator stays where it is, whoever comes or goes.
            hub=scenario.placed_hub,
            beginning=replace(scenario.beginning, drained=drained),
        )
