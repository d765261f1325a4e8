"""T_init: building the pipeline around the weights.

Unit: microseconds. Formula: `atoll.physics.coldstart.init_us` of the model where it is not resident; the slot's process itself is warm.
Source: coldstart figures of the catalogue. Fails low after a slot's process died: its restart is not counted.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "init"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of initialisation, per row."""
    return inputs.init_us * inputs.cold
