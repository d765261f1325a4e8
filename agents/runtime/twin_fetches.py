"""Fetches of a twin: over one way to the origin that all of them share, told to yield and continued, and how far each has come.

Decides when a simulated fetch is done. Where the bytes go is the twin's business; must not know why they are wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from agents.core.outputs import FetchAdapter, FetchWeights
from agents.runtime.fair_link import FairLink
from atoll.model.ids import AdapterId, ModelId, NodeId

# How often in real time it is told how far fetches have come.
_TELL_S: Final = 1.0

Fetch = FetchWeights | FetchAdapter
FetchKey = tuple[NodeId, ModelId | AdapterId, bool]  # whether it is of an adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One fetch under way. `work_s` is the real time that the whole of it takes alone, `left_s` what was left of that when it began."""

    number: int
    command: Fetch
    began_s: float
    work_s: float
    left_s: float


class TwinFetches:
    """The site's way to the origin. `done` hears of a flight that ended, `came` of bytes that have come. On the agent's event loop."""

    def __init__(self, *, done: Callable[[Flight], None], came: Callable[[FetchWeights, int], None]) -> None:
        self._done = done
        self._came = came
        self._link = FairLink()
        self._flights: dict[FetchKey, Flight] = {}
        self._paused: dict[FetchKey, float] = {}  # share of the whole that is left of a fetch that yielded
        self._link_timer: asyncio.TimerHandle | None = None
        self._tell_timer: asyncio.TimerHandle | None = None

    def begin(self, command: Fetch, work_s: float) -> None:
        """Begin a fetch that would take `work_s` alone, or go on with one that yielded."""
        key = _key(command)
        now_s = asyncio.get_running_loop().time()
        left_s = work_s * self._paused.pop(key, 1.0)
        number = self._link.add(now_s, left_s, partial(self._ended, key))
        self._flights[key] = Flight(number=number, command=command, began_s=now_s, work_s=work_s, left_s=left_s)
        self._arm()
        if self._tell_timer is None:
            self._tell_timer = asyncio.get_running_loop().call_later(_TELL_S, self._tell)

    def yields(self, node_id: NodeId, model_id: ModelId) -> bool:
        """Stop a fetch, to be continued. Whether it was under way."""
        flight = self._flights.pop((node_id, model_id, False), None)
        if flight is None:
            return False
        left_s = self._link.take_out(asyncio.get_running_loop().time(), flight.number)
        self._paused[(node_id, model_id, False)] = min(left_s / flight.work_s, 1.0) if flight.work_s > 0 else 0.0
        self._arm()
        return True

    def retime(self, node_id: NodeId, model_id: ModelId, work_s: float) -> None:
        """The whole of a fetch under way would take `work_s` alone as its sources are now: what is left of it takes its share of that."""
        key = (node_id, model_id, False)
        flight = self._flights.get(key)
        if flight is None:
            return
        now_s = asyncio.get_running_loop().time()
        left_s = self._link.take_out(now_s, flight.number)
        left_s = left_s / flight.work_s * work_s if flight.work_s > 0 else 0.0
        number = self._link.add(now_s, left_s, partial(self._ended, key))
        self._flights[key] = replace(flight, number=number, work_s=work_s)
        self._arm()

    def forget(self, node_id: NodeId, model_id: ModelId) -> None:
        """Nothing is kept of a fetch that yielded: its model was deleted."""
        self._paused.pop((node_id, model_id, False), None)

    def close(self) -> None:
        """Nothing ends any more."""
        for timer in (self._link_timer, self._tell_timer):
            if timer is not None:
                timer.cancel()
        self._flights.clear()

    def _ended(self, key: FetchKey) -> None:
        self._done(self._flights.pop(key))

    def _arm(self) -> None:
        if self._link_timer is not None:
            self._link_timer.cancel()
        end_s = self._link.next_end()
        self._link_timer = None if end_s is None else asyncio.get_running_loop().call_at(end_s, self._ring)

    def _ring(self) -> None:
        # The clock of a timer may be a moment behind the one that it was set for.
        now_s = max(asyncio.get_running_loop().time(), self._link.next_end() or 0.0)
        for done in self._link.take_done(now_s):
            done()
        self._arm()

    def _tell(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for flight in self._flights.values():
            if isinstance(flight.command, FetchAdapter):
                continue  # too small to be told how far it has come
            left = self._link.left(now_s, flight.number) / flight.work_s if flight.work_s > 0 else 0.0
            self._came(flight.command, round(flight.command.model.weights_bytes * max(1.0 - left, 0.0)))
        again = bool(self._flights)
        self._tell_timer = asyncio.get_running_loop().call_later(_TELL_S, self._tell) if again else None


def _key(command: Fetch) -> FetchKey:
    if isinstance(command, FetchAdapter):
        return (command.node_id, command.adapter.adapter_id, True)
    return (command.node_id, command.model.model_id, False)
