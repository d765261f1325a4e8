"""The rates of a site's own reads, loads and fetches, as they are told to the orchestrator.

Decides how much one measurement counts. Loads and fetches have fast and slow modes (a cache near by, or not) up to eight times apart: the
last one alone says which mode it was in, and an estimate made from it would jump with every transfer. Must not know who measures.
"""

from __future__ import annotations

from typing import Final

from agents.core.events import RatesMeasured
from agents.runtime.base import Sink
from atoll.model.report import RateFacts

# One transfer counts an eighth, those before the rest: a changed link is followed within a dozen transfers.
_SHARE: Final = 8


class Rates:
    """Running means, told whenever one of the rates is measured anew. Bytes per second; 0: not yet."""

    def __init__(self, tell: Sink) -> None:
        self._tell = tell
        self._facts = RateFacts()

    def measured(self, *, disk: int | None = None, h2d: int | None = None, origin: int | None = None) -> None:
        """None: this one was not measured now."""
        if not disk and not h2d and not origin:
            return
        old = self._facts
        self._facts = RateFacts(
            disk_bytes_per_s=_blended(old.disk_bytes_per_s, disk),
            h2d_bytes_per_s=_blended(old.h2d_bytes_per_s, h2d),
            origin_bytes_per_s=_blended(old.origin_bytes_per_s, origin),
        )
        self._tell(RatesMeasured(rates=self._facts))


def _blended(old: int, new: int | None) -> int:
    """The mean is of seconds per byte: what is predicted from it is seconds."""
    if not new or not old:
        return new or old
    return max(_SHARE * old * new // ((_SHARE - 1) * new + old), 1)
