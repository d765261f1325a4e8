"""Whether this orchestrator leads, and what is said to those who call it while it does not.

Decides which methods are answered by one that stands by, and where its callers are sent. Must not know stores, nor gRPC.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from atoll.model.ids import Term
from atoll.model.orchestrators import Introduction, OrchestratorRole, OrchestratorView
from orchestrator.refusals import OUT_OF_TOUCH, NotLeadingError

# Answered by anyone who was asked: it is what one asks when nothing else is answered.
_ANSWERED: Final = frozenset({"/atoll.v1.OperatorService/ListOrchestrators"})
# The leader is elsewhere, now.
_ELSEWHERE_MS: Final = 50
# A takeover takes about a second.
_SOON_MS: Final = 200
# Beats come each fifth of a second; of one that is late by so much it is not said any more that it leads.
_SILENT_MS: Final = 700


class Standing:
    """The role of this process: it stands by until it leads."""

    def __init__(self) -> None:
        self._me = Introduction()
        self._known: Callable[[], Sequence[OrchestratorView]] = tuple
        self._term: Callable[[], Term] = lambda: Term(0)
        self._since_ms = 0
        self.leading = False
        # Another may lead by now, of which this one could not hear.
        self.doubtful = False

    def introduce(self, me: Introduction, known: Callable[[], Sequence[OrchestratorView]], term: Callable[[], Term]) -> None:
        """`known`: who leads and who stands by, as the store has it; (): nobody else can. `term`: its own."""
        self._me, self._known, self._term = me, known, term

    def lead(self, since_ms: int) -> None:
        """Calls are answered from now on. `since_ms`: what people's clocks say."""
        self.leading, self._since_ms = True, since_ms

    def check(self, method: str) -> None:
        """Raises NotLeadingError if a method ("/package.Service/Method") is answered by the leader only, and this is another."""
        if method in _ANSWERED or (self.leading and not self.doubtful):
            return
        if self.doubtful:
            raise NotLeadingError(OUT_OF_TOUCH.message, "", OUT_OF_TOUCH.retry_after_ms)
        leader = next((view for view in self._known() if view.role is OrchestratorRole.LEADER), None)
        if leader is None or leader.last_beat_ms > _SILENT_MS:
            raise NotLeadingError("this orchestrator stands by, and nobody leads at this moment: ask again", "", _SOON_MS)
        where = f"{leader.name} leads at {leader.address}" if leader.address else f"{leader.process} leads"
        raise NotLeadingError(f"this orchestrator stands by: {where}", leader.address, _ELSEWHERE_MS)

    def views(self) -> Sequence[OrchestratorView]:
        """Who leads, first, and who stands by."""
        return self._known() or (
            OrchestratorView(
                name=self._me.name,
                address=self._me.address,
                role=OrchestratorRole.LEADER,
                term=self._term(),
                since_ms=self._since_ms,
                last_beat_ms=0,
                lag_ms=0,
                process=f"pid {os.getpid()} on {socket.gethostname()}",
                version=self._me.version,
            ),
        )
