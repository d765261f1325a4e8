"""What would have to change for a job that places reject, in figures: time, and a price that would do.

Decides nothing about placing: it reads the same estimate and the same table of costs. Must not know how advice is worded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.model.placement import Reason
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.columns import REASON_CODE
from orchestrator.core.placement.rows import COLD, HELD_MAX_US, MS_PER_HOUR, Dyn, Fix, Out, State
from orchestrator.core.state import ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What is missing; 0 where nothing is rejected for it."""

    late_us: int = 0  # with so much more time nobody would leave in vain at one of the places that reject it for that
    price_usd_micros: int = 0  # with so much the cheapest place that costs too much would do


def shortfall(board: Board) -> Shortfall:
    """What keeps the job from the places that reject it for its time or for its price."""
    return Shortfall(late_us=_late_us(board), price_usd_micros=_price_usd_micros(board))


def _late_us(board: Board) -> int:
    vain = board.out[(board.out[:, Out.STATE] == State.IMPOSSIBLE) & (board.out[:, Out.SHORT] > 0), Out.SHORT]
    return int(vain.min()) if len(vain) else 0


def _price_usd_micros(board: Board) -> int:
    """The least price that would do at a place that is rejected for its price: of a warm replica where one is, else with its weights
    fetched."""
    estimate, columns, out, pools = board.estimate, board.columns, board.out, board.pools
    found = []
    for pool in np.flatnonzero(estimate.codes == REASON_CODE[Reason.PRICE_TOO_HIGH]).tolist():
        warm = ReplicaKey(estimate.variant.model_id, estimate.variant.gang_size) in board.column(pool).warm
        row = pool if warm else COLD * pools + pool
        fetch_us = 0 if warm else estimate.fix.item(row, Fix.FETCH) * (columns.dyn.item(pool, Dyn.FLOWS) + 1)
        held_us = min(estimate.fix.item(row, Fix.OCCUPANCY) + fetch_us, HELD_MAX_US)
        found.append(_paid(estimate.fix.item(row, Fix.PAY), held_us) + estimate.egress_usd_micros.item(row))
    dear = np.flatnonzero((out[:, Out.STATE] == State.IMPOSSIBLE) & (out[:, Out.PAID] > 0))
    found += (out[dear, Out.PAID] + estimate.egress_usd_micros[dear]).tolist()
    return min(found, default=0)


def _paid(usd_micros_per_hour: int, held_us: int) -> int:
    return usd_micros_per_hour * (held_us // 1_000) // MS_PER_HOUR
