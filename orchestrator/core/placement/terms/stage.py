"""T_stage: how long the weights take from disk or host memory into the GPU.

Unit: microseconds. Formula: weights bytes x max(1 / disk rate, 1 / host-to-device rate), pipelined; the disk leg drops out
from host memory. Source: `atoll.physics.coldstart`; rates declared by the site or measured by its own loads.
Fails low when several slots of a node load at once.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.rows import Ints, Rows

NAME = "stage"


def cost_us(rows: Rows) -> Ints:
    """Microseconds of loading, per row."""
    return np.where(rows.resident, 0, rows.stage_us)
