"""What a run is of: a fleet, its models, a policy, and one seed for all that is left to chance.

Decides the fleet's scale and what stands for the network between orchestrator and sites. Must not know the jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agents.twin.holdings import Holding
from atoll.model.adapter import AdapterSpec
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId, NodeId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import parse_int
from atoll.model.site import LinkSpec, SiteSpec
from orchestrator.core.placement.policy import Policy
from sims.play.weather import CALM, Weather

SECOND_US: Final = 1_000_000
REAL_TIME_MILLI: Final = 1_000
# As fast as an orchestrator may say that it runs.
_TIME_SCALE_MILLI_MAX: Final = 10**9
# How far sites are from what physics says of them, where nobody says: as twins have it.
SIGMA: Final = 0.35
# One transaction on a disk that does not lie about it: what the embedded store takes on an ordinary SSD.
COMMIT_US: Final = 3_000
# Between an orchestrator and a site of which no link says how far they are apart: within a continent.
_RTT_US: Final = 30_000
# Half of it, one way, where both are at one place.
_HERE_US: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What there is before the first job: models and adapters that are declared, what sites hold, and which of them take no new work."""

    models: tuple[ModelSpec, ...] = ()
    adapters: tuple[AdapterSpec, ...] = ()
    holdings: Mapping[SiteId, Mapping[NodeId, Holding]] = field(default_factory=dict)
    cordoned: tuple[SiteId, ...] = ()
    drained: tuple[SiteId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run but for its jobs. `catalogue` has the models that traces name, or whose fine-tunes they name.

    `hub` is the site where the orchestrator is; None: the one that is nearest to all others. `way_us`: how long a message takes between it
    and any site; None: as far apart as the links say. `noise_seed`: as `HiddenWorld` has it. `time_scale_milli`: at which a live fleet runs
    that is played; its policy is at that scale already. `sample_us`: how often sites are looked at. `drain_us`: for how long after the last
    arrival jobs may still end.
    """

    sites: tuple[SiteSpec, ...]
    links: tuple[LinkSpec, ...]
    catalogue: Mapping[ModelId, ModelSpec]
    gpus: Mapping[GpuTypeId, GpuType]
    policy: Policy
    seed: int = 0
    noise_seed: int | None = None
    sigma: float = SIGMA
    time_scale_milli: int = REAL_TIME_MILLI
    hub: SiteId | None = None
    way_us: int | None = None
    commit_us: int = COMMIT_US
    sample_us: int = 60 * SECOND_US
    drain_us: int = 4 * 3_600 * SECOND_US
    weather: Weather = CALM
    beginning: Beginning = Beginning()

    def check(self) -> Scenario:
        """Self, or FieldError for the first field that no run can be made of."""
        if not self.sites:
            raise FieldError("sites", "none", "at least one site")
        parse_int("seed", self.seed, 0, 2**63 - 1)
        if self.noise_seed is not None:
            parse_int("noise_seed", self.noise_seed, 0, 2**63 - 1)
        parse_int("time_scale_milli", self.time_scale_milli, 1, _TIME_SCALE_MILLI_MAX)
        if self.way_us is not None:
            # What takes no time would arrive within what it answers.
            parse_int("way_us", self.way_us, 1, 60 * SECOND_US)
        parse_int("commit_us", self.commit_us, 0, 60 * SECOND_US)
        parse_int("sample_us", self.sample_us, SECOND_US, 86_400 * SECOND_US)
        parse_int("drain_us", self.drain_us, 0, 366 * 86_400 * SECOND_US)
        known = [site.site_id for site in self.sites]
        self.weather.check()
        closed = [("cordoned", name) for name in self.beginning.cordoned] + [("drained", name) for name in self.beginning.drained]
        for what, name in [*closed, *([("hub", self.hub)] if self.hub is not None else [])]:
            if name not in known:
                raise FieldError(what, name, f"a site of the fleet: {', '.join(known)}")
        return self

    @property
    def placed_hub(self) -> SiteId:
        """Where the orchestrator is."""
        if self.hub is not None:
            return self.hub
        rtts = {(link.src, link.dst): link.rtt_us for link in self.links}
        sites = [site.site_id for site in self.sites]
        return min(sites, key=lambda src: (sum(rtts.get((src, dst), _RTT_US) for dst in sites if dst != src), src))

    def one_way_us(self) -> dict[SiteId, int]:
        """How long a message takes between the orchestrator and each site."""
        if self.way_us is not None:
            return {site.site_id: self.way_us for site in self.sites}
        hub = self.placed_hub
        rtts = {link.dst: link.rtt_us for link in self.links if link.src == hub}
        return {site.site_id: _HERE_US if site.site_id == hub else rtts.get(site.site_id, _RTT_US) // 2 for site in self.sites}
