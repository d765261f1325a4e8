"""What re-placement costs: decisions per second with it and without, of two fleets that are given the same jobs in turns.

Of the same process, in blocks that alternate, so that whatever else the machine does falls on both alike. Unlike the cases of the core the
time of looking for what could be moved counts too.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from atoll.model.attempt import FailureKind
from orchestrator.core import attempts, moving
from orchestrator.core.context import Context
from orchestrator.core.state import LiveAttempt, Site
from tests.bench.core import CASES, Load, Rounds, prepare

_BLOCK: Final = 500
_BLOCKS: Final = 24


@dataclass(slots=True, eq=False)
class _Side:
    """One of the two, and what it came to."""

    load: Load
    seconds: float = 0.0
    decisions: int = 0
    moves: int = 0

    def run(self, first: int, choice: random.Random) -> float:
        """One block of jobs: seconds a decision."""
        placed, seconds, decisions = self.load.placed, self.seconds, self.decisions
        with Rounds() as rounds, self._looks():
            self.load.run(first, _BLOCK, choice)
        self.seconds += rounds.seconds
        self.decisions += self.load.placed - placed + rounds.waits
        return (self.seconds - seconds) / (self.decisions - decisions)

    @contextmanager
    def _looks(self) -> Iterator[None]:
        look, stop = moving.look, attempts.stop

        def timed(ctx: Context) -> None:
            begun = time.process_time()
            look(ctx)
            self.seconds += time.process_time() - begun

        def counted(ctx: Context, site: Site, live: LiveAttempt, kind: FailureKind, reason: str) -> None:
            self.moves += kind is FailureKind.MOVED
            stop(ctx, site, live, kind, reason)

        moving.look, attempts.stop = timed, counted
        try:
            yield
        finally:
            moving.look, attempts.stop = look, stop

    @property
    def rate(self) -> float:
        """Decisions per second."""
        return self.decisions / self.seconds


def main() -> None:
    """Print both rates, and the ratio in the middle of those of the blocks: other work on the machine comes and goes."""
    case = CASES["36-sites"]
    moved, still = (_Side(prepare(case, changes)) for changes in ({}, {"moves_max": 0}))
    ratios = []
    for block in range(_BLOCKS):
        took = {
            side: side.run(case.warm_up + block * _BLOCK, random.Random(block))
            for side in ((moved, still) if block % 2 else (still, moved))
        }
        ratios.append(took[still] / took[moved])
    print(
        f"re-placement, 36 sites, looking included: {moved.rate:,.0f} decisions/s with it ({moved.moves:,} of {_BLOCK * _BLOCKS:,} jobs "
        f"moved), {still.rate:,.0f} without: {statistics.median(ratios):.3f} of that",
        flush=True,
    )
