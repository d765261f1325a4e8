"""What brings weights to a node when its site has them: a copy from another node, and what follows where another node's fetch has landed.

Decides these two times of cold rows. Integers only: the scalar forms are for `kernel`, the other for `vectors`. Must not know who waits.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.machine_code import jit
from orchestrator.core.placement.rows import FETCH_MAX_US, Dyn, Fix, Ints

# As plain integers: see `kernel`.
_F_COPY, _F_FETCH, _D_COPIES, _D_FLOWS = int(Fix.COPY), int(Fix.FETCH), int(Dyn.COPIES), int(Dyn.FLOWS)


@jit
def copy_us(fix: Ints, dyn: Ints, row: int) -> int:
    """How long a cold row's copy from another node of the site takes, with those under way."""
    return int(min(fix[row, _F_COPY] * (dyn[row - len(dyn), _D_COPIES] + 1), FETCH_MAX_US))


@jit
def landed_us(fix: Ints, dyn: Ints, row: int) -> int:
    """What follows for a cold row when the flight of its site has landed: a copy, or a fetch of its own in the place of that flight."""
    return int(min(copy_us(fix, dyn, row), fix[row, _F_FETCH] * max(dyn[row - len(dyn), _D_FLOWS], 1)))


def landings(fix: Ints, dyn: Ints) -> tuple[Ints, Ints]:
    """`copy_us` and `landed_us`, a line of each table for each."""
    copy = np.minimum(fix[:, Fix.COPY] * (dyn[:, Dyn.COPIES] + 1), FETCH_MAX_US)
    return copy, np.minimum(copy, fix[:, Fix.FETCH] * np.maximum(dyn[:, Dyn.FLOWS], 1))
