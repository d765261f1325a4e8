"""What an attempt that is stopped needs before it can begin again, besides its turn: its model, if that leaves for another job's.

Decides which models would leave a slot, as binding decides it, and what loading one again comes to, as placing reckons loads: nothing where
the model stays beside the other, or is loaded elsewhere in a slot that is free; else staging, building, adapters and code, and a fetch if
its node has no file of it. Fails low where several are stopped that all count on one free slot elsewhere, or somebody else takes it; high
where a copy comes free before its turn. Must not know what pays.
"""

from __future__ import annotations

from atoll.model.replica import ReplicaState
from orchestrator.core.context import Context
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.eviction import leaving
from orchestrator.core.placement.rows import Dyn, Fix, Pres, Slots
from orchestrator.core.state import LiveAttempt, ReplicaKey, Slot

_ON_ITS_WAY = (ReplicaState.ABSENT, ReplicaState.LOADING)


class Reloads:
    """Of one look: for a replica that needs so many bytes of each slot that it gets. What was reckoned for one class of victims is kept."""

    __slots__ = ("_column", "_ctx", "_known", "_need_bytes", "_wanted")

    def __init__(self, ctx: Context, column: Column, wanted: ReplicaKey, need_bytes: int) -> None:
        self._ctx, self._column = ctx, column
        self._wanted, self._need_bytes = wanted, need_bytes
        self._known: dict[tuple[ClassKey, int], int] = {}

    def of_slot(self, slot: Slot, lives: list[LiveAttempt]) -> list[int]:
        """Microseconds for each attempt of a slot: of those that run on one replica, the first has it loaded again for all."""
        gone = self._leave(slot)
        found, told = [], set[ReplicaKey]()
        for live in lives:
            again = live.replica in gone and live.replica not in told
            told.add(live.replica)
            found.append(self._again_us(slot, live) if again else 0)
        return found

    def _leave(self, slot: Slot) -> set[ReplicaKey]:
        """The replicas that are loaded in a slot now and would leave it."""
        victims = self._ctx.columns.prices.victims(slot, self._column.pool, besides=self._wanted)
        held_bytes = sum(victim.memory_bytes for victim in victims)
        gone = {victim.model_id for victim in leaving(victims, held_bytes + self._need_bytes - slot.memory_bytes)}
        return {
            key
            for key, replica in slot.replicas.items()
            if key.model_id in gone and key != self._wanted and replica.state not in _ON_ITS_WAY
        }

    def _again_us(self, slot: Slot, live: LiveAttempt) -> int:
        model = self._ctx.state.models.get(live.model_id)
        if model is None:
            return 0
        key = self._ctx.class_of(live.spec)
        known = self._known.get((key, slot.node_index))
        if known is None:
            estimate = self._ctx.estimator.of(key, model)
            known = 0 if self._is_free_elsewhere(estimate) else self._load_us(slot, live, estimate)
            self._known[key, slot.node_index] = known
        return known

    def _load_us(self, slot: Slot, live: LiveAttempt, estimate: Estimate) -> int:
        """Back on this node: what a load there takes longer than a start on a resident replica."""
        index, pools = self._column.index, len(self._ctx.columns.columns)
        node, cold, ready = self._column.pool.nodes[slot.node_index], estimate.fix[pools + index], estimate.fix[index]
        us = int(cold[Fix.SERIAL] - ready[Fix.SERIAL])
        if live.model_id in node.host_models:
            return max(us - int(cold[Fix.SAVING]), 0)
        return max(us, 0) + (0 if live.model_id in node.disk_models else int(cold[Fix.FETCH]))

    def _is_free_elsewhere(self, estimate: Estimate) -> bool:
        """Whether a slot where its model is loaded is free for it, anywhere in the fleet."""
        columns = self._ctx.columns
        table = columns.where.presence(estimate.variant, columns.gangs, estimate.adapting).table
        pools = table[(table[:, Pres.READY] == Slots.FREE) | (table[:, Pres.BARE] == Slots.FREE), Pres.POOL]
        return bool(((estimate.fix[pools, Fix.FEASIBLE] != 0) & (columns.dyn[pools, Dyn.ACCEPTING] != 0)).any())
