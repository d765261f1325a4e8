"""Operators of the simulated fleet: they declare it at the start, and cordon, drain and take it back while it works.

Decides what operators ask for, and keeps asking until they are answered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from atoll.model.ids import ModelId, SiteId
from atoll.model.replica import Tier
from orchestrator.core.events import (
    AdaptersAdded,
    Event,
    ModelPinned,
    ModelPushed,
    ModelsAdded,
    ModelUnpinned,
    RequestRef,
    SiteCordoned,
    SiteDrainRequested,
    SiteRemoveRequested,
    SitesApplied,
    SiteUncordoned,
)
from orchestrator.core.outputs import Done, Reply
from sims.checks import Violation
from sims.faults import Fault, Faults
from sims.fleet import Fleet
from sims.orchestrator import Orchestrators
from sims.world import SECOND_US, World

_ACTOR: Final = "operator"
_TAKE_BACK_US: Final = (5 * SECOND_US, 40 * SECOND_US)
_RETRY_US: Final = SECOND_US
_DEADLINES_MS: Final = (0, 1_000, 20_000, 120_000)


class Operators:
    """The people who run the fleet."""

    def __init__(self, world: World, faults: Faults, orchestrators: Orchestrators) -> None:
        self.asking = 0  # requests of `declare` without an answer
        self._world = world
        self._faults = faults
        self._orchestrators = orchestrators
        self._fleet = Fleet(sites=(), links=(), models=(), adapters=())
        self._random = world.stream("operators")

    def declare(self, fleet: Fleet) -> None:
        """The first thing that happens in a fleet's life."""
        self._fleet = fleet

        def models(reference: RequestRef) -> Event:
            return ModelsAdded(request=reference, actor=_ACTOR, models=fleet.models)

        def adapters(reference: RequestRef) -> Event:
            return AdaptersAdded(request=reference, actor=_ACTOR, adapters=fleet.adapters)

        self.asking = 3
        self._ask(self._apply, self._declared)
        self._ask(models, self._declared)
        self._ask(adapters, self._declared)

    def _apply(self, reference: RequestRef) -> Event:
        fleet = self._fleet
        return SitesApplied(request=reference, actor=_ACTOR, reason="as planned", sites=fleet.sites, links=fleet.links)

    def remove(self) -> None:
        """Remove a site by force, whatever runs there, and declare it again later."""
        site_id = self._random.choice(self._fleet.sites).site_id
        self._faults.strike(Fault.REMOVE_SITE, site_id)
        self._ask(partial(_remove, site_id), self._then_later(self._apply))

    def meddle(self) -> None:
        """Cordon or drain a site, and take it back later."""
        site_id = self._random.choice(self._fleet.sites).site_id
        self._faults.strike(Fault.OPERATOR, site_id)
        self._care()
        make = partial(_cordon, site_id)
        if self._random.random() < 0.6:
            make = partial(_drain, site_id, self._random.choice(_DEADLINES_MS))
        self._ask(make, self._then_later(partial(_uncordon, site_id)))

    def _care(self) -> None:
        """Pin a model somewhere, and take it back later; push another."""
        site_id, model = self._random.choice(self._fleet.sites).site_id, self._random.choice(self._fleet.models)
        tier = self._random.choice((Tier.GPU, Tier.HOST, Tier.DISK))
        self._ask(partial(_pin, model.model_id, site_id, tier), self._then_later(partial(_unpin, model.model_id, site_id)))
        pushed = self._random.choice(self._fleet.models)
        self._ask(partial(_push, pushed.model_id, self._random.randint(1, 3), self._random.randint(0, 1)))

    def _then_later(self, make: Callable[[RequestRef], Event]) -> Callable[[Reply], None]:
        """Taking back comes after the answer to what is taken back, however often that had to be asked for."""
        delay_us = self._random.randint(*_TAKE_BACK_US)

        def later(reply: Reply) -> None:
            del reply
            self._world.after(delay_us, partial(self._ask, make))

        return later

    def open_all(self) -> None:
        """Part of healing: every site is there and may be used again."""
        self._ask(self._apply)
        for site in self._fleet.sites:
            self._ask(partial(_uncordon, site.site_id))
            for model in self._fleet.models:
                self._ask(partial(_unpin, model.model_id, site.site_id))

    def _declared(self, reply: Reply) -> None:
        self.asking -= 1
        if not isinstance(reply, Done):
            raise Violation(f"the fleet could not be declared: {reply}")

    def _ask(self, make: Callable[[RequestRef], Event], answered: Callable[[Reply], None] | None = None) -> None:
        def done(reply: Reply | None) -> None:
            if reply is None:
                self._world.after(_RETRY_US, again)
            elif answered is not None:
                answered(reply)

        again = partial(self._ask, make, answered)
        leader = self._orchestrators.leader()
        if leader is None:
            self._world.after(_RETRY_US, again)
        else:
            leader.request(make, done)


def _cordon(site_id: SiteId, reference: RequestRef) -> Event:
    return SiteCordoned(request=reference, actor=_ACTOR, reason="maintenance", site_id=site_id)


def _pin(model_id: ModelId, site_id: SiteId, tier: Tier, reference: RequestRef) -> Event:
    return ModelPinned(request=reference, actor=_ACTOR, reason="a show", model_id=model_id, site_id=site_id, tier=tier)


def _unpin(model_id: ModelId, site_id: SiteId, reference: RequestRef) -> Event:
    return ModelUnpinned(request=reference, actor=_ACTOR, reason="the show is over", model_id=model_id, site_id=site_id)


def _push(model_id: ModelId, sites: int, warm: int, reference: RequestRef) -> Event:
    return ModelPushed(request=reference, actor=_ACTOR, reason="a launch", model_id=model_id, sites=sites, warm=warm)


def _uncordon(site_id: SiteId, reference: RequestRef) -> Event:
    return SiteUncordoned(request=reference, actor=_ACTOR, reason="done", site_id=site_id)


def _remove(site_id: SiteId, reference: RequestRef) -> Event:
    return SiteRemoveRequested(request=reference, actor=_ACTOR, reason="sold", site_id=site_id, force=True)


def _drain(site_id: SiteId, deadline_ms: int, reference: RequestRef) -> Event:
    return SiteDrainRequested(request=reference, actor=_ACTOR, reason="maintenance", site_id=site_id, deadline_ms=deadline_ms)
