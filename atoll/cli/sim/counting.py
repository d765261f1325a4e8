"""How far a long reading or writing is: a line on a terminal that is written over, and nothing in a log.

Decides how often it is drawn; knows nothing of what is counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

_EVERY_S: Final = 0.2
# Looking at the clock for each of a million rows would take longer than drawing.
_LOOK_EVERY: Final = 2_000


def counted(items: Iterable[T], done: str, expected: int | None = None, *, kind: str = "jobs") -> Iterator[T]:
    """The same items. `done`: what has happened to those counted; `expected`: about how many there are; `kind`: of what."""
    if not sys.stderr.isatty():
        yield from items
        return
    drawn_s = time.monotonic()
    of_all = f" of about {expected:,}" if expected else ""
    try:
        for number, item in enumerate(items, start=1):
            yield item
            if number % _LOOK_EVERY == 0 and time.monotonic() - drawn_s >= _EVERY_S:
                drawn_s = time.monotonic()
                sys.stderr.write(f"\r{number:,}{of_all} {kind} {done}\033[K")
                sys.stderr.flush()
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


@contextmanager
def told(done: str, expected: int | None = None, *, kind: str = "jobs") -> Iterator[Callable[[int], None]]:
    """As `counted`, of what somebody else counts: call with how many there are so far."""
    drawn_s = time.monotonic()
    of_all = f" of {expected:,}" if expected else ""
    is_seen = sys.stderr.isatty()

    def heard(number: int) -> None:
        nonlocal drawn_s
        if is_seen and time.monotonic() - drawn_s >= _EVERY_S:
            drawn_s = time.monotonic()
            sys.stderr.write(f"\r{number:,}{of_all} {kind} {done}\033[K")
            sys.stderr.flush()

    try:
        yield heard
    finally:
        if is_seen:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
