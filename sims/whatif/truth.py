"""The truth of a fleet of which something is known: sites are as fast as was learned of them; the rest is drawn from the seed.

Decides which of what was learned counts. Must not know who learned it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from atoll.model.ids import SiteId
from atoll.model.learned import Component, Level, Residual
from atoll.model.site import SiteSpec
from atoll.physics.hidden import HiddenWorld

# Of a site's component fewer attempts say less than a seed's draw does: their mean is still 0.35 / sqrt(20) = 8 % off.
_OBSERVATIONS_MIN: Final = 20
# What the two worlds call the same thing; a load is staging and building.
_COMPONENTS: Final = {
    Component.EXECUTION: ("execution",),
    Component.FETCH: ("fetch",),
    Component.LOAD: ("stage", "init"),
    Component.ADAPT: ("adapt",),
    Component.COMPILE: ("compile",),
}

Factors = Mapping[tuple[str, SiteId], int]


def factors_of(learned: Iterable[Residual], sites: Iterable[SiteSpec]) -> Factors:
    """Factors of sites, in thousandths: what holds for all, times what holds for their GPUs, times what holds for them."""
    rows = list(learned)
    effects = {(row.component, row.level, row.name): row.effect_milli for row in rows}
    pools = {site.site_id: site.pools for site in sites}
    found: dict[tuple[str, SiteId], int] = {}
    for row in rows:
        site_id, component = SiteId(row.name), row.component
        if row.level is not Level.SITE or row.observations_milli < _OBSERVATIONS_MIN * 1_000 or site_id not in pools:
            continue
        gpus = [(pool.slots, effects.get((component, Level.GPU_TYPE, pool.gpu_type), 1_000)) for pool in pools[site_id]]
        of_gpus = sum(slots * effect for slots, effect in gpus) // max(sum(slots for slots, _ in gpus), 1)
        of_all = effects.get((component, Level.ALL, ""), 1_000)
        factor = max(of_all * of_gpus * row.effect_milli // 1_000_000, 1)
        found.update(((name, site_id), factor) for name in _COMPONENTS.get(component, ()))
    return found


class LearnedWorld(HiddenWorld):
    """A hidden world some of whose factors are known."""

    __slots__ = ("_known",)

    def __init__(self, seed: int, sigma: float, known: Factors) -> None:
        super().__init__(seed, sigma)
        self._known = known

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        """As learned; else as drawn."""
        return self._known.get((component, site_id)) or super().factor_milli(component, site_id)
