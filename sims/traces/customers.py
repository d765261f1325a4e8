"""Tenants of a made-up trace: where they are, which models and adapters each works with, and what each repeats.

Decides what a tenant asks for next; knows neither when nor how large. The shares are those of 15,630 production requests of diffusion
models: the top 1 % of tenants make 28 % of them; a tenant asks for its last base model again with a probability of 0.72, and for its last
set of adapters with 0.74.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final

from sims.traces.popularity import Popularity, exponent_for, zipf

TOP_SHARE: Final = 0.28
TOP_OF: Final = 100
REPEATS_MODEL: Final = 0.72
REPEATS_ADAPTERS: Final = 0.74
# Models that a customer works with at once; of ten tenants one is a customer, who has a product of its own on the fleet.
CUSTOMER_MODELS: Final = 14
_CUSTOMER_OF: Final = 10
_OTHER_MODELS: Final = (2, 2, 2, 3, 3, 4)
# Of all requests so many use adapters: one tenant in four does, nearly always.
_ADAPTER_TENANTS: Final = 0.25
_ADAPTER_REQUESTS: Final = 0.8
# Who uses adapters is the truer to its base: a set fits one. 0.87 x 0.85 is 0.74.
_REPEATS_MODEL_WITH_ADAPTERS: Final = 0.87
_ADAPTER_SETS: Final = (1, 2, 4)
_SET_SIZES: Final = (1, 1, 1, 1, 1, 1, 1, 1, 2, 3)
# Among its own models a tenant is less led by what all ask for: what all ask for has decided which it has.
_TASTE: Final = 0.4
# A tenant tries something new now and then: a launch would never be used otherwise.
_TRIES: Final = 0.02


@dataclass(slots=True, kw_only=True)
class Customer:
    """One tenant. `models` by number, with how much it likes each."""

    name: str
    region: int
    with_adapters: bool
    models: list[int] = field(default_factory=list)
    last_model: int = -1
    last_adapters: dict[int, tuple[str, ...]] = field(default_factory=dict)
    adapters: dict[int, list[tuple[str, ...]]] = field(default_factory=dict)


class Customers:
    """All tenants, those that ask most first."""

    def __init__(self, count: int, region_shares: Sequence[int], models: Popularity, random: Random) -> None:
        self._random = random
        self._models = models
        self._all: list[Customer] = []
        shares = zipf(count, exponent_for(count, max(count // TOP_OF, 1), TOP_SHARE))
        self._by_region: list[list[int]] = [[] for _ in region_shares]
        weights: list[list[float]] = [[] for _ in region_shares]
        for number, share in enumerate(shares):
            # The first of each region are given out in turn: one customer must not make a region's day.
            region = random.choices(range(len(region_shares)), weights=region_shares)[0]
            with_adapters = random.random() < _ADAPTER_TENANTS
            self._all.append(Customer(name=f"t{number:04}", region=region, with_adapters=with_adapters))
            self._by_region[region].append(number)
            weights[region].append(share)
        self._cumulative = [list(accumulate(each)) for each in weights]

    def draw(self, region_weights: Sequence[float]) -> Customer:
        """Who begins a session, where regions ask by these weights now."""
        possible = [weight if numbers else 0.0 for weight, numbers in zip(region_weights, self._by_region, strict=True)]
        region = self._random.choices(range(len(possible)), weights=possible)[0]
        cumulative = self._cumulative[region]
        index = bisect_right(cumulative, self._random.random() * cumulative[-1])
        return self._all[self._by_region[region][min(index, len(cumulative) - 1)]]

    def next_model(self, who: Customer) -> int:
        """Which model a tenant asks for next."""
        random = self._random
        if not who.models:
            self._choose_models(who)
        shares = self._shares(who)
        wanted = _REPEATS_MODEL_WITH_ADAPTERS if who.with_adapters else REPEATS_MODEL
        # A tenant that draws anew may draw the same: what is kept outright is the rest.
        by_chance = sum(share * share for share in shares)
        kept = max((wanted - by_chance) / (1 - by_chance), 0.0) if by_chance < 1 else 0.0
        if who.last_model < 0 or random.random() >= kept:
            if random.random() < _TRIES:
                self._try_another(who)
                shares = self._shares(who)
            who.last_model = random.choices(who.models, weights=shares)[0]
        return who.last_model

    def next_adapters(self, who: Customer, model: int) -> tuple[str, ...]:
        """Which adapters it uses with this model."""
        random = self._random
        if not who.with_adapters or random.random() >= _ADAPTER_REQUESTS:
            return ()
        sets = who.adapters.get(model)
        if sets is None:
            sets = who.adapters[model] = self._adapter_sets(who, model)
        last = who.last_adapters.get(model)
        kept = REPEATS_ADAPTERS / _REPEATS_MODEL_WITH_ADAPTERS
        if last is None or (len(sets) > 1 and random.random() >= kept):
            last = who.last_adapters[model] = random.choice([each for each in sets if each != last])
        return last

    def _adapter_sets(self, who: Customer, model: int) -> list[tuple[str, ...]]:
        random = self._random
        sets, number = [], 0
        for _ in range(random.choice(_ADAPTER_SETS)):
            size = random.choice(_SET_SIZES)
            sets.append(tuple(f"{who.name}-m{model:04}-{number + index}" for index in range(size)))
            number += size
        return sets

    def _choose_models(self, who: Customer) -> None:
        number = int(who.name[1:])
        is_customer = number < len(self._all) // _CUSTOMER_OF
        wanted = CUSTOMER_MODELS if is_customer else self._random.choice(_OTHER_MODELS)
        wanted = min(wanted, len(self._models.weights))
        chosen: dict[int, None] = {}
        while len(chosen) < wanted:
            chosen[self._models.draw()] = None
        who.models = list(chosen)

    def _try_another(self, who: Customer) -> None:
        found = self._models.draw()
        if found not in who.models:
            who.models[self._random.randrange(len(who.models))] = found

    def _shares(self, who: Customer) -> list[float]:
        weights = [self._models.weights[model] ** _TASTE for model in who.models]
        total = sum(weights)
        return [weight / total for weight in weights]
