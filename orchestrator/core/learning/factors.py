"""Factors of all pools at once: what the published corrections of a model are in every pool, as arrays.

Decides nothing: the same integers as `Book.factors_milli`, pool by pool, computed for a whole fleet in one go. What is the same for every
model (everybody, GPU type, site) is kept while it stands; what is the model's own is added where it has cells. Must not know the pools'
other columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component, Level
from atoll.model.limits import PREDICTED_US_MAX
from orchestrator.core.learning.book import Book
from orchestrator.core.learning.corrections import CORRECTION_MAX, Corrections
from orchestrator.core.learning.logs import Ints, millis
from orchestrator.core.learning.observation import COMPONENTS
from orchestrator.core.state import Pool

# Factors kept, in bytes: 5 KB a model at 36 sites, half a megabyte at 3,600.
_KEPT_BYTES: Final = 128 * 1024 * 1024


class HasPool(Protocol):
    """One of the pools that an estimate has a row for."""

    @property
    def pool(self) -> Pool:
        """The pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Thousandths per pool, by component."""

    milli: dict[Component, Ints]

    def at(self, component: Component, pool: int, prior_us: int) -> int:
        """The prior of one pool with its correction; a year at most."""
        return min(min(prior_us, PREDICTED_US_MAX) * int(self.milli[component][pool]) // 1_000, PREDICTED_US_MAX)

    def times(self, component: Component, prior_us: Ints) -> Ints:
        """A prior per pool (or per row, with the rows of all pools one kind after the other) with its correction; a year at most."""
        factor = self.milli[component]
        rows = len(prior_us) // len(factor) if len(factor) else 1
        corrected = np.minimum(prior_us, PREDICTED_US_MAX) * (factor if rows == 1 else np.concatenate((factor,) * rows)) // 1_000
        return np.asarray(np.minimum(corrected, PREDICTED_US_MAX), dtype=np.int64)

    def times_each(self, priors: Sequence[tuple[Component, Ints]]) -> list[Ints]:
        """As `times`, of several priors of as many rows at once."""
        factor = np.array([self.milli[component] for component, _ in priors])
        prior = np.minimum(np.array([prior_us for _, prior_us in priors]), PREDICTED_US_MAX)
        kinds = prior.shape[1] // max(factor.shape[1], 1)
        corrected = prior.reshape(len(priors), kinds, factor.shape[1]) * factor[:, np.newaxis, :] // 1_000
        return list(np.minimum(corrected, PREDICTED_US_MAX).reshape(prior.shape))


class PoolFactors:
    """The arrays of one fleet."""

    __slots__ = ("_base", "_base_of", "_book", "_by_gpu_type", "_by_site", "_kept", "_layout", "_unlearned")

    def __init__(self, book: Book) -> None:
        self._book = book
        self._layout: Sequence[HasPool] = ()
        self._base_of = -1
        self._base: dict[Component, Ints] = {}
        self._unlearned: dict[Component, Ints] = {}  # the factors of models of which nothing of their own is known
        self._by_site: dict[SiteId, list[int]] = {}
        self._by_gpu_type: dict[GpuTypeId, Ints] = {}
        self._kept: dict[tuple[ModelId, Component], tuple[int, Ints]] = {}  # with the version that they are of

    def version_of(self, model_id: ModelId) -> int:
        """As of the book."""
        return self._book.version_of(model_id)

    def of(self, model_id: ModelId, columns: Sequence[HasPool], components: Sequence[Component] = COMPONENTS) -> Factors:
        """The factors of a model in these pools, of these components. Another sequence of pools means other pools; the same one must not
        have changed."""
        if columns is not self._layout:
            self._lay_out(columns)
        if self._base_of != self._book.shared_version:
            self._base = {name: self._shared(one) for name, one in self._book.components.items()}
            self._unlearned = {name: _factor(self._base[name], one) for name, one in self._book.components.items()}
            self._base_of = self._book.shared_version
        return Factors(milli={name: self._kept_or_own(model_id, name) for name in components})

    def _kept_or_own(self, model_id: ModelId, component: Component) -> Ints:
        version = self._book.version_of(model_id)
        known = self._kept.get((model_id, component))
        if known is not None and known[0] == version:
            return known[1]
        if len(self._kept) * max(len(self._layout), 1) * 8 >= _KEPT_BYTES:
            self._kept.clear()
        if self._book.learning:
            milli = self._own(self._book.components[component], component, model_id)
        else:
            milli = np.full(len(self._layout), 1_000, dtype=np.int64)
        self._kept[model_id, component] = version, milli
        return milli

    def _lay_out(self, columns: Sequence[HasPool]) -> None:
        self._by_site = {}
        by_gpu_type: dict[GpuTypeId, list[int]] = {}
        for index, column in enumerate(columns):
            self._by_site.setdefault(column.pool.site_id, []).append(index)
            by_gpu_type.setdefault(column.pool.gpu.gpu_type, []).append(index)
        self._by_gpu_type = {gpu_type: np.array(found, dtype=np.int64) for gpu_type, found in by_gpu_type.items()}
        self._layout = columns
        self._base_of = -1
        self._kept.clear()

    def _shared(self, one: Corrections) -> Ints:
        """Logs that hold for every model."""
        every = one.tables[Level.ALL].get(("", ""))
        logs = np.full(len(self._layout), every.published_log if every is not None else 0, dtype=np.int64)
        for (name, _), cell in one.tables[Level.GPU_TYPE].items():
            rows = self._by_gpu_type.get(GpuTypeId(name))
            if rows is not None:
                logs[rows] += cell.published_log
        for (name, _), cell in one.tables[Level.SITE].items():
            for row in self._by_site.get(SiteId(name), ()):
                logs[row] += cell.published_log
        return logs

    def _own(self, one: Corrections, component: Component, model_id: ModelId) -> Ints:
        by_type, by_site = one.own_of(Level.MODEL_GPU_TYPE, model_id), one.own_of(Level.MODEL_SITE, model_id)
        if not by_type and not by_site:
            return self._unlearned[component]
        logs = self._base[component].copy()
        for gpu_type, published_log in by_type:
            rows = self._by_gpu_type.get(GpuTypeId(gpu_type))
            if rows is not None:
                logs[rows] += published_log
        for site_id, published_log in by_site:
            for row in self._by_site.get(SiteId(site_id), ()):
                logs[row] += published_log
        return _factor(logs, one)


def _factor(logs: Ints, one: Corrections) -> Ints:
    return millis(_clipped(_clipped(logs) + one.mean_log))


def _clipped(logs: Ints) -> Ints:
    return np.minimum(np.maximum(logs, -CORRECTION_MAX), CORRECTION_MAX)
