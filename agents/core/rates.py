"""The rates of a site's own reads, loads and fetches, as they are told to the orchestrator.

Decides how much one measurement counts: the n-th of its kind one n-th, down to a 64th. Loads and fetches have fast and slow modes (a cache
near by, or not) up to eight times apart: the last one alone says which mode it was in, and an estimate made from it would jump with every
transfer. The orchestrator corrects what it predicts by these rates, so they need not be quick: whatever moves them moves its corrections a
second time. Must not know who measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agents.core.events import AgentEvent, RatesMeasured
from atoll.model.report import RateFacts

# With modes eight times apart the mean of the last sixty-four is off by 5 %, of the last eight by 15. A link that has changed is followed
# by the orchestrator's corrections meanwhile, within a dozen fetches.
_COUNTED_MAX: Final = 64


class Rates:
    """Running means, told whenever one of the rates is measured anew. Bytes per second; 0: not yet."""

    def __init__(self, tell: Callable[[AgentEvent], None]) -> None:
        self._tell = tell
        self._disk, self._h2d, self._origin = _Mean(), _Mean(), _Mean()

    def measured(self, *, disk: int | None = None, h2d: int | None = None, origin: int | None = None) -> None:
        """None: this one was not measured now."""
        if not disk and not h2d and not origin:
            return
        facts = RateFacts(
            disk_bytes_per_s=self._disk.with_one_more(disk),
            h2d_bytes_per_s=self._h2d.with_one_more(h2d),
            origin_bytes_per_s=self._origin.with_one_more(origin),
            disk_transfers=self._disk.transfers,
            h2d_transfers=self._h2d.transfers,
            origin_transfers=self._origin.transfers,
        )
        self._tell(RatesMeasured(rates=facts))


@dataclass(slots=True)
class _Mean:
    """The mean is of seconds per byte: what is predicted from it is seconds. `transfers`: all that there were, of which the last count."""

    bytes_per_s: int = 0
    counted: int = 0
    transfers: int = 0

    def with_one_more(self, rate: int | None) -> int:
        if rate:
            self.transfers += 1
            self.counted = min(self.transfers, _COUNTED_MAX)
            old = self.bytes_per_s or rate
            self.bytes_per_s = max(self.counted * old * rate // ((self.counted - 1) * rate + old), 1)
        return self.bytes_per_s
