"""What a trace is like: how many jobs of what, how fast they come, and how often a request finds what was used before.

Decides what is counted and how a hit is defined; reads jobs once, and remembers names, never rows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Any, Final

from atoll.model.errors import NotFoundError
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec
from sims.traces.job import TraceJob, kind_of
from sims.traces.variants import spec_of

MODEL_SLOTS: Final = 8
ADAPTER_SLOTS: Final = 10
# Enough draws for a rate of hits to a thousandth.
_DRAWS: Final = 200_000
_US: Final = 1_000_000
_MINUTE_US: Final = 60 * _US


@dataclass(slots=True)
class Lru:
    """A cache of so many names that forgets what was used longest ago."""

    slots: int
    hits: int = 0
    uses: int = 0
    _held: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)

    def use(self, name: Hashable) -> None:
        """One reference."""
        self.uses += 1
        if name in self._held:
            self.hits += 1
            self._held.move_to_end(name)
            return
        self._held[name] = None
        if len(self._held) > self.slots:
            self._held.popitem(last=False)

    @property
    def hit_share(self) -> float:
        """Of all references; 0 where there were none."""
        return self.hits / self.uses if self.uses else 0.0


def independent_hit_share(counts: Mapping[Any, int], slots: int) -> float:
    """What a cache of so many would hit, if each reference was drawn for itself by how often it occurs. Same counts, same answer."""
    if not counts:
        return 0.0
    cumulative = list(accumulate(count for _, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))))
    random, cache = Random(0), Lru(slots)
    for _ in range(_DRAWS):
        cache.use(bisect_right(cumulative, random.randrange(cumulative[-1])))
    return cache.hit_share


@dataclass(slots=True)
class _Repeats:
    """How often one of the same tenant says the same again."""

    last: dict[str, Hashable] = field(default_factory=dict)
    same: int = 0
    pairs: int = 0

    def say(self, tenant: str, what: Hashable) -> None:
        before = self.last.get(tenant)
        if before is not None:
            self.pairs += 1
            self.same += before == what
        self.last[tenant] = what

    @property
    def share(self) -> float:
        return self.same / self.pairs if self.pairs else 0.0


@dataclass(slots=True, kw_only=True)
class TraceStatistics:
    """Counts over the jobs of a trace. `catalogue` says what is made where a job does not."""

    catalogue: Mapping[ModelId, ModelSpec]
    rows: int = 0
    first_us: int = 0
    last_us: int = 0
    models: Counter[str] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    adapter_sets: Counter[tuple[str, ...]] = field(default_factory=Counter)
    adapters: set[str] = field(default_factory=set)
    origins: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    with_deadline: int = 0
    measured: int = 0
    _minutes_peak: int = 0
    _minute: int = -1
    _in_minute: int = 0
    _gaps_squared: float = 0.0
    _model_cache: Lru = field(default_factory=lambda: Lru(MODEL_SLOTS))
    _adapter_cache: Lru = field(default_factory=lambda: Lru(ADAPTER_SLOTS))
    _model_repeats: _Repeats = field(default_factory=_Repeats)
    _adapter_repeats: _Repeats = field(default_factory=_Repeats)
    _specs: dict[str, ModelSpec | None] = field(default_factory=dict)

    def add(self, job: TraceJob) -> None:
        """One more job, not earlier than the last."""
        if self.rows:
            self._gaps_squared += float(job.arrival_us - self.last_us) ** 2
        else:
            self.first_us = job.arrival_us
        self.rows += 1
        self.last_us = job.arrival_us
        self._count_minute(job.arrival_us // _MINUTE_US)
        self.models[job.model_id] += 1
        self.tenants[job.tenant] += 1
        self._model_cache.use(job.model_id)
        self._model_repeats.say(job.tenant, job.model_id)
        if job.adapters:
            names = tuple(use.adapter_id for use in job.adapters)
            self.adapters.update(names)
            self.adapter_sets[names] += 1
            self._adapter_cache.use(names)
            self._adapter_repeats.say(job.tenant, names)
        if job.origin:
            self.origins[job.origin] += 1
        self.with_deadline += job.deadline_ms > 0
        self.measured += job.measured_us > 0
        self.kinds[self._kind(job)] += 1

    def unknown_models(self) -> list[str]:
        """Models that neither the catalogue has nor their bases, those asked for most first."""
        return [name for name, _ in self.models.most_common() if self._spec(name) is None]

    def summary(self) -> dict[str, Any]:
        """All figures, by the names that `-o json` has."""
        span_us = self.last_us - self.first_us
        gaps = self.rows - 1
        mean_us = span_us / gaps if gaps > 0 else 0.0
        variance = max(self._gaps_squared / gaps - mean_us * mean_us, 0.0) if gaps > 0 else 0.0
        top = self.tenants.most_common(max(len(self.tenants) // 100, 1))
        return {
            "jobs": self.rows,
            "first_s": self.first_us / _US,
            "span_s": span_us / _US,
            "jobs_per_s": round(gaps / span_us * _US, 6) if span_us else None,
            "peak_minute_jobs": max(self._minutes_peak, self._in_minute),
            "gap_cv": round(math.sqrt(variance) / mean_us, 3) if mean_us else None,
            "models": len(self.models),
            "unknown_models": self.unknown_models()[:10],
            "tenants": len(self.tenants),
            "top_tenants_share": round(sum(count for _, count in top) / max(self.rows, 1), 4),
            "adapters": len(self.adapters),
            "with_adapters_share": round(sum(self.adapter_sets.values()) / max(self.rows, 1), 4),
            "kinds": dict(self.kinds.most_common()),
            "origins": dict(self.origins.most_common(20)),
            "with_deadline_share": round(self.with_deadline / max(self.rows, 1), 4),
            "measured_share": round(self.measured / max(self.rows, 1), 4),
            "same_model_share": round(self._model_repeats.share, 4),
            "same_adapters_share": round(self._adapter_repeats.share, 4),
            f"lru{MODEL_SLOTS}_models": round(self._model_cache.hit_share, 4),
            f"lru{MODEL_SLOTS}_models_independent": round(independent_hit_share(self.models, MODEL_SLOTS), 4),
            f"lru{ADAPTER_SLOTS}_adapters": round(self._adapter_cache.hit_share, 4),
            f"lru{ADAPTER_SLOTS}_adapters_independent": round(independent_hit_share(self.adapter_sets, ADAPTER_SLOTS), 4),
        }

    def _count_minute(self, minute: int) -> None:
        if minute != self._minute:
            self._minutes_peak = max(self._minutes_peak, self._in_minute)
            self._minute, self._in_minute = minute, 0
        self._in_minute += 1

    def _spec(self, model_id: str) -> ModelSpec | None:
        if model_id not in self._specs:
            try:
                self._specs[model_id] = spec_of(model_id, self.catalogue)
            except NotFoundError:
                self._specs[model_id] = None
        return self._specs[model_id]

    def _kind(self, job: TraceJob) -> str:
        spec = self._spec(job.model_id)
        if spec is None:
            return "unknown"
        return kind_of(job.shape_with(spec.default_shape))


def statistics_of(jobs: Iterable[TraceJob], catalogue: Mapping[ModelId, ModelSpec]) -> TraceStatistics:
    """Of all of them."""
    found = TraceStatistics(catalogue=catalogue)
    for job in jobs:
        found.add(job)
    return found
