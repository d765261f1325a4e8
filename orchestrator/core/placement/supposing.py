"""What a place would cost under other circumstances than the tables tell: after another wait, with the weights coming from elsewhere.

Decides nothing: `kernel` reckons, one line at a time. Must not know why somebody asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orchestrator.core.placement import kernel
from orchestrator.core.placement.choose import Board, Scorer
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.lateness import outlook
from orchestrator.core.placement.rows import FETCH_MAX_US, UNREACHABLE, Fix, Ints, Out, Rate, Source, State


class Cost(NamedTuple):
    """What a place costs: lower goes first. A job with a deadline takes one where it is in time before any other."""

    late: bool
    total_us: int


NEVER = Cost(late=True, total_us=UNREACHABLE)


def cost_of(board: Board, row: int) -> Cost:
    """The cost of a row as it stands."""
    return Cost(late=int(board.out[row, Out.TARDY]) >= 0, total_us=board.total_us(row))


def after(scorer: Scorer, key: ClassKey, board: Board, row: int, *, wait_us: int, fetch_us: int = 0, source: Source = Source.DISK) -> Cost:
    """What a row would cost if it began after this wait and fetch, nothing had to leave, and no guard was up; NEVER beyond the job's
    price limit."""
    rates = _rates(scorer, key, board)
    rates[[Rate.EVICT_MILLI, Rate.FRAGMENT_MILLI, Rate.LINK_MILLI]] = 0
    kinds, pool, pools = len(board.estimate.fix) // board.pools, row % board.pools, board.pools
    fix = np.ascontiguousarray(board.estimate.fix[pool::pools])
    out = np.zeros((kinds, len(Out)), dtype=np.int64)
    line = out[row // pools]
    line[[Out.STATE, Out.WAIT, Out.FETCH, Out.SOURCE]] = State.WAITS, wait_us, min(fetch_us, FETCH_MAX_US), source
    line[Out.SAVING] = fix[row // pools, Fix.SAVING] if source == Source.HOST else 0
    kernel.cost_rows(fix, board.columns.dyn[pool][np.newaxis], rates, out)
    if line[Out.STATE] == State.IMPOSSIBLE:
        return NEVER
    return Cost(late=int(line[Out.TARDY]) >= 0, total_us=int(line[Out.TOTAL]))


def wait_less(scorer: Scorer, key: ClassKey, board: Board, row: int, wait_us: int) -> None:
    """The row begins after this wait: all that follows from it is reckoned anew in the board."""
    pool, pools = row % board.pools, board.pools
    fix = np.ascontiguousarray(board.estimate.fix[pool::pools])
    out: Ints = np.zeros((len(fix), len(Out)), dtype=np.int64)
    line = out[row // pools]
    line[:] = board.out[row]
    line[Out.WAIT] = wait_us
    kernel.cost_rows(fix, board.columns.dyn[pool][np.newaxis], _rates(scorer, key, board), out)
    line[Out.TOTAL] += line[Out.CHURN]
    board.out[row] = line


def latest_us(scorer: Scorer, key: ClassKey, board: Board, row: int) -> int:
    """How long 95 of 100 such completions take at most, from a row as it stands."""
    pool, pools = row % board.pools, board.pools
    fix = np.ascontiguousarray(board.estimate.fix[pool::pools])
    source = int(board.out[row, Out.SOURCE])
    dyn, rates = board.columns.dyn[pool][np.newaxis], _rates(scorer, key, board)
    return sum(outlook(fix, dyn, rates, row // pools, board.delay_us(row), source))


def _rates(scorer: Scorer, key: ClassKey, board: Board) -> Ints:
    rates = scorer.worths.of(key, board.estimate.model.modality).copy()
    scorer.time(rates, board.slack_us, board.begin_us)
    return rates
