"""The one interface between an agent's driver and what executes.

Decides which commands a runtime performs and how it answers: through the sink, with events of `agents.core.events`, never by raising.
A runtime knows nothing of the orchestrator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agents.core.commands import RuntimeCommand
from agents.core.events import AgentEvent, RuntimeStarted
from atoll.model.ids import AttemptKey
from atoll.model.report import Welcome
from atoll.model.site import PoolSpec, SiteRuntime

Sink = Callable[[AgentEvent], None]


class Runtime(Protocol):
    """Executes commands at a site. All methods are called on the agent's event loop; the sink too."""

    kind: SiteRuntime

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """What the site has; fixed once `start` returned."""

    async def start(self, sink: Sink) -> RuntimeStarted:
        """Bring up or find again the slots' processes. Raises AtollError with a clear message when that is impossible."""

    def welcome(self, welcome: Welcome) -> None:
        """The orchestrator told its time scale and stores. Raises AtollError if this runtime cannot work so: real ones refuse a
        scale other than 1."""

    def perform(self, command: RuntimeCommand) -> None:
        """Begin a command and return at once; the outcome comes through the sink."""

    async def logs(self, key: AttemptKey, lines: int) -> tuple[str, ...]:
        """The last lines of an attempt's log; empty when nothing is known of it."""

    async def close(self, *, keep_work: bool) -> None:
        """Let go. `keep_work`: what executes goes on and a later start finds it again; else everything ends here."""
