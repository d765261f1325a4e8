"""Which pools hold compiled code of which form, on how many of their nodes.

Decides nothing; an index that can be rebuilt from the sites' state at any time. A form's `version` changes whenever a node comes to hold
its code or holds it no more, so that only estimates of that form are computed again. Must not know models or jobs.
"""

from __future__ import annotations

import numpy as np

from atoll.model.ids import FormId, GpuTypeId
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.rows import Ints

_MILLI = 1_000


class CodeIndex:
    """Nodes that hold code, counted by form and number of the pool."""

    __slots__ = ("_changes", "_nodes", "_versions")

    def __init__(self) -> None:
        self._nodes: dict[FormId, dict[int, int]] = {}
        self._versions: dict[FormId, int] = {}
        self._changes = 0

    def rebuild(self, columns: list[Column]) -> None:
        """Count anew: pools came or went."""
        self._nodes, self._versions = {}, {}
        for column in columns:
            for node in column.pool.nodes:
                self.changed(column, set(), node.compiled)

    def changed(self, column: Column, before: set[FormId], now: set[FormId]) -> None:
        """A node of the pool holds code of other forms than before."""
        for form in sorted(before ^ now):
            self._changes += 1
            nodes = self._nodes.setdefault(form, {})
            nodes[column.index] = nodes.get(column.index, 0) + (1 if form in now else -1)
            if nodes[column.index] <= 0:
                del nodes[column.index]
            if nodes:
                self._versions[form] = self._changes
            else:
                del self._nodes[form]
                self._versions.pop(form, None)

    def version(self, form: FormId) -> int:
        """Another number after each change; 0 while nobody holds code of the form."""
        return self._versions.get(form, 0)

    def reach_milli(self, form: FormId, columns: list[Column]) -> Ints:
        """The same, and all of a pool whose nodes share code with another of their GPU type that holds it."""
        shares = self.share_milli(form, columns)
        holders = {_sharing(columns[index]) for index in self._nodes.get(form, ())} - {None}
        for index, column in enumerate(columns) if holders else ():
            if _sharing(column) in holders:
                shares[index] = _MILLI
        return shares

    def share_milli(self, form: FormId, columns: list[Column]) -> Ints:
        """The share of each pool's nodes that hold code of the form, in thousandths."""
        shares = np.zeros(len(columns), dtype=np.int64)
        for index, nodes in self._nodes.get(form, {}).items():
            shares[index] = _MILLI * nodes // len(columns[index].pool.nodes)
        return shares


def _sharing(column: Column) -> GpuTypeId | None:
    """Whose code a pool's nodes take: that of this GPU type; None: nobody's. All nodes of a site are told alike."""
    return column.pool.gpu.gpu_type if column.pool.nodes[0].shares_compiled else None
