"""Reports: numbered facts, all of them when a session opens, then what changed.

Decides when a report is due and what it holds. A report is soft: each node is repeated every few reports, so that a lost one heals.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from agents.core import residency
from agents.core.context import Context
from agents.core.outputs import SendReport
from agents.core.state import Node, Slot, State
from atoll.model import limits
from atoll.model.ids import NodeId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import AttemptProgress, FetchFact, NodeFacts, SiteReport, SlotFacts

# Each node is told again at least every so many regular reports, changed or not.
REFRESH_REPORTS: Final = 5
# A node of eight slots with a hundred models on disk is some 4 KB: a message stays below gRPC's 4 MiB.
NODES_PER_REPORT: Final = 256


def due_us(state: State) -> int | None:
    """When the next report is due."""
    if not state.connected:
        return None
    regular_us = state.reported_us + state.interval_us
    return min(state.prompt_us, regular_us) if state.prompt_us >= 0 else regular_us


def flush(ctx: Context) -> None:
    """Report, if it is time."""
    state = ctx.state
    due = due_us(state)
    if due is None or not state.started or (ctx.now_us < due and not state.full_due):
        return
    full = state.full_due
    if full:
        chosen = list(state.nodes)
    else:
        if ctx.now_us >= state.reported_us + state.interval_us:
            _refresh(state)
        chosen = list(state.dirty)
    state.dirty = {}
    state.full_due, state.prompt_us, state.reported_us = False, -1, ctx.now_us
    progress = tuple(AttemptProgress(key=work.key, state=work.state, steps_done=work.steps_done) for work in state.works.values())
    rest = iter(chosen)
    part = list(islice(rest, NODES_PER_REPORT))
    while True:
        state.report_seq += 1
        report = SiteReport(
            seq=state.report_seq,
            full=full,
            generation=state.generation,
            nodes=tuple(node_facts(state, state.nodes[node_id], ctx.now_us) for node_id in part),
            progress=progress,
            rates=state.rates,
        )
        ctx.commands.append(SendReport(report=report))
        part, full = list(islice(rest, NODES_PER_REPORT)), False
        if not part:
            return


def _refresh(state: State) -> None:
    """Add the next few nodes of the round to those that changed, and those where something loads: how long it takes is being waited for."""
    nodes: list[NodeId] = list(state.nodes)
    count = -(-len(nodes) // REFRESH_REPORTS)
    for offset in range(count):
        state.dirty[nodes[(state.refreshed + offset) % len(nodes)]] = None
    state.refreshed = (state.refreshed + count) % max(len(nodes), 1)
    for slot in state.slots.values():
        if any(replica.state is ReplicaState.LOADING for replica in slot.replicas.values()):
            state.dirty[slot.ref.node_id] = None


def node_facts(state: State, node: Node, now_us: int) -> NodeFacts:
    """A node as it is known now."""
    return NodeFacts(
        pool_id=node.pool_id,
        node_id=node.node_id,
        host_free_bytes=node.host_free_bytes,
        disk_free_bytes=node.disk_free_bytes,
        host_models=tuple(node.host),
        disk_models=tuple(model_id for model_id in node.disk if model_id not in node.deleting),
        # A disk that holds more than a report may list has the rest as well, and nobody is drawn to it by that.
        disk_adapters=tuple(sorted(node.disk_adapters)[: limits.ADAPTERS_PER_NODE_MAX]),
        slots=tuple(_slot_facts(slot, now_us) for slot in node.slots),
        pinned=residency.pinned(node),
        fetching=tuple(_fetch_fact(state, node, model) for model in node.fetching.values()),
        host_tier=state.host_tier,
        compiled=tuple(sorted(node.compiled)),
        shares_compiled=state.shares_compiled,
    )


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
