"""What a plant asks of its surroundings: what time it is, and to be called later.

Decides the form only. Fleet time is real time at some scale where a rehearsal runs, and a number that leaps where a simulation does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It does not come; nothing happens if it came already."""


class Timers(Protocol):
    """Fleet time in microseconds, which never steps back."""

    def now_us(self) -> int:
        """What time it is."""

    def after(self, delay_us: int, act: Callable[[], None]) -> Timer:
        """Call so much later; what is due at one instant is called in the order in which it was asked for. Nothing is called once the
        plant is closed."""
