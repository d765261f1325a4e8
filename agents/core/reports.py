"""Reports: numbered facts, all of them when a session opens, then what changed.

Decides when a report is due and of which nodes it tells. It is soft: each node is repeated every few reports, so that a lost one heals.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from agents.core.context import Context
from agents.core.facts import loads
from agents.core.outputs import SendReport
from agents.core.state import State
from atoll.model.ids import NodeId
from atoll.model.report import SiteReport

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
            _refresh(ctx)
        chosen = list(state.dirty)
    state.dirty = {}
    state.full_due, state.prompt_us, state.reported_us = False, -1, ctx.now_us
    progress = ctx.told.progress(state.works)
    rest = iter(chosen)
    part = list(islice(rest, NODES_PER_REPORT))
    while True:
        state.report_seq += 1
        report = SiteReport(
            seq=state.report_seq,
            full=full,
            generation=state.generation,
            nodes=tuple(ctx.told.node(state, state.nodes[node_id], ctx.now_us) for node_id in part),
            progress=progress,
            rates=state.rates,
        )
        ctx.commands.append(SendReport(report=report))
        part, full = list(islice(rest, NODES_PER_REPORT)), False
        if not part:
            return


def _refresh(ctx: Context) -> None:
    """Add the next few nodes of the round to those that changed, and those where something loads: how long it takes is being waited for."""
    state = ctx.state
    nodes: list[NodeId] = list(state.nodes)
    count = -(-len(nodes) // REFRESH_REPORTS)
    for offset in range(count):
        state.dirty[nodes[(state.refreshed + offset) % len(nodes)]] = None
    state.refreshed = (state.refreshed + count) % max(len(nodes), 1)
    # A load that nobody was told of yet is on a node that changed.
    if ctx.told.loading:
        state.dirty.update((node_id, None) for node_id in nodes if node_id in ctx.told.loading and loads(state.nodes[node_id]))
