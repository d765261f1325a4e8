"""A world for tests of learning: sites whose components are off by hidden factors, and attempts that meet them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component, Shift, Start
from atoll.model.modelspec import Modality
from orchestrator.core.learning.book import Book
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.learning.quotes import Completion

SECOND = 1_000_000
# Two modes, as loads have: a third at a quarter, the rest at twice.
MODES = (0.25, 2.0, 2.0)


def place(model: str = "m", gpu: str = "g", site: str = "s") -> Place:
    """A place by names."""
    return Place(model_id=ModelId(model), gpu_type=GpuTypeId(gpu), site_id=SiteId(site))


def seen(
    book: Book, component: Component, ratio: float, where: Place, now_us: int, *, prior_us: int = 10 * SECOND, at_least: bool = False
) -> Shift | None:
    """An attempt took `ratio` times its prior, and was predicted with the factor in force."""
    factor = book.factors_milli(where.model_id, where.gpu_type, where.site_id)[COMPONENTS.index(component)]
    observation = Observation(
        component=component,
        predicted_us=prior_us * factor // 1_000,
        factor_milli=factor,
        actual_us=max(int(prior_us * ratio), 1),
        at_least=at_least,
    )
    shift = book.observe(where, observation, now_us)
    book.refresh(now_us)
    return shift


def factor(book: Book, component: Component, where: Place) -> int:
    """The factor in force, thousandths."""
    return book.factors_milli(where.model_id, where.gpu_type, where.site_id)[COMPONENTS.index(component)]


def completion(
    *,
    cold: bool = False,
    modality: Modality = Modality.IMAGE,
    model: str = "m",
    decided_us: int = 0,
    before_us: int = 0,
    execution_us: int,
    actual_us: int,
    actual_before_us: int = 0,
    at_least: bool = False,
) -> Completion:
    """A decision that was carried out."""
    return Completion(
        start=Start.ORIGIN if cold else Start.WARM,
        modality=modality,
        model_id=ModelId(model),
        decided_us=decided_us,
        before_us=before_us,
        execution_us=execution_us,
        actual_us=actual_us,
        actual_before_us=actual_before_us,
        at_least=at_least,
    )


@dataclass(slots=True)
class World:
    """Attempts at random sites. `errors` are logs of actual over the predicted median, in order."""

    seed: int
    book: Book
    sites: int = 36
    modes: tuple[float, ...] = (1.0,)
    noise: float = 0.06
    sigma: float = 0.35
    now_us: int = 0
    errors: list[float] = field(default_factory=list)

    def live(self, component: Component, attempts: int) -> list[Shift]:
        """Attempts half a second apart; the shifts that were found."""
        chance = random.Random(self.seed)
        lasting = {number: chance.gauss(0, self.sigma) for number in range(self.sites)}
        shifts = []
        for _ in range(attempts):
            self.now_us += SECOND // 2
            site, model = chance.randrange(self.sites), min(int(chance.expovariate(0.2)), 30)
            where = place(f"m{model}", f"g{site % 4}", f"s{site}")
            ratio = math.exp(lasting[site] + chance.gauss(0, self.noise)) * chance.choice(self.modes)
            p50_us, _ = self.book.spread_us(component, 10 * SECOND, where)
            self.errors.append(math.log(ratio * 10 * SECOND / p50_us))
            shift = seen(self.book, component, ratio, where, self.now_us)
            if shift is not None:
                shifts.append(shift)
        return shifts
