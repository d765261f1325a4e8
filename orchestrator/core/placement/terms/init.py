"""T_init: building the pipeline around the weights.

Unit: microseconds. Formula: `atoll.physics.coldstart.init_us` of the model where it is not resident. Source: coldstart figures of the
catalogue. The start of a slot's process is never part of it: until its site says that the process is up, a slot is neither given work nor
waited for. Fails low for the first generation of a process, which takes 1 to 2 s more than the next while kernels are loaded: no site tells
which process that is. Fails low too where the process died a moment ago and the site has not said so, and for jobs that were bound behind
the one that it died with.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "init"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of initialisation, per row."""
    return inputs.init_us * inputs.cold
