"""A link that all transfers over it share: what each gets, and when each is done.

Decides by progressive filling: each gets an equal part, but one that its source holds back no more than that lets it have, and what it
leaves is the others'. Those that share equally are known by the amount of service since the link's beginning, so that one that comes or
goes costs one heap operation; only those that may be held back are looked at one by one. Time is an argument. Must not know what is
transferred.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Flow:
    """`share`: the most of the link that it can have. `end`: by the service of those that share equally; by the clock while it is held."""

    share: float
    done: Callable[[], None]
    end: float
    is_held: bool = False


class FairLink:
    """`work` of a transfer is the time that it would take alone; n at once that could each fill the link take n times as long.

    One that alone would fill but a `share` of it takes no longer than alone while its part is as large as that. `carried`: microseconds
    of the whole link, so far.
    """

    __slots__ = ("_at", "_flows", "_heap", "_narrow", "_number", "_room", "_served", "carried")

    def __init__(self) -> None:
        self._flows: dict[int, _Flow] = {}
        self._heap: list[tuple[float, int]] = []  # of those that share equally: their ends
        self._narrow: dict[int, _Flow] = {}  # of all, those that cannot fill the link
        self._room = 1.0  # what those that share equally have together
        self._served = 0.0  # service that one of those would have got that is present since the beginning
        self.carried = 0.0
        self._at = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, number: int) -> bool:
        return number in self._flows

    def add(self, now: float, work: float, done: Callable[[], None], *, share: float = 1.0) -> int:
        """Begin a transfer at `now`; its number."""
        self._advance(now)
        self._number += 1
        flow = self._flows[self._number] = _Flow(share=share, done=done, end=self._served + work * share)
        heapq.heappush(self._heap, (flow.end, self._number))
        if share < 1.0:
            self._narrow[self._number] = flow
        self._fill()
        return self._number

    def left(self, now: float, number: int) -> float:
        """What is left of a transfer's work at `now`; 0 for one that is not there."""
        self._advance(now)
        flow = self._flows.get(number)
        return 0.0 if flow is None else max(self._left(flow), 0.0)

    def take_out(self, now: float, number: int) -> float:
        """End a transfer before it is done; what was left of its work."""
        left = self.left(now, number)
        if self._flows.pop(number, None) is not None:
            self._narrow.pop(number, None)
            self._order()
            self._fill()
        return left

    def next_end(self) -> float | None:
        """When the next transfer is done if none comes before; None: there is none."""
        first = self._first()
        return None if first is None else first[0]

    def take_done(self, now: float) -> list[Callable[[], None]]:
        """The transfers that are done by `now`, in order of their ends."""
        ended = []
        while (first := self._first()) is not None and first[0] <= now:
            self._advance(first[0])
            flow = self._flows.pop(first[1])
            self._narrow.pop(first[1], None)
            if not flow.is_held:
                heapq.heappop(self._heap)
            self._fill()
            ended.append(flow.done)
        self._advance(now)
        return ended

    def _first(self) -> tuple[float, int] | None:
        """When the next transfer is done, and which."""
        ends = [(max(flow.end, self._at), number) for number, flow in self._narrow.items() if flow.is_held]
        if self._heap:
            end, number = self._heap[0]
            ends.append((self._at + max(end - self._served, 0.0) * len(self._heap) / self._room, number))
        return min(ends, default=None)

    def _left(self, flow: _Flow) -> float:
        return flow.end - self._at if flow.is_held else (flow.end - self._served) / flow.share

    def _fill(self) -> None:
        """Who is held back, from the narrowest on: whoever would get as much as it can have from an equal part of what is left."""
        if not self._narrow:
            self._room = 1.0
            return
        room, sharing, changed = 1.0, len(self._flows), False
        for flow in sorted(self._narrow.values(), key=lambda flow: flow.share):
            is_held = flow.share * sharing <= room
            if is_held:
                room, sharing = room - flow.share, sharing - 1
            if is_held is not flow.is_held:
                left = self._left(flow)
                flow.is_held, changed = is_held, True
                flow.end = self._at + left if is_held else self._served + left * flow.share
        self._room = room
        if changed:
            self._order()

    def _order(self) -> None:
        self._heap = [(flow.end, number) for number, flow in self._flows.items() if not flow.is_held]
        heapq.heapify(self._heap)

    def _advance(self, now: float) -> None:
        if self._flows and now > self._at:
            passed = now - self._at
            if self._heap:
                self._served += passed * self._room / len(self._heap)
                self.carried += passed
            else:
                self.carried += passed * (1.0 - self._room)
        self._at = max(self._at, now)
