"""The working set of one step: the state, the time, and what the step gathers.

Decides the order in which touched slots are looked at: that of touching, which replays.
"""

from __future__ import annotations

from agents.core.facts import Told
from agents.core.outputs import AgentCommand, AgentRecord, AgentStep
from agents.core.state import Node, Slot, State
from atoll.model.ids import NodeId, SlotRef


class Context:
    """Handlers read and change `state`, and append what has to take effect."""

    __slots__ = ("commands", "notices", "now_us", "records", "state", "told", "touched")

    def __init__(self, state: State) -> None:
        self.state = state
        self.told = Told(state)
        self.now_us = 0
        self.records: list[AgentRecord] = []
        self.commands: list[AgentCommand] = []
        self.notices: list[str] = []
        self.touched: dict[SlotRef, None] = {}

    def node(self, slot: SlotRef) -> Node:
        """The node of a slot that exists."""
        return self.state.nodes[slot.node_id]

    def touch(self, slot: Slot) -> None:
        """Something about the slot changed: look at it at the end of the step, and report its node."""
        self.touched[slot.ref] = None
        self.state.dirty[slot.ref.node_id] = None

    def touch_node(self, node_id: NodeId) -> None:
        """As `touch`, for every slot of a node."""
        for slot in self.state.nodes[node_id].slots:
            self.touch(slot)

    def report_soon(self) -> None:
        """A phase changed: report promptly, together with what else changes in the next moments."""
        state = self.state
        if state.connected and state.prompt_us < 0:
            state.prompt_us = max(self.now_us, state.reported_us + self._coalesce_us())

    def _coalesce_us(self) -> int:
        """100 ms of real time, longer where many attempts are listed in each report: reporting costs a bounded share of the work."""
        state = self.state
        real_us = 100_000 * (1 + len(state.works) // 64)
        return min(real_us * state.scale_milli // 1_000, state.interval_us)

    def take_step(self) -> AgentStep:
        """What was gathered; the next step begins empty."""
        step = AgentStep(records=tuple(self.records), commands=tuple(self.commands), notices=tuple(self.notices))
        self.records, self.commands, self.notices = [], [], []
        return step
