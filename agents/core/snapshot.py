"""The whole of a machine as one value, and back.

Decides how deep a copy must go: attempts, replicas and events are frozen and shared, everything that holds them is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from agents.core.context import Context
from agents.core.state import Node, Slot, State

H = TypeVar("H", Slot, Node, State)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSnapshot:
    """A machine at an instant. Owns its copy of the state; equal snapshots go on equally."""

    now_us: int
    state: State


def take(ctx: Context) -> AgentSnapshot:
    """A copy of everything, between two steps."""
    return AgentSnapshot(now_us=ctx.now_us, state=_copy_state(ctx.state))


def from_snapshot(snapshot: AgentSnapshot) -> Context:
    """A working set that goes on from a snapshot, which stays as it is."""
    ctx = Context(_copy_state(snapshot.state))
    ctx.now_us = snapshot.now_us
    return ctx


def _copy_state(state: State) -> State:
    copied = _copy_containers(state)
    copied.nodes = {node_id: _copy_node(node) for node_id, node in state.nodes.items()}
    copied.slots = {slot.ref: slot for node in copied.nodes.values() for slot in node.slots}
    return copied


def _copy_node(node: Node) -> Node:
    copied = _copy_containers(node)
    copied.slots = [_copy_containers(slot) for slot in node.slots]
    return copied


def _copy_containers(held: H) -> H:
    """`held` with every dictionary and list of its own."""
    changes: dict[str, Any] = {}
    for field in fields(held):
        value = getattr(held, field.name)
        if isinstance(value, dict | list):
            changes[field.name] = value.copy()
    return replace(held, **changes)
