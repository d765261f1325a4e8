"""A link that all transfers over it share equally: what each gets, and when each is done.

Decides by the amount of service since its beginning, so that a transfer that comes or goes costs one heap operation and no sweep over
the others. Time is an argument. Must not know what is transferred.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class FairLink:
    """`work` of a transfer is the time that it would take alone; n at once each take n times as long. `carried`: of all so far."""

    __slots__ = ("_at", "_flows", "_number", "_served", "carried")

    def __init__(self) -> None:
        self._flows: list[tuple[float, int, Callable[[], None]]] = []
        self._served = 0.0  # work that a flow present since the beginning would have got
        self.carried = 0.0
        self._at = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, now: float, work: float, done: Callable[[], None]) -> int:
        """Begin a transfer at `now`; its number."""
        self._advance(now)
        self._number += 1
        heapq.heappush(self._flows, (self._served + work, self._number, done))
        return self._number

    def left(self, now: float, number: int) -> float:
        """What is left of a transfer's work at `now`; 0 for one that is not there."""
        self._advance(now)
        return max((end - self._served for end, other, _ in self._flows if other == number), default=0.0)

    def take_out(self, now: float, number: int) -> float:
        """End a transfer before it is done; what was left of its work."""
        left = self.left(now, number)
        self._flows = [flow for flow in self._flows if flow[1] != number]
        heapq.heapify(self._flows)
        return max(left, 0.0)

    def next_end(self) -> float | None:
        """When the next transfer is done if none comes before; None: there is none."""
        if not self._flows:
            return None
        return self._at + max(self._flows[0][0] - self._served, 0.0) * len(self._flows)

    def take_done(self, now: float) -> list[Callable[[], None]]:
        """The transfers that are done by `now`, in order of their ends."""
        ended = []
        while (end := self.next_end()) is not None and end <= now:
            self._advance(end)
            ended.append(heapq.heappop(self._flows)[2])
        self._advance(now)
        return ended

    def _advance(self, now: float) -> None:
        if self._flows and now > self._at:
            self._served += (now - self._at) / len(self._flows)
            self.carried += now - self._at
        self._at = max(self._at, now)
