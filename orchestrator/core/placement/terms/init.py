"""T_init: building the pipeline around the weights, and what the first generation of a process takes beyond the next.

Unit: microseconds. Formula: `atoll.physics.coldstart.init_us` of the model where it is not resident. What is added at a slot whose process
has generated nothing yet (`first_generation_us`) depends on the slot, so `kernel` adds it to this term when it knows which is meant.
Source: coldstart figures of the catalogue. The start of a slot's process is never part of it: until its site says that the process is up, a
slot is neither given work nor waited for. Fails low where the process died a moment ago and the site has not said so, for jobs that were
bound behind the one that it died with, and in what a place would cost under other circumstances (`supposing`).
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "init"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of initialisation, per row."""
    return inputs.init_us * inputs.cold
