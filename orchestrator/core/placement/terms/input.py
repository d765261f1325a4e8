"""T_in: how long the job's input takes to the site.

Unit: microseconds. Formula: RTT + bytes / link rate from the asker's nearest site; RTT 0 where the job names no origin.
Source: links of `clusters.yaml`. Fails low when the origin is unknown.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "input"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of transfer to the site, per row."""
    return inputs.input_us
