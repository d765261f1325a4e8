"""What several sources share of one fetch: parts of files, and files of which parts are there.

Decides when a part would be there at the rate it has come so far. Who brings which is `agents.parallel`'s business.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from agents.engine.manifest import ManifestFile
from agents.ranges import Range

# Stands where the number of a source does, for what an earlier try left.
EARLIER: Final = -1


@dataclass(slots=True)
class Part:
    """Bytes that one source brings. Those before `claimed` are written or being written, those from `end` on are no longer its own."""

    file: File
    start: int
    end: int
    claimed: int
    begun_s: float
    heard_s: float


@dataclass(slots=True)
class File:
    """One file: what of it is there, how far it has been read back, who gave how much of it (`EARLIER`: an earlier try)."""

    spec: ManifestFile
    descriptor: int
    there: list[Range]
    given: dict[int, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0
    verified: bool = False
    reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def first_gap(self) -> int:
        """The byte up to which it is there in order."""
        return self.there[0][1] if self.there and self.there[0][0] == 0 else 0


def left_s(part: Part, now_s: float) -> float:
    """Until a part would be there at the rate it has come so far."""
    rate = (part.claimed - part.start) / max(now_s - part.begun_s, 1e-3)
    return (part.end - part.claimed) / rate if rate > 0 else (now_s - part.begun_s) * 2
