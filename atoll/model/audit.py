"""The audit: who did what to the fleet, when and why; and what the fleet did by itself that a person should know.

Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from atoll.model.ids import ChangeSeq


class Severity(StrEnum):
    """How loud an event is."""

    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One line of the fleet's history. `verb` is past tense (`site_drained`); `seq` is dense and durable, watchers resume from it.

    `at_us` is fleet time, by which everything is decided. `written_ms` is for people and no part of what happened: milliseconds since
    1970 by the clock of the machine that keeps the store, when the line was written; 0: not known.
    """

    seq: ChangeSeq
    at_us: int
    severity: Severity
    actor: str  # a person, a credential's name, or "atoll"
    verb: str
    subject: str  # "site/aws-use1", "job/..."
    reason: str = ""
    detail: str = ""
    written_ms: int = field(default=0, compare=False)
