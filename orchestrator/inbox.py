"""The inbox of the single writer: bounded lanes, taken from in turn.

Decides who waits and who is turned away when more comes in than is handled. Agents' reports, operators and submits each have a
lane, so that a flood of submits delays nobody else. Must not know what an event means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum
from typing import Final

from orchestrator.core.events import Event


class Lane(IntEnum):
    """Who an event comes from."""

    SITES = 0
    OPERATORS = 1
    SUBMITS = 2


# Events that may wait per lane. An agent reports about once a second: 10,000 sites fit. Submits are bounded in jobs by the driver.
LANE_EVENTS_MAX: Final = {Lane.SITES: 10_000, Lane.OPERATORS: 1_000, Lane.SUBMITS: 20_000}
# Half of the turns go to the sites: their results free the slots that everything else waits for.
_TURNS: Final = (Lane.SITES, Lane.OPERATORS, Lane.SITES, Lane.SUBMITS)


class Inbox:
    """Events waiting to be handled."""

    __slots__ = ("_lanes", "_room", "_turn", "arrived")

    def __init__(self) -> None:
        self._lanes: dict[Lane, deque[Event]] = {lane: deque() for lane in Lane}
        self._room: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._turn = 0
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def depth(self, lane: Lane) -> int:
        """How many events of this lane wait."""
        return len(self._lanes[lane])

    def offer(self, lane: Lane, event: Event) -> bool:
        """Queue an event; False when its lane is full."""
        events = self._lanes[lane]
        if len(events) >= LANE_EVENTS_MAX[lane]:
            return False
        events.append(event)
        self.arrived.set()
        return True

    async def put(self, lane: Lane, event: Event) -> None:
        """Queue an event, waiting for room."""
        while not self.offer(lane, event):
            room = asyncio.get_running_loop().create_future()
            self._room[lane].append(room)
            try:
                await room
            except asyncio.CancelledError:
                if room.done() and not room.cancelled():
                    self._wake_one(lane)  # its turn was meant for someone who is gone
                raise

    def take(self) -> Event | None:
        """The next event, lanes in turn; None when all are empty."""
        for _ in _TURNS:
            lane = _TURNS[self._turn]
            self._turn = (self._turn + 1) % len(_TURNS)
            if self._lanes[lane]:
                self._wake_one(lane)
                return self._lanes[lane].popleft()
        return None

    def clear(self) -> None:
        """Forget everything that waits."""
        for lane, events in self._lanes.items():
            for _ in range(len(events)):
                self._wake_one(lane)
            events.clear()

    def _wake_one(self, lane: Lane) -> None:
        rooms = self._room[lane]
        while rooms:
            room = rooms.popleft()
            if not room.done():
                room.set_result(None)
                return
