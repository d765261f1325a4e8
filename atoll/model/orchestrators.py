"""Orchestrators: the one that leads a fleet, and those that stand by to take over.

Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.ids import Term


class OrchestratorRole(StrEnum):
    """What an orchestrator does at a moment."""

    LEADER = "leader"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What an orchestrator says of itself. `address`: where others reach it; "" where not known."""

    name: str = ""
    address: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorView:
    """An orchestrator as another one sees it, or itself.

    `term`: under which it leads, or during which it stands by. `since_ms`: in this role since then, by people's clocks, ms since 1970.
    `last_beat_ms`: how long ago it last showed a sign of life. `lag_ms`: for how long a standby's records have been behind the
    leader's (0: level); None: it is still loading them. `process` is for people.
    """

    name: str
    address: str
    role: OrchestratorRole
    term: Term
    since_ms: int
    last_beat_ms: int
    lag_ms: int | None
    process: str
    version: str
