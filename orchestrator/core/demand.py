"""Demand by model: how often each is asked for, as a mixture of three exponential averages with a launch prior.

Every arrival adds one to three sums that halve each 10 minutes, 6 hours and 7 days. A sum divided by the time it stands for is a rate:

    rate = (arrivals, decayed) / (hours observed, decayed)          of each average; the mixture weighs them

A new model begins as if it had been watched for one hour at the prior's rate; that hour decays like everything else, so what is known of
a model takes the place of what was assumed by itself. Integers throughout: equal histories give equal rates on every machine.
Decides rates, and when they are kept; what is kept decays by the time that nobody watched, and what is not begins with the prior again.
Must not know places.
"""

from __future__ import annotations

import heapq
from collections.abc import KeysView
from dataclasses import dataclass
from typing import Final

from atoll.model.demand import KeptDemand, ModelDemand
from atoll.model.ids import ModelId

# Sums are in millionths of an arrival, spans in microseconds.
_ONE: Final = 1_000_000
_HOUR_US: Final = 3_600_000_000
# 1 / ln 2 in millionths: a half-life as the time that a decayed sum stands for in the long run.
_MEAN_PPM: Final = 1_442_695
# A half-life has so many grains. 2^-(i/1024) in 32 binary digits, rounded, so that the last bit of a libm cannot be seen.
_GRAINS: Final = 1024
_FRACTIONS: Final = tuple(round(2**32 * 2 ** (-i / _GRAINS)) for i in range(_GRAINS))
# The prior counts as this long a watch.
_PRIOR_US: Final = _HOUR_US
# Becomes durable at most this often, and of so many models: 10 ms and 470 KB. What a restart forgets is a minute of arrivals, and models
# that hardly anybody asks for.
SAVE_US: Final = 60_000_000
SAVED_MAX: Final = 4_096
# Beyond this many half-lives nothing is left of a sum.
_HALVES_MAX: Final = 62


def decayed(value: int, elapsed_us: int, half_life_us: int) -> int:
    """`value` after `elapsed_us`."""
    if elapsed_us <= 0:
        return value
    halves, rest = divmod(elapsed_us, half_life_us)
    if halves > _HALVES_MAX:
        return 0
    return (value >> halves) * _FRACTIONS[rest * _GRAINS // half_life_us] >> 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PutDemand:
    """A record: how often models are asked for, replacing what was before. Nothing rests on it: without it the prior holds."""

    demand: KeptDemand


@dataclass(slots=True)
class _Entry:
    since_us: int
    as_of_us: list[int]
    sums: list[int]
    arrivals: int
    told_milli: int


class Demand:
    """Rates of all models. `rate_per_hour_milli` answers what was told last: it changes only by `arrived` and `refresh`."""

    __slots__ = ("_entries", "_half_lives_us", "_prior_milli", "_weights_milli", "active", "saved_us", "unsaved")

    def __init__(self, *, half_lives_ms: tuple[int, int, int], weights_milli: tuple[int, int, int], prior_per_hour_milli: int) -> None:
        self._half_lives_us = (half_lives_ms[0] * 1_000, half_lives_ms[1] * 1_000, half_lives_ms[2] * 1_000)
        self._weights_milli = weights_milli
        self._prior_milli = prior_per_hour_milli
        self._entries: dict[ModelId, _Entry] = {}
        # Models that were asked for and not forgotten since, in the order of their first request: all that the slow loop looks at.
        self.active: dict[ModelId, None] = {}
        self.saved_us = 0
        self.unsaved = False

    def rate_per_hour_milli(self, model_id: ModelId) -> int:
        """Requests per hour, in thousandths, as told last; the launch prior for a model that nothing is known of."""
        entry = self._entries.get(model_id)
        return self._prior_milli if entry is None else entry.told_milli

    def asked_for(self, model_id: ModelId) -> bool:
        """Whether anybody has asked for the model lately, so that its rate is more than the prior."""
        return model_id in self.active

    def arrivals(self, model_id: ModelId) -> int:
        """Requests that its averages rest on."""
        entry = self._entries.get(model_id)
        return 0 if entry is None else entry.arrivals

    def added(self, model_id: ModelId, now_us: int) -> None:
        """A model is new: the prior holds from now."""
        if model_id not in self._entries:
            prior = self._prior_milli * _ONE // 1_000 * _PRIOR_US // _HOUR_US
            self._entries[model_id] = _Entry(now_us, [now_us] * 3, [prior] * 3, 0, self._prior_milli)
            self.unsaved = True

    def removed(self, model_id: ModelId) -> None:
        """Nothing is remembered of a model that is gone."""
        self._entries.pop(model_id, None)
        self.active.pop(model_id, None)
        self.unsaved = True

    def arrived(self, model_id: ModelId, now_us: int) -> bool:
        """Somebody asks for a model. Whether the rate that is told changed."""
        self.added(model_id, now_us)
        entry = self._entries[model_id]
        self._settle(entry, now_us)
        for index in range(3):
            entry.sums[index] += _ONE
        entry.arrivals += 1
        self.unsaved = True
        self.active.setdefault(model_id)
        return self._tell(entry, now_us)

    def refresh(self, model_id: ModelId, now_us: int) -> bool:
        """Time has passed. Whether the rate that is told changed. A model that is all but forgotten is no longer active."""
        entry = self._entries.get(model_id)
        if entry is None:
            return False
        self._settle(entry, now_us)
        if model_id in self.active and entry.sums[2] < _ONE // 16:
            del self.active[model_id]  # four weeks after its last request
        return self._tell(entry, now_us)

    def averages_per_hour_milli(self, model_id: ModelId, now_us: int) -> tuple[int, int, int]:
        """The three averages as of now."""
        entry = self._entries.get(model_id)
        if entry is None:
            return (self._prior_milli,) * 3
        rates = [
            _rate_milli(decayed(total, now_us - as_of_us, half_us), now_us - entry.since_us, half_us)
            for total, as_of_us, half_us in zip(entry.sums, entry.as_of_us, self._half_lives_us, strict=True)
        ]
        return rates[0], rates[1], rates[2]

    def known(self) -> KeysView[ModelId]:
        """All models of which something is known, oldest first."""
        return self._entries.keys()

    def _settle(self, entry: _Entry, now_us: int) -> None:
        """Let the sums decay by whole grains: by what is less, none of them would ever decay under many arrivals."""
        for index, half_us in enumerate(self._half_lives_us):
            grains = (now_us - entry.as_of_us[index]) * _GRAINS // half_us
            if grains > 0:
                elapsed_us = -(-grains * half_us // _GRAINS)
                entry.sums[index] = decayed(entry.sums[index], elapsed_us, half_us)
                entry.as_of_us[index] += elapsed_us

    def _tell(self, entry: _Entry, now_us: int) -> bool:
        """Rates move all the time; only steps of an eighth are told, because each makes prices be computed anew."""
        age_us = now_us - entry.since_us
        mixed = 0
        for total, half_us, weight in zip(entry.sums, self._half_lives_us, self._weights_milli, strict=True):
            mixed += _rate_milli(total, age_us, half_us) * weight
        mixed //= 1_000
        if abs(mixed - entry.told_milli) * 8 <= max(mixed, entry.told_milli):
            return False
        entry.told_milli = mixed
        return True

    # --- keeping -----------------------------------------------------------------------------------------------------------------

    def take(self, models_max: int | None = None) -> KeptDemand:
        """Everything, the active ones in their order first; `models_max`: of those most asked for."""
        order = [*self.active, *(model_id for model_id in self._entries if model_id not in self.active)]
        if models_max is not None and len(order) > models_max:
            most = set(heapq.nsmallest(models_max, order, key=lambda one: (one not in self.active, -self._entries[one].told_milli, one)))
            order = [model_id for model_id in order if model_id in most]
        return KeptDemand(
            models=tuple(_kept(model_id, self._entries[model_id]) for model_id in order),
            active=sum(model_id in self.active for model_id in order),
            half_lives_us=self._half_lives_us,
            saved_us=self.saved_us,
            unsaved=self.unsaved,
        )

    def checkpoint(self, now_us: int) -> KeptDemand | None:
        """What should become durable now; None: nothing new, or not yet."""
        return self.save(now_us) if self.unsaved and now_us - self.saved_us >= SAVE_US else None

    def save(self, now_us: int) -> KeptDemand:
        """What becomes durable, now."""
        self.saved_us, self.unsaved = now_us, False
        return self.take(SAVED_MAX)

    def restore(self, kept: KeptDemand) -> None:
        """Go on from a snapshot."""
        self._entries = {one.model_id: _Entry(one.since_us, list(one.as_of_us), list(one.sums), one.arrivals, one.told_milli)
                         for one in kept.models}  # fmt: skip
        self.active = dict.fromkeys(one.model_id for one in kept.models[: kept.active])
        self.saved_us, self.unsaved = kept.saved_us, kept.unsaved

    def resume(self, kept: KeptDemand, now_us: int, unwatched_us: int) -> None:
        """Go on from what the store kept, `unwatched_us` of real time later than fleet time says: it stands still while nobody counts it.

        Where half-lives are others than they were, the averages stay and the sums follow.
        """
        self.restore(kept)
        for model_id, entry in self._entries.items():
            for index, (was_us, is_us) in enumerate(zip(kept.half_lives_us, self._half_lives_us, strict=True)):
                if was_us != is_us:
                    age_us = entry.as_of_us[index] - entry.since_us
                    entry.sums[index] = entry.sums[index] * _span_us(age_us, is_us) // _span_us(age_us, was_us)
                entry.as_of_us[index] -= unwatched_us
            entry.since_us -= unwatched_us
            self.refresh(model_id, now_us)


def _kept(model_id: ModelId, entry: _Entry) -> ModelDemand:
    return ModelDemand(
        model_id=model_id,
        since_us=entry.since_us,
        as_of_us=(entry.as_of_us[0], entry.as_of_us[1], entry.as_of_us[2]),
        sums=(entry.sums[0], entry.sums[1], entry.sums[2]),
        arrivals=entry.arrivals,
        told_milli=entry.told_milli,
    )


def _rate_milli(total: int, age_us: int, half_life_us: int) -> int:
    """Thousandths per hour: the decayed sum over the decayed time it stands for."""
    return total * _HOUR_US // (_span_us(age_us, half_life_us) * (_ONE // 1_000))


def _span_us(age_us: int, half_life_us: int) -> int:
    """The decayed time that a sum stands for, the prior's hour included; 1 at least."""
    kept = decayed(_ONE, age_us, half_life_us)
    return max(_PRIOR_US * kept // _ONE + half_life_us * _MEAN_PPM // _ONE * (_ONE - kept) // _ONE, 1)
