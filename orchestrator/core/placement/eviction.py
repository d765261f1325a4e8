"""What it costs others that a replica leaves a slot, and which replicas leave so that a model fits.

    E_evict = sum over victims (1 - exp(-rate x share x residence)) x reload time x P(no other warm slack) [x last_copy, if it is the last]
    share = 1 / warm copies: that part of the model's requests would have come here
    residence = how long replicas stay in the pool until they make room, as measured, at least a minute; the policy's until then
    P(no other warm slack) = (others that are busy + 1) / (others + 1)
    The policy's `eviction` may have those leave first that were used longest ago, for comparison: their price counts all the same.

in microseconds of expected delay of normal-priority jobs; the policy's k_e and the job's own weight are applied where a job is scored.
Source: `core.demand`, `core.turnover`, `atoll.physics.coldstart`. Fails where demand jumps: a model that nobody has asked for in days
looks free to evict a minute before its rush.
Decides prices and the order of leaving. Must not know which job wants the room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from atoll.model.ids import ModelId, SiteId
from atoll.model.limits import NEEDED_BYTES_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Evicted
from atoll.model.replica import Tier
from atoll.model.residency import Pin, Push
from atoll.physics.coldstart import init_us, stage_us
from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm
from orchestrator.core.placement.policy import Eviction, Policy
from orchestrator.core.placement.rows import FORBIDDEN_US, VICTIMS
from orchestrator.core.state import Pool, Replica, ReplicaKey, Slot

_MS_PER_HOUR: Final = 3_600_000
# A replica of a model that is not in the catalogue any more costs nobody anything.
_NOBODY: Final = 0
# Prices, and what they are made of, keep this many binary digits: steps of an eighth. Finer ones would re-sort slots for nothing.
_DIGITS: Final = 3
# Whoever pushed a model expects its traffic, though nobody has asked for it yet: as likely as not it comes.
_PUSHED_PPM: Final = 500_000
# Reload times kept, by model and pool: some 20 MB.
_RELOADS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A replica that could leave: its price in microseconds of others' delay, and its memory."""

    price_us: int
    last_used_us: int
    model_id: ModelId
    memory_bytes: int

    def told(self) -> Evicted:
        """As it is kept with a decision."""
        return Evicted(model_id=self.model_id, price_us=self.price_us, memory_bytes=self.memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What makes a copy worth keeping: how often the model is asked for, how many of its copies are busy (in eighths), what operators
    pinned and pushed. `refresh` when it changes."""

    rate_per_hour_milli: Callable[[ModelId], int]
    busy_eighths: Mapping[ModelId, int]
    pins: Mapping[tuple[ModelId, SiteId], Pin]
    pushes: Mapping[ModelId, Push]


class Prices:
    """Prices of replicas, from demand and copies.

    `Wishes` must change only when `refresh` is called for the model, a pool's `residence_ms` only when its slots are sorted again, and
    copies count by powers of two: a price is then a function of what a snapshot holds, and slots are sorted again only where one changed.
    """

    __slots__ = ("_busy", "_copies", "_last_milli", "_lru", "_models", "_pins", "_pushes", "_rate", "_reload", "_residence_ms", "_wanted")

    def __init__(self, policy: Policy, models: Mapping[ModelId, ModelSpec], wishes: Wishes) -> None:
        self._models = models
        self._rate, self._busy = wishes.rate_per_hour_milli, wishes.busy_eighths
        self._pins, self._pushes = wishes.pins, wishes.pushes
        self._residence_ms, self._last_milli = policy.residence_ms, policy.last_copy_milli
        self._lru = policy.eviction is Eviction.LRU
        self._copies: dict[ModelId, int] = {}
        self._wanted: dict[ModelId, dict[int, int]] = {}  # by how long replicas stay in the pool
        # By model and pool: the model it was computed for, and the microseconds.
        self._reload: dict[tuple[ModelId, str, str], tuple[ModelSpec, int]] = {}

    def copies(self, model_id: ModelId) -> int:
        """Slots of the fleet that hold the model, or will."""
        return self._copies.get(model_id, 0)

    def count(self, model_id: ModelId, step: int) -> bool:
        """One copy more or fewer. Whether that changes the price of the others."""
        before = self.copies(model_id)
        after = before + step
        if after:
            self._copies[model_id] = after
        else:
            del self._copies[model_id]
        return before.bit_length() != after.bit_length() and self.refresh(model_id)

    def refresh(self, model_id: ModelId) -> bool:
        """Demand or copies changed. Whether a price did."""
        old = self._wanted.pop(model_id, {})
        return any(ppm != self._wanted_ppm(model_id, residence_ms) for residence_ms, ppm in old.items())

    def price_us(self, replica: Replica, pool: Pool) -> int:
        """What the fleet loses when this replica leaves a slot of the pool; FORBIDDEN_US where it is pinned."""
        model = self._models.get(replica.model_id)
        if model is None:
            return _NOBODY
        if self._pins:
            pin = self._pins.get((replica.model_id, pool.site_id))
            if pin is not None and pin.tier is Tier.GPU:
                return FORBIDDEN_US
        key = (replica.model_id, pool.site_id, pool.pool_id)
        known = self._reload.get(key)
        if known is None or known[0] is not model:
            node = pool.spec.node
            h2d = node.h2d_bytes_per_s or pool.gpu.h2d_bytes_per_s
            known = self._reload[key] = (model, stage_us(model, node.disk_bytes_per_s, h2d, from_host=False) + init_us(model))
            if len(self._reload) > _RELOADS_MAX:
                del self._reload[next(iter(self._reload))]
        return min(known[1] // 1_000 * self._wanted_ppm(replica.model_id, pool.residence_ms) // 1_000, FORBIDDEN_US // 2)

    def _wanted_ppm(self, model_id: ModelId, residence_ms: int) -> int:
        """That somebody asks for this very copy while it would have stayed, and finds no other. `residence_ms` 0: nothing was measured."""
        by_residence = self._wanted.get(model_id)
        if by_residence is None:
            by_residence = self._wanted[model_id] = {}
        known = by_residence.get(residence_ms)
        if known is None:
            copies = 1 << max(self.copies(model_id).bit_length() - 1, 0)
            expected_ppm = self._rate(model_id) * (residence_ms or self._residence_ms) * 1_000 // (_MS_PER_HOUR * copies)
            # The one that asks needs one; of the others those that are busy have no slot to spare.
            taken = 8 + (copies - 1) * self._busy.get(model_id, 0)
            known = within_ppm(min(expected_ppm, X_PPM_MAX)) * taken // (8 * copies)
            if model_id in self._pushes:
                known = max(known, _PUSHED_PPM // copies)
            if copies == 1:
                known = known * self._last_milli // 1_000
            by_residence[residence_ms] = known = rounded(known)
        return known

    def victims(self, slot: Slot, pool: Pool, besides: ReplicaKey | None = None) -> list[Victim]:
        """What could leave the slot, the cheapest first, among equals the longest idle; or, where age decides, the longest idle first and
        what must stay last."""
        found = [
            Victim(
                price_us=self.price_us(replica, pool),
                last_used_us=replica.last_used_us,
                model_id=replica.model_id,
                memory_bytes=replica.memory_bytes,
            )
            for replica in slot.replicas.values()
            if replica.key != besides
        ]
        if len(found) > 1:
            found.sort(key=_by_use if self._lru else _by_price)
        return found


def _by_price(victim: Victim) -> tuple[int, int, ModelId]:
    return (victim.price_us, victim.last_used_us, victim.model_id)


def _by_use(victim: Victim) -> tuple[bool, int, ModelId]:
    return (victim.price_us >= FORBIDDEN_US, victim.last_used_us, victim.model_id)


def rounded(number: int) -> int:
    """The first binary digits of a number."""
    spare = max(number.bit_length() - _DIGITS, 0)
    return number >> spare << spare


def as_figures(victims: list[Victim]) -> list[int]:
    """Bytes and price of each victim in order, for a table; the last place holds all that are left over."""
    figures: list[int] = []
    for victim in victims[: VICTIMS - 1]:
        figures += (victim.memory_bytes, victim.price_us)
    rest = victims[VICTIMS - 1 :]
    left_bytes, left_us = sum(victim.memory_bytes for victim in rest), sum(victim.price_us for victim in rest)
    figures += (min(left_bytes, NEEDED_BYTES_MAX), min(left_us, FORBIDDEN_US))
    return figures + [0] * (2 * VICTIMS - len(figures))


def leaving(victims: list[Victim], short_bytes: int) -> tuple[Victim, ...]:
    """Those that leave so that `short_bytes` more come free, as the tables reckon: one after the other, the left-over ones together."""
    gone: list[Victim] = []
    for number, victim in enumerate(victims):
        if short_bytes <= 0:
            break
        if number >= VICTIMS - 1:
            gone += victims[number:]
            break
        gone.append(victim)
        short_bytes -= victim.memory_bytes
    return tuple(gone)
