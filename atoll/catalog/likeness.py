"""Which known names look like one that is not known.

Decides what a mistyped name probably meant, at a cost that is bounded however many names there are. Must not know what they name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from itertools import islice
from typing import Final

# Names that can be meant are at most this long; comparing a megabyte with each of them would take minutes.
_COMPARED_CHARS: Final = 64
# Names that are compared letter by letter, 20 us each: of more than that, those that begin alike. Nobody waits 5 ms for a good guess.
_COMPARED_MAX: Final = 256
_BEGINNING_CHARS: Final = 2
# As `difflib` has it: more than half of the letters in order.
_CUTOFF: Final = 0.6
# A word is short for the names whose beginning it resembles, if four of its five letters do; shorter words resemble too many.
_BEGUN_CUTOFF: Final = 0.8
_BEGUN_CHARS_MIN: Final = 5
# Where one name resembles a word by this much more than another, the other is not worth naming.
_AS_GOOD: Final = 0.1


def alike(word: str, known: Collection[str], most: int = 3) -> list[str]:
    """At most so many of `known`: those that `word` begins, then the most similar, else those of the most similar beginning, whatever
    their case."""
    if not word or len(word) > _COMPARED_CHARS:
        return []
    folded = word.lower()
    begun = sorted(islice((name for name in known if name.lower().startswith(folded)), _COMPARED_MAX))[:most]
    if len(begun) == most:
        return begun
    some = known if len(known) <= _COMPARED_MAX else _beginning(folded, known)
    by_folded = {name.lower(): name for name in some if len(name) <= _COMPARED_CHARS}
    close = difflib.get_close_matches(folded, by_folded, n=len(by_folded) or 1, cutoff=_CUTOFF)
    ratios = {found: difflib.SequenceMatcher(a=found, b=folded).ratio() for found in close}
    ranked = sorted(close, key=lambda found: (-ratios[found], found))
    resembling = [by_folded[found] for found in ranked[:most] if ratios[found] >= ratios[ranked[0]] - _AS_GOOD]
    return list(dict.fromkeys([*begun, *resembling]))[:most] or _begun_alike(folded, some, most)


def _begun_alike(folded: str, known: Collection[str], most: int) -> list[str]:
    if len(folded) < _BEGUN_CHARS_MIN:
        return []
    beginnings = {name[: len(folded)].lower() for name in known}
    close = difflib.get_close_matches(folded, beginnings, n=1, cutoff=_BEGUN_CUTOFF)
    return sorted(name for name in known if name[: len(folded)].lower() in close)[:most]


def _beginning(folded: str, known: Collection[str]) -> list[str]:
    begins = folded[:_BEGINNING_CHARS]
    return list(islice((name for name in known if name[:_BEGINNING_CHARS].lower() == begins), _COMPARED_MAX))
