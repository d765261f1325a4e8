"""Virtual time for long runs: a heap of calls to come, and nothing that grows with the length of the run.

Decides the order of what happens at one instant: that in which it was asked for. Must not know what the calls do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Timer:
    """A call to come; `cancel` makes it do nothing."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Forget the call."""
        self.act = None


class Timeline:
    """Microseconds from 0. Everything happens in `run`."""

    __slots__ = ("_asked", "_heap", "calls", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0
        self.calls = 0  # that were made
        self.stopped = False
        self._asked = 0
        self._heap: list[tuple[int, int, Timer]] = []

    def now_us(self) -> int:
        """What time it is."""
        return self.now

    def after(self, delay_us: int, act: Callable[[], None]) -> Timer:
        """Call so much later; a delay below zero is none."""
        timer = Timer(act)
        self._asked += 1
        heapq.heappush(self._heap, (self.now + delay_us if delay_us > 0 else self.now, self._asked, timer))
        return timer

    def stop(self) -> None:
        """End `run` after the call that is being made."""
        self.stopped = True

    def run(self, until_us: int) -> None:
        """Make every call that is due up to and including `until_us`, until stopped."""
        heap, pop = self._heap, heapq.heappop
        self.stopped = False
        while heap and heap[0][0] <= until_us:
            self.now, _, timer = pop(heap)
            act = timer.act
            if act is not None:
                timer.act = None
                self.calls += 1
                act()
                if self.stopped:
                    return
        self.now = max(self.now, until_us)
