"""T_comp: making the denoiser's code for the job's shape, or taking it over.

Unit: microseconds. Formula: p_hit x artifact load + (1 - p_hit) x compile; 0 for a model that runs eager. p_hit is the share of the
pool's nodes that hold code for the job's form, or 1 where they take it from others of their GPU type that hold it. Where the model is
resident, what the node itself holds costs nothing: such a replica runs that code already.
Source: `atoll.physics.coldstart` and the reports of nodes. Fails high in the middle: of a pool whose nodes hold it in part, a job gets a
node that does or one that does not, and is told the mean. Fails low where a resident replica has not run this form yet though its node
holds the code, since the artifact load is not counted; and where nodes that share have other versions of torch.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "compile"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of compiling, per row."""
    return inputs.compile_us
