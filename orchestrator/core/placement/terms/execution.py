"""T_exec: the generation itself.

Unit: microseconds. Formula and source: `atoll.physics.execution` for (model, shape, GPU type, precision), times what was learned.
Fails where the prior's efficiency is off for a GPU type or a stack that nothing was learned of yet.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "execution"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of execution, per row."""
    return inputs.execution_us
