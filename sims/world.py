"""Virtual time: one heap of actions, one seeded stream of chance per noun, and a digest of all that happened.

Decides the order of what happens at the same instant (the order in which it was planned). Must not know what the actions do.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Final

MILLISECOND_US: Final = 1_000
SECOND_US: Final = 1_000_000

# A run has some ten thousand events. A machine that asks again and again for a deadline in the past would never let time go on.
_EVENTS_MAX: Final = 1_000_000
# What is kept for the person who reads a failure: a few seconds of a busy world.
_TAIL_LINES: Final = 200


class Timer:
    """A planned action; `cancel` makes it do nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Forget the action."""
        self.action = None


class World:
    """Virtual time in microseconds from 0. Everything that happens happens in `run`."""

    __slots__ = ("_digest", "_heap", "_planned", "_seed", "_streams", "events", "listener", "now_us", "tail")

    def __init__(self, seed: int) -> None:
        self.now_us = 0
        self.events = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.listener: Callable[[str], None] | None = None
        self._seed = seed
        self._planned = 0
        self._heap: list[tuple[int, int, Timer]] = []
        self._streams: dict[str, random.Random] = {}
        self._digest = hashlib.blake2b(digest_size=16)

    def stream(self, noun: str) -> random.Random:
        """The stream of chance of one noun: what one noun draws never changes what another does."""
        found = self._streams.get(noun)
        if found is None:
            found = self._streams[noun] = random.Random(f"{self._seed}/{noun}")
        return found

    def after(self, delay_us: int, action: Callable[[], None]) -> Timer:
        """Plan an action `delay_us` from now; a negative delay means now."""
        return self.at(self.now_us + delay_us, action)

    def at(self, at_us: int, action: Callable[[], None]) -> Timer:
        """Plan an action for an instant; one in the past happens now."""
        timer = Timer(action)
        self._planned += 1
        heapq.heappush(self._heap, (max(at_us, self.now_us), self._planned, timer))
        return timer

    def run(self, until_us: int) -> None:
        """Let everything happen that is planned up to and including `until_us`. RuntimeError when that never ends."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.now_us, _, timer = heapq.heappop(heap)
            action = timer.action
            if action is not None:
                timer.action = None
                self.events += 1
                if self.events > _EVENTS_MAX:
                    raise RuntimeError(f"{self.events} events by {self.now_us} us: somebody goes round in circles")
                action()
        self.now_us = max(self.now_us, until_us)

    def note(self, actor: str, text: str) -> None:
        """Write one line of history: part of the digest, and of what a failure shows."""
        line = f"{self.now_us} {actor} {text}"
        self._digest.update(line.encode())
        self._digest.update(b"\n")
        self.tail.append(line)
        if self.listener is not None:
            self.listener(line)

    def digest(self) -> str:
        """Digest of every line so far."""
        return self._digest.hexdigest()
