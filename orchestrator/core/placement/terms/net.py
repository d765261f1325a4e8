"""E_net: what the site's owner charges for the result to leave it, as seconds of this job's delay.

Unit: microseconds. Formula: egress price per GB x output bytes x seconds_per_dollar / the priority's weight.
Source: `egress_usd_micros_per_gb` of sites and links in `clusters.yaml`. Fails where a contract has tiers or a free allowance.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import USD_MICROS_MAX, Ints

NAME = "net"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds worth of egress, per row."""
    return np.minimum(inputs.egress_usd_micros, USD_MICROS_MAX) * inputs.seconds_per_dollar * 1_000 // inputs.weight_milli
