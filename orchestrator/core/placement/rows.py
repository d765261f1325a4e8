"""The rows that terms are computed over: for one class of jobs, every pool twice, once by a resident replica and once cold.

Decides the form only. Row r < P is pool r by a resident replica, row P + r the same pool with the model to be loaded.
All arrays are int64 (microseconds, bytes, bytes per second, micro-dollars per hour) or bool, of length 2P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Inputs of all terms. `weight_milli` and `seconds_per_dollar` are the policy's exchange rates for this class."""

    resident: Bools  # the replica is there: nothing is fetched, staged or started
    wait_us: Ints  # until the slot can begin with this job
    fetch_us: Ints  # until the weights are on the node's disk
    input_us: Ints
    stage_us: Ints  # disk or host memory to GPU
    init_us: Ints
    execution_us: Ints
    output_us: Ints
    usd_micros_per_hour: Ints
    weight_milli: int
    seconds_per_dollar: int
