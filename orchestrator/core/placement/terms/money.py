"""E_money: the GPU's price over the time it is occupied, as seconds of this job's delay.

Unit: microseconds. Formula: price per hour x (stage + init + execution) x seconds_per_dollar / the priority's weight.
Source: prices of `clusters.yaml`; the exchange rate of the policy. Fails where a reserved GPU costs the same idle: its price is
then sunk, and this term merely ranks it.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.rows import Ints, Rows

NAME = "money"

_US_PER_HOUR = 3_600_000_000


def occupancy_us(rows: Rows) -> Ints:
    """Microseconds for which the slot is taken, per row."""
    return np.where(rows.resident, 0, rows.stage_us + rows.init_us) + rows.execution_us


def price_usd_micros(rows: Rows) -> Ints:
    """Micro-dollars of GPU time, per row. The product is taken in seconds first: a price x microseconds would overflow int64."""
    return rows.usd_micros_per_hour * (occupancy_us(rows) // 1_000) // (_US_PER_HOUR // 1_000)


def cost_us(rows: Rows) -> Ints:
    """Microseconds worth of money, per row."""
    return price_usd_micros(rows) * rows.seconds_per_dollar * 1_000 // rows.weight_milli
