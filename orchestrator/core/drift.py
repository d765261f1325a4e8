"""Predicted ends that move: which moves are worth sorting slots and tables anew.

Decides how exactly an end has to be known: the nearer it is, the more. Predictions of what is left scatter by three tenths, so that a
sixteenth of it tells no two places apart; and at the end itself nothing is left of the difference. Must not know what ends.
"""

from __future__ import annotations

from typing import Final

# Smaller moves only shuffle equal candidates, however near the end is.
_LEAST_US: Final = 100_000
_PARTS: Final = 16


def has_moved(known_us: int, found_us: int, now_us: int) -> bool:
    """Whether an end that was thought to be at one instant counts as being at another."""
    return abs(found_us - known_us) > max(_LEAST_US, (min(known_us, found_us) - now_us) // _PARTS)
