"""T_stage: how long the weights take from disk or host memory into the GPU.

Unit: microseconds. Formula: weights bytes x max(1 / disk rate, 1 / host-to-device rate), pipelined; the disk leg drops out
from host memory. Source: `atoll.physics.coldstart`; rates declared by the site or measured by its own loads.
Fails low when several slots of a node load at once.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "stage"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of loading from disk, per row. What host memory saves is subtracted where a decision knows of it."""
    return inputs.stage_us * inputs.cold
