"""The book of what was learned: the corrections of every component, the calibration of quotes, and when either changes.

Decides when estimates are told of news: each component at most every five seconds of fleet time, each cell only when it moved by more
than 2 %, and only the models that it concerns. Between two changes of `version_of(model)` every factor of a model stands still, so an
estimate may be kept for as long. Must not know what is done with a factor.
"""

from __future__ import annotations

from typing import Final

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component, Estimates, LearnedSpread, Level, Shift
from atoll.model.limits import MODELS_MAX
from atoll.model.modelspec import Modality
from orchestrator.core.learning import corrections as of_component
from orchestrator.core.learning import quotes as of_totals
from orchestrator.core.learning import waits as of_waits
from orchestrator.core.learning import widths as of_widths
from orchestrator.core.learning.cells import CellKey
from orchestrator.core.learning.corrections import Corrections, Place, Sample, factor_log_of
from orchestrator.core.learning.logs import log_ratio, milli, times
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.learning.quotes import Completion, Quotes, Spread
from orchestrator.core.learning.waits import WaitKey, Waits
from orchestrator.core.learning.widths import Widths

# News are published this often at most, of all components at once: what is published makes estimates be computed again. That is a third of
# a millisecond for a class of jobs at 36 sites and some ten at 3,600, so a large book publishes more slowly: five seconds for each of
# these many cells, and a minute at most.
REFRESH_US: Final = 5_000_000
_CELLS_EACH_REFRESH: Final = 4_096
# Without news, ageing is looked at this often.
_LOOK_US: Final = 60_000_000
# A checkpoint is written at most this often, and keeps this many cells of each of the two lowest levels of a component. What it leaves out
# is learned again within a few jobs. A cell takes 10 us and 185 bytes: 36 sites at most 35 ms and 650 KB a minute. With more cells than
# the second figure it is written as much less often, so that its share of the time stays below a thousandth or so.
SAVE_US: Final = 60_000_000
SAVED_LEAVES_MAX: Final = 256
_CELLS_EACH_SAVE: Final = 8_192
# Factors kept by name; beyond it all are computed anew when asked for.
_KNOWN_MAX: Final = 65_536
# What an execution takes besides, whatever the model: 1 to 2 s once in a GPU's process, for kernels that are loaded when they are first
# needed, and in each job a tenth of a second of prompts and files. Added to what was predicted as to what it took, so that jobs of a
# fraction of a second say little: theirs alone made SDXL on an H200 look 2.4 times as slow as it is. A correction that is right stays so.
_BESIDE_US: Final = {Component.EXECUTION: 500_000}
# What 95 of 100 completions take at most of what was predicted, where no policy says it.
SPREAD_MILLI: Final = 2_000
_NO_FACTORS: Final = (1_000,) * len(COMPONENTS)


class Book:
    """See the module. `learning` off: everything is observed and judged, and every factor is 1."""

    def __init__(self, *, learning: bool = True, spread_milli: int = SPREAD_MILLI) -> None:
        self.learning = learning
        self._spread_milli = spread_milli
        self.components: dict[Component, Corrections] = {component: Corrections(component) for component in COMPONENTS}
        self.quotes = Quotes(spread_milli)
        self.widths = Widths(spread_milli)
        self.waits = Waits()
        self.refreshed_us = 0
        self.saved_us = 0
        self.unsaved = False
        self.shared_version = 0
        self._model_versions: dict[ModelId, int] = {}
        self._factors: dict[Place, tuple[int, ...]] = {}

    # --- what estimates ask ----------------------------------------------------------------------------------------------------

    def version_of(self, model_id: ModelId) -> int:
        """Grows whenever a factor of this model changed."""
        return self.shared_version + self._model_versions.get(model_id, 0)

    def factors_milli(self, model_id: ModelId, gpu_type: GpuTypeId, site_id: SiteId) -> tuple[int, ...]:
        """What the prior of each component (in the order of `COMPONENTS`) is multiplied by there, in thousandths."""
        if not self.learning:
            return _NO_FACTORS
        place = Place(model_id=model_id, gpu_type=gpu_type, site_id=site_id)
        known = self._factors.get(place)
        if known is None:
            if len(self._factors) >= _KNOWN_MAX:
                self._factors.clear()
            known = self._factors[place] = tuple(milli(one.factor_log(place)) for one in self.components.values())
        return known

    def spread_us(self, component: Component, prior_us: int, place: Place) -> tuple[int, int]:
        """(P50, P90) of one component whose prior is this."""
        one = self.components[component]
        located = one.published_log(place) if self.learning else 0
        figures = one.figures
        p90_log = figures.p90_log + one.widened_log(place.site_id)
        return times(prior_us, located + figures.p50_log), times(prior_us, located + p90_log)

    def quote(self, before_us: int, execution_us: int, cold: bool, modality: Modality) -> Spread:
        """Quantiles of a completion that is predicted to begin to execute after `before_us` and then to take `execution_us`."""
        return self.quotes.quote(before_us, execution_us, cold, modality)

    # --- what settled attempts say -----------------------------------------------------------------------------------------------

    def observe(self, place: Place, observation: Observation, now_us: int) -> Shift | None:
        """Learn from one component of one attempt; a change point is answered, once."""
        one = self.components[observation.component]
        factor_log = factor_log_of(observation.factor_milli)
        beside_us = _BESIDE_US.get(observation.component, 0)
        ratio_log = log_ratio(observation.actual_us + beside_us, observation.predicted_us + beside_us) + factor_log
        sample = Sample(place=place, ratio_log=ratio_log, factor_log=factor_log, at_least=observation.at_least)
        changed = one.observe(sample, now_us)
        self.unsaved = True
        for level, key, cell in one.trim():
            if cell.published_log:
                self._bump(level, key)
        if changed is None:
            return None
        before, after = changed
        return Shift(component=one.component, site_id=place.site_id, from_milli=milli(before), to_milli=milli(after))

    def decided(self, model_id: ModelId, now_us: int) -> None:
        """A job of this model was bound."""
        self.quotes.decided(model_id, now_us)

    def observe_total(self, seen: Completion) -> None:
        """Learn from how long a chosen decision took in all."""
        self.quotes.observe(seen)
        self.widths.observe(seen, self.quotes.weight_of(seen.model_id, seen.decided_us))
        self.unsaved = True

    def observe_wait(self, key: WaitKey, predicted_us: int, actual_us: int, *, at_least: bool = False) -> None:
        """Learn from how long a job waited that had come to wait."""
        self.waits.observe(key, predicted_us, actual_us, at_least=at_least)
        self.unsaved = True

    def refresh(self, now_us: int) -> bool:
        """Publish what is due. Whether corrections were."""
        if now_us - self.refreshed_us < min(REFRESH_US, _LOOK_US):
            return False  # asked at each event: counting the cells would cost more than most events do
        due = now_us - self.refreshed_us >= min(REFRESH_US * max(self.cells // _CELLS_EACH_REFRESH, 1), _LOOK_US)
        if due:
            self.refreshed_us = now_us
            moved = [one.refresh(now_us) for one in self.components.values() if one.stale or now_us - one.refreshed_us >= _LOOK_US]
            if any(one.shared for one in moved):
                self._bump_all()
            for model_id in sorted(set[ModelId]().union(*(one.models for one in moved))):
                self._bump_model(model_id)
        if now_us - self.quotes.refreshed_us >= of_totals.REFRESH_US:
            self.quotes.refresh(now_us)
            self.waits.refresh()
            if self.learning:
                self.widths.refresh(self.quotes)
        return due

    @property
    def cells(self) -> int:
        """Factors in the book."""
        return sum(len(table) for one in self.components.values() for table in one.tables.values())

    def forget(self, component: Component | None, site_id: SiteId | None) -> None:
        """Forget one component or all, at one site or everywhere (then the quotes too, unless one component was named)."""
        for name in COMPONENTS if component is None else (component,):
            if site_id is None:
                self.components[name] = Corrections(name)
            else:
                self.components[name].forget_site(site_id)
        if component is None and site_id is None:
            self.quotes = Quotes(self._spread_milli)
            self.widths = Widths(self._spread_milli, self.widths.version + 1)
            self.waits = Waits()
        elif component is None and site_id is not None:
            self.widths.forget_site(site_id)
        self._bump_all()
        self.unsaved = True

    def _bump(self, level: Level, key: CellKey) -> None:
        if level in {Level.MODEL_GPU_TYPE, Level.MODEL_SITE}:
            self._bump_model(ModelId(key[0]))
        else:
            self._bump_all()

    def _bump_model(self, model_id: ModelId) -> None:
        if len(self._model_versions) >= MODELS_MAX and model_id not in self._model_versions:
            # Every version grows by more than what is forgotten.
            self.shared_version += max(self._model_versions.values())
            self._model_versions.clear()
        self._model_versions[model_id] = self._model_versions.get(model_id, 0) + 1
        self._factors.clear()

    def _bump_all(self) -> None:
        self.shared_version += 1
        self._factors.clear()

    # --- keeping -----------------------------------------------------------------------------------------------------------------

    def take(self, leaves_max: int | None = None) -> Estimates:
        """As a frozen value; `leaves_max`: without the oldest cells of the lowest levels."""
        kinds, gate, crowds = self.quotes.take(crowds=leaves_max is None)
        starts, pools = self.widths.take(leaves_max)
        waits, all_waits, wait_gate = self.waits.take()
        return Estimates(
            components=tuple(one.take(leaves_max) for one in self.components.values()),
            quotes=kinds,
            gate=gate,
            crowds=crowds,
            starts=starts,
            pools=pools,
            waits=waits,
            all_waits=all_waits,
            wait_gate=wait_gate,
            quotes_us=self.quotes.refreshed_us,
            refreshed_us=self.refreshed_us,
            saved_us=self.saved_us,
            unsaved=self.unsaved,
        )

    def checkpoint(self, now_us: int) -> Estimates | None:
        """What should become durable now; None: nothing new, or not yet."""
        if not self.unsaved or now_us - self.saved_us < SAVE_US * max(self.cells // _CELLS_EACH_SAVE, 1):
            return None
        return self.save(now_us)

    def save(self, now_us: int) -> Estimates:
        """What becomes durable, now."""
        self.saved_us, self.unsaved = now_us, False
        return self.take(SAVED_LEAVES_MAX)


def restored(estimates: Estimates, *, learning: bool = True, spread_milli: int = SPREAD_MILLI) -> Book:
    """A book that goes on where the value was taken; components that the value does not know begin anew."""
    book = Book(learning=learning, spread_milli=spread_milli)
    for told in estimates.components:
        if told.component in book.components:
            book.components[told.component] = of_component.restored(told)
    gate = estimates.gate or LearnedSpread(bins=())
    book.quotes = of_totals.restored(estimates.quotes, gate, estimates.crowds, estimates.quotes_us, spread_milli)
    book.waits = of_waits.restored(estimates.waits, estimates.all_waits, estimates.wait_gate)
    book.widths = of_widths.restored(estimates.starts, estimates.pools, spread_milli)
    book.refreshed_us = estimates.refreshed_us
    book.saved_us, book.unsaved = estimates.saved_us, estimates.unsaved
    return book
