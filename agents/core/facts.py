"""What reports say of nodes, slots and attempts.

Decides what is told of each. What is as it was last told is told as the same object: nothing is made anew of it here, and whoever compares
what comes with what came before sees at once that it says nothing new. Must not know when a report is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.core.state import Node, Replica, Slot, State, Work
from atoll.model import limits
from atoll.model.ids import AttemptKey, NodeId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import AttemptProgress, FetchFact, NodeFacts, SlotFacts


class Told:
    """What was told last, with what it was made of: of nodes and slots as values, so that nothing has to say that it changed."""

    __slots__ = ("_listed", "_nodes", "_slots", "_works", "loading")

    def __init__(self, state: State) -> None:
        self._nodes: dict[NodeId, tuple[tuple[Any, ...], NodeFacts]] = {}
        self._slots: dict[NodeId, list[tuple[tuple[bool, bool, int], list[Replica], SlotFacts] | None]] = {}
        self._works: list[Work] = []
        self._listed: tuple[AttemptProgress, ...] = ()
        # Nodes where something loads, for all that was told: how long it takes is another thing each time.
        self.loading: dict[NodeId, None] = {node.node_id: None for node in state.nodes.values() if loads(node)}

    def node(self, state: State, node: Node, now_us: int) -> NodeFacts:
        """A node as it is known now."""
        slots = self._of_slots(node, now_us)
        made_of = (
            slots,
            node.host_free_bytes,
            node.disk_free_bytes,
            list(node.host),
            list(node.disk),
            list(node.deleting),
            list(node.disk_adapters),
            list(node.desired.values()),
            node.compiled,
            state.host_tier,
            state.shares_compiled,
        )
        known = self._nodes.get(node.node_id)
        if known is not None and not node.fetching and not known[1].fetching and known[0] == made_of:
            return known[1]
        facts = NodeFacts(
            pool_id=node.pool_id,
            node_id=node.node_id,
            host_free_bytes=node.host_free_bytes,
            disk_free_bytes=node.disk_free_bytes,
            host_models=tuple(node.host),
            disk_models=tuple(model_id for model_id in node.disk if model_id not in node.deleting),
            # A disk that holds more than a report may list has the rest as well, and nobody is drawn to it by that.
            disk_adapters=tuple(sorted(node.disk_adapters)[: limits.ADAPTERS_PER_NODE_MAX]),
            slots=tuple(slots),
            pinned=node.pinned,
            fetching=tuple(_fetch_fact(state, node, model) for model in node.fetching.values()),
            host_tier=state.host_tier,
            compiled=tuple(sorted(node.compiled)),
            shares_compiled=state.shares_compiled,
        )
        self._nodes[node.node_id] = (made_of, facts)
        return facts

    def _of_slots(self, node: Node, now_us: int) -> list[SlotFacts]:
        known = self._slots.get(node.node_id)
        if known is None:
            known = self._slots[node.node_id] = [None] * len(node.slots)
        told: list[SlotFacts] = []
        loading = False
        for position, slot in enumerate(node.slots):
            held, was, stands = list(slot.replicas.values()), known[position], (slot.ready, slot.fresh, slot.measured_free_bytes)
            if was is not None and was[0] == stands and was[1] == held:
                told.append(was[2])
                continue
            facts = _slot_facts(slot, now_us)
            told.append(facts)
            if any(replica.state is ReplicaState.LOADING for replica in held):
                known[position], loading = None, True
            else:
                known[position] = (stands, held, facts)
        if loading:
            self.loading[node.node_id] = None
        else:
            self.loading.pop(node.node_id, None)
        return told

    def progress(self, works: Mapping[AttemptKey, Work]) -> tuple[AttemptProgress, ...]:
        """Where each attempt under way stands."""
        now = list(works.values())
        if now == self._works:
            return self._listed
        was, told = self._works, self._listed
        if len(now) != len(was):  # somebody came or went: all have another place
            by_key = {one.key: one for one in told}
            listed = tuple([_progress_of(work, by_key.get(work.key)) for work in now])
        else:
            listed = tuple([one if work is before else _progress_of(work, one) for work, before, one in zip(now, was, told, strict=True)])
        self._works = now
        if listed != told:
            self._listed = listed
        return self._listed


def _progress_of(work: Work, told: AttemptProgress | None) -> AttemptProgress:
    """Where an attempt stands; as it was told if that is still so."""
    if told is not None and told.key == work.key and told.state is work.state and told.steps_done == work.steps_done:
        return told
    return AttemptProgress(key=work.key, state=work.state, steps_done=work.steps_done)


def loads(node: Node) -> bool:
    """Whether a slot of the node loads something."""
    return any(replica.state is ReplicaState.LOADING for slot in node.slots for replica in slot.replicas.values())


def _fetch_fact(state: State, node: Node, model: ModelSpec) -> FetchFact:
    done = min(node.fetched_bytes.get(model.model_id, 0), model.weights_bytes)
    ahead = (node.node_id, model.model_id) in state.ahead
    return FetchFact(model_id=model.model_id, bytes_done=done, bytes_total=model.weights_bytes, ahead=ahead)


def _slot_facts(slot: Slot, now_us: int) -> SlotFacts:
    free = slot.measured_free_bytes if slot.measured_free_bytes >= 0 else max(slot.memory_bytes - slot.used_bytes, 0)
    return SlotFacts(
        index=slot.ref.index,
        memory_free_bytes=free,
        ready=slot.ready,
        fresh=slot.fresh,
        replicas=tuple(
            ReplicaFact(
                model_id=replica.model_id,
                state=replica.state,
                memory_bytes=replica.memory_bytes,
                gang_size=replica.gang_size,
                adapters=tuple(sorted(held.adapter_id for held in replica.adapters)),
                loading_us=max(now_us - replica.load_from_us, 0) if replica.state is ReplicaState.LOADING else 0,
            )
            for replica in slot.replicas.values()
        ),
    )
