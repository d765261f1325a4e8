"""E_risk: the place may be lost under the job, or the load may fail; then it begins again.

Unit: microseconds. Formula: (1 - exp(-hazard x occupancy)) x (occupancy / 2 + C) + P(load fails) x C, where C is this place's own
predicted delay and occupancy is that of `money`: a slot that is held for a fetch can be lost too. The hazard of a gang is that of all its
GPUs. Source: preemptions of spot sites in `clusters.yaml`, the policy's base hazard and load failures. Fails where losses come in waves: a
site's recent ones are not counted here but avoided by the job that met them; and high for gangs where an owner takes whole nodes at once.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import LOSSES_MAX, Ints, Out

NAME = "risk"
COLUMN = Out.RISK


def losses_per_million_hours(inputs: Inputs) -> Ints:
    """How often the place is lost while it is held, per row: both rates are of one GPU, and a gang is lost with any of its own."""
    preemptions = np.minimum(inputs.preemptions_per_million_hours, LOSSES_MAX)
    return np.asarray((preemptions + inputs.hazard_per_million_hours) * inputs.gang_size)


def failure_ppm(inputs: Inputs) -> Ints:
    """Parts per million: that the load fails, per row."""
    return inputs.fail_ppm * inputs.cold.astype(np.int64)
