"""Jobs in any order -> in order of arrival, in memory that is bounded: sorted pieces on disk, merged.

Decides how many are sorted at once; those that arrive together keep their order.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Final

from sims.traces.cells import CellParser
from sims.traces.job import TraceJob
from sims.traces.lines import CsvSource
from sims.traces.metadata import TraceMeta
from sims.traces.writing import write_trace

# 200 MB of jobs at once; 50 million rows are 250 pieces, as many as may be open at a time.
PIECE_JOBS: Final = 200_000
_BY_ARRIVAL: Final = attrgetter("arrival_us")


def in_order(jobs: Iterable[TraceJob], piece_jobs: int = PIECE_JOBS) -> Iterator[TraceJob]:
    """All of them, by arrival. What does not fit into one piece is written to a temporary folder until it is merged."""
    rest = iter(jobs)
    piece = sorted(islice(rest, piece_jobs), key=_BY_ARRIVAL)
    if len(piece) < piece_jobs:
        yield from piece
        return
    with tempfile.TemporaryDirectory(prefix="atoll-trace-") as folder:
        pieces: list[Path] = []
        while piece:
            path = Path(folder) / f"{len(pieces)}.csv"
            write_trace(path, TraceMeta(), piece)
            pieces.append(path)
            piece = sorted(islice(rest, piece_jobs), key=_BY_ARRIVAL)
        yield from heapq.merge(*map(_read, pieces), key=_BY_ARRIVAL)


def _read(path: Path) -> Iterator[TraceJob]:
    """What was written here a moment ago, and needs no further look."""
    source = CsvSource(path)
    parser = CellParser(source.columns)
    for _, cells in source.rows():
        yield parser.job(cells)  # type: ignore[arg-type]  # a row that was written is no error
