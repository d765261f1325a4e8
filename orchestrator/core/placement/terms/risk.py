"""E_risk: the place may be lost under the job, or the load may fail; then it begins again.

Unit: microseconds. Formula: (1 - exp(-hazard x occupancy)) x (occupancy / 2 + C) + P(load fails) x C, where C is this place's own
predicted delay. Source: preemptions of spot sites in `clusters.yaml`, the policy's base hazard and load failures. Fails where losses come
in waves: a site's recent ones are not counted here but avoided by the job that met them.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.hazard import X_PPM_MAX, within_ppm
from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints, Out

NAME = "risk"
COLUMN = Out.RISK

_MS_PER_HOUR = 3_600_000


def loss_ppm(inputs: Inputs) -> Ints:
    """Parts per million: that the GPU is lost while the slot is occupied, per row."""
    hazard = inputs.preemptions_per_million_hours + inputs.hazard_per_million_hours
    # Per million hours and in parts per million cancel out.
    expected_ppm = hazard * (inputs.occupancy_us // 1_000) // _MS_PER_HOUR
    return within_ppm(np.minimum(expected_ppm, X_PPM_MAX))


def failure_ppm(inputs: Inputs) -> Ints:
    """Parts per million: that the load fails, per row."""
    return inputs.fail_ppm * inputs.cold.astype(np.int64)
