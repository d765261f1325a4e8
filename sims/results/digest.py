"""One digest of all rows of a result: equal exactly where every row of every table is equal.

Decides that the order in which rows come does not matter: each is hashed with its key in it, and the hashes are added up. So rows need not
be held until those before them have ended, and a run may be split over any number of processes. Must not know what rows mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final

from sims.results.rows import JobRow, SiteRow

_BITS: Final = 256


def _cells(row: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(field.name for field in fields(row)))


_JOB_CELLS: Final = _cells(JobRow)
_SITE_CELLS: Final = _cells(SiteRow)


class RowsDigest:
    """Of the rows so far."""

    def __init__(self) -> None:
        self._sum = 0
        self._rows = 0

    def job(self, row: JobRow) -> None:
        """One more job."""
        self._add("job", _JOB_CELLS(row))

    def site(self, row: SiteRow) -> None:
        """One more sample of a site."""
        self._add("site", _SITE_CELLS(row))

    def _add(self, table: str, cells: tuple[Any, ...]) -> None:
        # `repr` of whole numbers, texts and truth values is the same in every interpreter; there are no fractions in rows.
        hashed = blake2b(f"{table}{cells!r}".encode(), digest_size=_BITS // 8).digest()
        self._sum = (self._sum + int.from_bytes(hashed, "big")) % (1 << _BITS)
        self._rows += 1

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return blake2b(f"{self._rows}:{self._sum}".encode(), digest_size=16).hexdigest()
