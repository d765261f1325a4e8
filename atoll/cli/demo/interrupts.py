"""Ctrl-C and its kin: the first one ends what goes on, wherever it is; later ones only hurry the tidying up.

Decides when a signal may raise. Once tidying has begun nothing raises any more, so that it is never cut short half-way.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Takes the signals over while it is entered. For the main thread."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._tidying = False
        self._hurry = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self._tidying:
            self._hurry = True
            return
        self.first = self.first or signal.Signals(number)
        raise KeyboardInterrupt

    def check(self) -> None:
        """KeyboardInterrupt when a signal came and its exception was swallowed on the way (a callback, a destructor)."""
        if self.first is not None and not self._tidying:
            raise KeyboardInterrupt

    def begin_tidying(self) -> None:
        """From now on signals only hurry."""
        self._tidying = True

    def hurry(self) -> bool:
        """Whether a signal came while tidying."""
        return self._hurry

    @property
    def exit_code(self) -> int:
        """128 and the signal, as shells have it; 0 if none came."""
        return 128 + self.first if self.first is not None else 0
