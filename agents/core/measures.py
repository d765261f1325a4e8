"""What probes and runtimes find: free memory and disk, rates, compiled code.

Decides when a measurement is news. Must not know how it was made.
"""

from __future__ import annotations

from typing import Final

from agents.core.context import Context
from agents.core.events import CodeChanged, NodeMeasured, RatesMeasured
from atoll.model import limits

# Free memory of a host moves all the time; less than this decides no placement.
_NEWS_BYTES: Final = 64 * 1024 * 1024


def measured(ctx: Context, event: NodeMeasured) -> None:
    """The probes measured a node."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        ctx.notices.append(f"unknown node {event.node_id} was measured")
        return
    moved = [node.host_free_bytes - event.host_free_bytes, node.disk_free_bytes - event.disk_free_bytes]
    node.host_free_bytes, node.disk_free_bytes = event.host_free_bytes, event.disk_free_bytes
    for slot in node.slots:
        if slot.ref.index < len(event.gpu_free_bytes):
            free = event.gpu_free_bytes[slot.ref.index]
            moved.append(slot.measured_free_bytes - free)
            slot.measured_free_bytes = free
    if node.node_id in ctx.state.pending:
        ctx.touch_node(node.node_id)  # a copy that waits for room may have it now
    if any(abs(by) >= _NEWS_BYTES for by in moved):
        ctx.state.dirty[node.node_id] = None


def code_changed(ctx: Context, event: CodeChanged) -> None:
    """The runtime compiled something, took code over or dropped some."""
    node = ctx.state.nodes.get(event.node_id)
    if node is None:
        ctx.notices.append(f"unknown node {event.node_id} holds code")
        return
    if node.compiled != event.forms[: limits.FORMS_PER_NODE_MAX]:
        node.compiled = event.forms[: limits.FORMS_PER_NODE_MAX]
        ctx.state.dirty[node.node_id] = None
        ctx.report_soon()  # the next job of the form may be placed this second


def rates_measured(ctx: Context, event: RatesMeasured) -> None:
    """The runtime measured rates."""
    ctx.state.rates = event.rates
