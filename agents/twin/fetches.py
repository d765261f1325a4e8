"""Fetches of a twin: over one way to its site that all of them share, told to yield and continued, and how far each has come.

Decides when a simulated fetch is done. Where the bytes go is the twin's business; must not know why they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from agents.core.outputs import FetchAdapter, FetchWeights
from agents.twin.fair_link import FairLink
from agents.twin.timers import Timer, Timers
from atoll.model.ids import AdapterId, ModelId, NodeId

Fetch = FetchWeights | FetchAdapter
FetchKey = tuple[NodeId, ModelId | AdapterId, bool]  # whether it is of an adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One fetch under way. `work_us` is what the whole of it takes alone, `from_us` what was left of that when it came onto the link.
    `share`: the most of the link that it can have."""

    number: int
    command: Fetch
    began_us: int
    work_us: int
    from_us: float
    share: float


class TwinFetches:
    """The way to the site. `done` hears of a flight that ended, `came` of bytes that have come, once in each pace."""

    def __init__(
        self, timers: Timers, pace_us: Callable[[], int], *, done: Callable[[Flight], None], came: Callable[[FetchWeights, int], None]
    ) -> None:
        self._timers = timers
        self._pace_us = pace_us
        self._done = done
        self._came = came
        self._link = FairLink()
        self._flights: dict[FetchKey, Flight] = {}
        self._paused: dict[FetchKey, float] = {}  # share of the whole that is left of a fetch that yielded
        self._booked_us = 0.0  # work of what has ended, yielded or changed its pace
        self._link_timer: Timer | None = None
        self._tell_timer: Timer | None = None

    def begin(self, command: Fetch, work_us: int, share: float = 1.0) -> None:
        """Begin a fetch that would take `work_us` alone, with this share of the way, or go on with one that yielded."""
        key = _key(command)
        now_us = self._timers.now_us()
        left_us = work_us * self._paused.pop(key, 1.0)
        number = self._link.add(now_us, left_us, partial(self._ended, key), share=share)
        self._flights[key] = Flight(number=number, command=command, began_us=now_us, work_us=work_us, from_us=left_us, share=share)
        self._arm()
        if self._tell_timer is None:
            self._tell_timer = self._timers.after(self._pace_us(), self._tell)

    def yields(self, node_id: NodeId, model_id: ModelId) -> bool:
        """Stop a fetch, to be continued. Whether it was under way."""
        flight = self._flights.pop((node_id, model_id, False), None)
        if flight is None:
            return False
        left_us = self._link.take_out(self._timers.now_us(), flight.number)
        self._booked_us += (flight.from_us - left_us) * flight.share
        self._paused[(node_id, model_id, False)] = min(left_us / flight.work_us, 1.0) if flight.work_us > 0 else 0.0
        self._arm()
        return True

    def retime(self, node_id: NodeId, model_id: ModelId, work_us: int, share: float) -> None:
        """The whole of a fetch under way would take `work_us` alone, with this share of the way, as its sources are now: what is left of it
        takes as much less as has come."""
        key = (node_id, model_id, False)
        flight = self._flights.get(key)
        if flight is None or flight.number not in self._link:
            return  # its last byte came in the same moment as that of the fetch with which it shared a source
        now_us = self._timers.now_us()
        left_us = self._link.take_out(now_us, flight.number)
        self._booked_us += (flight.from_us - left_us) * flight.share
        left_us = left_us / flight.work_us * work_us if flight.work_us > 0 else 0.0
        number = self._link.add(now_us, left_us, partial(self._ended, key), share=share)
        self._flights[key] = replace(flight, number=number, work_us=work_us, from_us=left_us, share=share)
        self._arm()

    def left(self, node_id: NodeId, model_id: ModelId) -> float:
        """The share that is left of a fetch that yielded; of any other all."""
        return self._paused.get((node_id, model_id, False), 1.0)

    def books(self) -> tuple[float, float]:
        """Microseconds of the whole link that it has carried, and that have come of fetches: the same, or bytes were lost or made."""
        now_us = self._timers.now_us()
        under_way_us = sum((flight.from_us - self._link.left(now_us, flight.number)) * flight.share for flight in self._flights.values())
        return self._link.carried, self._booked_us + under_way_us

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
        flight = self._flights.pop(key)
        self._booked_us += flight.from_us * flight.share
        self._done(flight)

    def _arm(self) -> None:
        if self._link_timer is not None:
            self._link_timer.cancel()
        end_us = self._link.next_end()
        self._link_timer = None if end_us is None else self._timers.after(ceil(end_us) - self._timers.now_us(), self._ring)

    def _ring(self) -> None:
        # The clock of a timer may be a moment behind the one that it was set for.
        now_us = max(self._timers.now_us(), self._link.next_end() or 0.0)
        for done in self._link.take_done(now_us):
            done()
        self._arm()

    def _tell(self) -> None:
        now_us = self._timers.now_us()
        for flight in self._flights.values():
            if isinstance(flight.command, FetchAdapter):
                continue  # too small to be told how far it has come
            left = self._link.left(now_us, flight.number) / flight.work_us if flight.work_us > 0 else 0.0
            self._came(flight.command, round(flight.command.model.weights_bytes * max(1.0 - left, 0.0)))
        again = bool(self._flights)
        self._tell_timer = self._timers.after(self._pace_us(), self._tell) if again else None


def _key(command: Fetch) -> FetchKey:
    if isinstance(command, FetchAdapter):
        return (command.node_id, command.adapter.adapter_id, True)
    return (command.node_id, command.model.model_id, False)
