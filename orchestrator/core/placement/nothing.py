"""The tables of a class that no pool can run: of zeros, the same ones for all such classes.

Decides only their form. Must not know which classes those are.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.placement.registry import TERM_NAMES, Still
from orchestrator.core.placement.rows import COLD, Fix


class Nothing:
    """Tables of zeros for so many pools, shared by all that is barren: no row is feasible. Nobody writes to them."""

    __slots__ = ("fix", "pools", "rows", "still")

    def __init__(self, pools: int) -> None:
        kinds = COLD + 1
        self.pools = np.zeros(pools, dtype=np.int64)
        self.rows = np.zeros(kinds * pools, dtype=np.int64)
        self.fix = np.zeros((kinds * pools, len(Fix)), dtype=np.int64)
        terms = np.zeros((kinds * pools, len(TERM_NAMES)), dtype=np.int64)
        self.still = Still(terms=terms, serial_us=self.rows, input_us=self.rows, price_us=self.rows)
        for table in (self.pools, self.rows, self.fix, terms):
            table.flags.writeable = False
