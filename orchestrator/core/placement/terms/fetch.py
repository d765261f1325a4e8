"""T_fetch: how long until the weights are on the node's disk.

Unit: microseconds. Formula: 0 if resident or on the node's disk; else the remainder of a fetch in flight to that node, or
RTT + bytes x (1 + flows) / origin rate. Source: `atoll.physics.coldstart`, the site's declared or measured origin rate.
Fails low when other sites crowd the origin store itself: its own capacity is not modelled here.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.rows import Ints, Rows

NAME = "fetch"


def cost_us(rows: Rows) -> Ints:
    """Microseconds of fetching, per row."""
    return np.where(rows.resident, 0, rows.fetch_us)
