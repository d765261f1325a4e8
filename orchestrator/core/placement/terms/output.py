"""T_out: how long the result takes to the asker.

Unit: microseconds. Formula: RTT + output bytes / link rate to the asker's nearest site, or bytes / the site's own uplink
where the job names none. Source: links of `clusters.yaml`, sizes of `atoll.physics.output`. Fails low on a crowded uplink.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "output"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of transfer from the site, per row."""
    return inputs.output_us
