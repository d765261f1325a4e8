"""E_money: the GPU's price over the time it is occupied, as seconds of this job's delay.

Unit: microseconds. Formula: price per hour x GPUs x (stage + init + adapt + compile + execution) x seconds_per_dollar / the priority's
weight. Source: prices of `clusters.yaml`; the exchange rate of the policy. Fails where a reserved GPU costs the same idle: its price is
then sunk, and this term merely ranks it.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "money"

_US_PER_HOUR = 3_600_000_000


def price_usd_micros(inputs: Inputs) -> Ints:
    """Micro-dollars of GPU time, per row. The product is taken in milliseconds: a price x microseconds would overflow int64."""
    return inputs.usd_micros_per_hour * inputs.gang_size * (inputs.occupancy_us // 1_000) // (_US_PER_HOUR // 1_000)


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds worth of money, per row."""
    return price_usd_micros(inputs) * inputs.seconds_per_dollar * 1_000 // inputs.weight_milli
