"""How long replicas stay until they make room, pool by pool, and how many of a model's copies are busy: what evictions are priced by.

Decides when what is measured has changed so much that prices follow it. Stays count when they end, smoothed; copies are looked at when the
residency loop weighs their model. Must not know who wants room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from atoll.model.ids import ModelId
from atoll.model.replica import ReplicaState
from orchestrator.core.context import Context
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.eviction import rounded
from orchestrator.core.state import Replica, ReplicaKey, Slot

# Each stay counts for an eighth: the prior is all but gone after some twenty, and one odd stay moves nothing.
_SMOOTHED: Final = 8
# Whatever is measured, a replica is wanted for a minute: the one that leaves sooner is missed when a burst goes on.
_STAY_MIN_MS: Final = 60_000
# Prices follow when the measure is off by more than a quarter, or by a quarter of the copies: each change sorts slots again.
_STEP_PARTS: Final = 4
_EIGHTHS: Final = 8
_STEP_EIGHTHS: Final = 2


def take_out(slot: Slot, models: Collection[ModelId], besides: ReplicaKey) -> list[Replica]:
    """Replicas of these models leave a slot; those whose stay counts (of a gang the first share), for `left`."""
    if not models:
        return []
    leaving = set(models)
    gone = [slot.replicas.pop(key) for key in list(slot.replicas) if key.model_id in leaving and key != besides]
    return counted(slot, gone)


def counted(slot: Slot, gone: Iterable[Replica]) -> list[Replica]:
    """Of replicas that left a slot, those whose stay counts: it is known since when they were there, and no other share of a gang tells."""
    return [one for one in gone if one.warm_us and one.state is not ReplicaState.ABSENT and slot.index % one.gang_size == 0]


def left(ctx: Context, column: Column, gone: Iterable[Replica]) -> None:
    """These replicas made room for others: how long they had stayed tells for how long another would."""
    pool, changed = column.pool, False
    for replica in gone:
        known_us = pool.stay_us or ctx.policy.residence_ms * 1_000
        # Towards zero by less than all that is left: 0 means that nothing was measured.
        pool.stay_us = known_us - (known_us - (ctx.now_us - replica.warm_us)) // _SMOOTHED
        told_ms = pool.residence_ms or ctx.policy.residence_ms
        measured_ms = max(rounded(pool.stay_us // 1_000), _STAY_MIN_MS)
        if abs(measured_ms - told_ms) * _STEP_PARTS > told_ms:
            pool.residence_ms, changed = measured_ms, True
    if changed:
        ctx.columns.residence_changed(column)


def told_busy(ctx: Context, model_id: ModelId) -> bool:
    """Look at the copies of a model. Whether the share of them that is busy, as it is told, changed."""
    copies = busy = 0
    for index in ctx.columns.where.by_model.get(model_id, ()):
        column = ctx.columns.columns[index]
        for key in column.replicas.get(model_id, ()):
            for node_index, slot_index in column.warm[key].slots:
                if slot_index % key.gang_size == 0:
                    copies += 1
                    busy += bool(column.slot(node_index, slot_index).attempts)
    told = ctx.residency.busy_eighths
    known, now = told.get(model_id, 0), min(busy * _EIGHTHS // max(copies - 1, 1), _EIGHTHS) if copies > 1 else 0
    if abs(now - known) < _STEP_EIGHTHS:
        return False
    if now:
        told[model_id] = now
    else:
        del told[model_id]
    return True
