"""The network between sites and orchestrators: streams with latency, loss, repetition, reordering, partitions and half-open ends.

Decides when a message arrives, if it does, and when an end learns that its stream is gone. Must not know what messages mean.
Streams of the live system keep order and lose nothing but their tail; the faults `drop`, `duplicate` and `reorder` go beyond that
on purpose: the machines promise to need no more than generations, sequence numbers and resync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from atoll.model.assignment import Assignment
from atoll.model.ids import Generation, SiteId
from atoll.model.report import AttemptEvent, SiteHello, SiteReport, Welcome
from sims.faults import Fault, Faults
from sims.world import MILLISECOND_US, SECOND_US, World

_LATENCY_US: Final = (2 * MILLISECOND_US, 80 * MILLISECOND_US)
_FAULT_DELAY_US: Final = (200 * MILLISECOND_US, 4 * SECOND_US)
# A live stream notices a dead peer by pings: 2-7 s. A half-open one does not, for much longer.
_KEEPALIVE_US: Final = (2 * SECOND_US, 7 * SECOND_US)
_HALF_OPEN_US: Final = (20 * SECOND_US, 70 * SECOND_US)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events of an agent's outbox on their way up."""

    events: tuple[AttemptEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """A request for a snapshot on its way up."""

    generation: Generation


Up = SiteHello | SiteReport | Events | Resync
Down = Welcome | Assignment


class Side(StrEnum):
    """Which way a message goes."""

    UP = "up"
    DOWN = "down"


class StreamEnd(Protocol):
    """Who holds one end of a stream."""

    def receive(self, stream: Stream, message: Up | Down) -> None:
        """A message arrived."""

    def stream_closed(self, stream: Stream) -> None:
        """This end learned that the stream is gone."""


class Stream:
    """One stream of one agent to one orchestrator. Each end learns of its death at its own time."""

    __slots__ = ("_ends", "_last_us", "_link", "_open", "number")

    def __init__(self, link: Link, number: int, agent: StreamEnd, orchestrator: StreamEnd) -> None:
        self.number = number
        self._link = link
        # The side on which a message arrives: `up` at the orchestrator, `down` at the agent.
        self._ends: dict[Side, StreamEnd] = {Side.UP: orchestrator, Side.DOWN: agent}
        self._open = {Side.UP: True, Side.DOWN: True}
        self._last_us = {Side.UP: 0, Side.DOWN: 0}

    def send(self, side: Side, message: Up | Down) -> None:
        """Send; nothing tells whether it arrives."""
        origin = Side.DOWN if side is Side.UP else Side.UP
        if self._open[origin]:
            self._link.carry(self, side, message)

    def arrival_us(self, side: Side, planned_us: int, *, in_order: bool) -> int:
        """When a message that would take until `planned_us` arrives, given those before it."""
        if not in_order:
            return planned_us
        self._last_us[side] = max(self._last_us[side], planned_us)
        return self._last_us[side]

    def arrive(self, side: Side, message: Up | Down) -> None:
        """Hand a message over, if that end still listens."""
        if self._open[side]:
            self._ends[side].receive(self, message)

    def open_at(self, side: Side) -> bool:
        """Whether the end at which `side` arrives believes in the stream."""
        return self._open[side]

    def lose(self, side: Side) -> None:
        """One end learns that the stream is gone."""
        if self._open[side]:
            self._open[side] = False
            self._ends[side].stream_closed(self)

    def close(self, side: Side, *, silently: bool = False) -> None:
        """One end lets go (and is not told of it); the other learns later. `silently`: as when power is cut, only pings tell it."""
        if self._open[side]:
            self._open[side] = False
            self._link.other_end_learns(self, Side.DOWN if side is Side.UP else Side.UP, silently=silently)

    @property
    def dead(self) -> bool:
        """Whether both ends know it is gone."""
        return not self._open[Side.UP] and not self._open[Side.DOWN]


class Link:
    """The path between one site and the orchestrators. `blocked` ways hold messages back, as a partition does to a stream."""

    __slots__ = ("_faults", "_held", "_random", "_world", "blocked", "site_id", "streams")

    def __init__(self, world: World, faults: Faults, site_id: SiteId) -> None:
        self.site_id = site_id
        self.streams: list[Stream] = []
        self.blocked = {Side.UP: False, Side.DOWN: False}
        self._world = world
        self._faults = faults
        self._random = world.stream(f"network/{site_id}")
        self._held: list[tuple[Stream, Side, Up | Down]] = []

    def latency_us(self) -> int:
        """One way, drawn anew."""
        return self._random.randint(*_LATENCY_US)

    @property
    def cut(self) -> bool:
        """Whether no stream can work: TCP needs both ways."""
        return self.blocked[Side.UP] or self.blocked[Side.DOWN]

    def open(self, number: int, agent: StreamEnd, orchestrator: StreamEnd) -> Stream:
        """A new stream."""
        self.streams = [stream for stream in self.streams if not stream.dead]
        stream = Stream(self, number, agent, orchestrator)
        self.streams.append(stream)
        if self.cut:
            self._watch(stream)
        return stream

    def carry(self, stream: Stream, side: Side, message: Up | Down) -> None:
        """Take a message on its way, with whatever faults strike it."""
        if self._faults.strikes(Fault.DROP):
            self._world.note(self.site_id, f"dropped {side} {brief(message)}")
            return
        delay_us = self.latency_us()
        if self._faults.strikes(Fault.DELAY):
            delay_us += self._random.randint(*_FAULT_DELAY_US)
        in_order = not self._faults.strikes(Fault.REORDER)
        if not in_order:
            delay_us += self._random.randint(0, SECOND_US)
        self._plan(stream, side, message, stream.arrival_us(side, self._world.now_us + delay_us, in_order=in_order))
        if self._faults.strikes(Fault.DUPLICATE):
            again_us = self._world.now_us + delay_us + self._random.randint(0, 5 * SECOND_US)
            self._plan(stream, side, message, again_us)

    def _plan(self, stream: Stream, side: Side, message: Up | Down, at_us: int) -> None:
        def arrive() -> None:
            if self.blocked[side]:
                self._held.append((stream, side, message))
            else:
                stream.arrive(side, message)

        self._world.at(at_us, arrive)

    def block(self, *sides: Side) -> None:
        """Cut one way or both."""
        for side in sides:
            self.blocked[side] = True
        for stream in self.streams:
            self._watch(stream)

    def unblock(self) -> None:
        """Both ways work again: what was held arrives, and ends learn of streams that died meanwhile."""
        self.blocked = {Side.UP: False, Side.DOWN: False}
        held, self._held = self._held, []
        for stream, side, message in held:
            stream.arrive(side, message)
        for stream in self.streams:
            for side in Side:
                other = Side.DOWN if side is Side.UP else Side.UP
                if stream.open_at(side) and not stream.open_at(other):
                    self.other_end_learns(stream, side, silently=False)

    def other_end_learns(self, stream: Stream, side: Side, *, silently: bool) -> None:
        """Plan the moment at which an end learns that the other one let go."""
        if self.cut:
            return  # its pings tell it, see `_watch`
        delay_us = self._ping_us() if silently else self.latency_us()
        self._world.after(delay_us, lambda: None if self.cut else stream.lose(side))

    def break_streams(self) -> None:
        """Every stream of this link is reset; both ends learn of it soon, in any order."""
        for stream in self.streams:
            for side in Side:
                self._world.after(self.latency_us(), _losing(stream, side))

    def _watch(self, stream: Stream) -> None:
        """Each end of a stream on a cut link gives up by itself once its pings stay unanswered."""
        for side in Side:
            self._world.after(self._ping_us(), lambda side=side: stream.lose(side) if self.cut else None)  # type: ignore[misc]

    def _ping_us(self) -> int:
        half_open = self._faults.strikes(Fault.HALF_OPEN)
        return self._random.randint(*(_HALF_OPEN_US if half_open else _KEEPALIVE_US))


def _losing(stream: Stream, side: Side) -> Callable[[], None]:
    return lambda: stream.lose(side)


def brief(message: Up | Down) -> str:
    """A message in few words, for the history."""
    match message:
        case SiteHello():
            return f"hello term={message.term} next={message.next_event_seq} boot={message.boot_id}"
        case SiteReport():
            live = ",".join(f"{item.key}:{item.state}:{item.steps_done}" for item in message.progress)
            return f"report {message.seq}{' full' if message.full else ''} gen={message.generation} [{live}]"
        case Events():
            return "events " + " ".join(f"{event.seq}:{event.key}:{event.state}" for event in message.events)
        case Resync():
            return f"resync gen={message.generation}"
        case Welcome():
            return f"welcome term={message.term}"
        case Assignment():
            parts = [f"{item.key}@{item.slot.node_id}.{item.slot.index}{':stop' if item.stop else ''}" for item in message.attempts]
            removed = [str(key) for key in message.removed]
            return (
                f"assignment term={message.term} {message.base_generation}->{message.generation} [{' '.join(parts)}] "
                f"removed=[{' '.join(removed)}] acked={message.acked_event_seq}{' shrink' if message.confirm_shrink else ''}"
            )
