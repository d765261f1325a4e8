"""T_exec: the generation itself.

Unit: microseconds. Formula and source: `atoll.physics.execution` for (model, shape, GPU type, precision).
Fails where the prior's efficiency is off for a GPU type or a stack; nothing is learned yet.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Ints, Rows

NAME = "execution"


def cost_us(rows: Rows) -> Ints:
    """Microseconds of execution, per row."""
    return rows.execution_us
