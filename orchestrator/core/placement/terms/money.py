"""E_money: the GPU's price over the time it is taken, as seconds of this job's delay.

Unit: microseconds. Formula: price per hour x GPUs x (fetch for which it is held + stage + init + adapt + compile + execution) x
seconds_per_dollar / the priority's weight. A slot is held from the moment its attempt is bound: for all of a fetch that begins then, of one
in flight for what is left when the slot is free. Source: prices of `clusters.yaml`; the exchange rate of the policy. Fails where a reserved
GPU costs the same idle: its price is then sunk, and this term merely ranks it.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import HELD_MAX_US, MS_PER_HOUR, PAY_MAX, Ints, Out

NAME = "money"
COLUMN = Out.MONEY


def usd_micros_per_hour(inputs: Inputs) -> Ints:
    """Micro-dollars per hour of all GPUs that are taken, per row."""
    return np.asarray(np.minimum(inputs.usd_micros_per_hour * inputs.gang_size, PAY_MAX))


def least_usd_micros(inputs: Inputs, saving_us: Ints) -> Ints:
    """Micro-dollars of GPU time that a row costs at least, with no fetch. In milliseconds: microseconds would overflow int64."""
    held_us = np.minimum(np.maximum(inputs.occupancy_us - saving_us, 0), HELD_MAX_US)  # `np.clip` takes five times as long
    return np.asarray(usd_micros_per_hour(inputs) * (held_us // 1_000) // MS_PER_HOUR)
