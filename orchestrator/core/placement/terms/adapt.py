"""T_adapt: bringing the job's adapters onto the replica.

Unit: microseconds. Formula: sum over the adapters of fetch + patch, where a replica lacks one of them or has to be loaded; 0 where the
replica holds all of them. The fetch drops out where the node of the chosen replica has them on its disk.
Source: `atoll.physics.coldstart.patch_us`, bytes of the adapter, the site's origin rate or the link of the nearest peer that has it
(`sources`). Fails high where only one of several is missing, or where a cold load goes to a node that has them on its disk: they are
counted as if none were there.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "adapt"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of fetching and patching, per row."""
    return inputs.adapt_us
