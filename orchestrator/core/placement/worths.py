"""What a class's time, money and neighbours are worth, and how sure its predictions are: the scalars of its decisions.

Decides which figures of the policy, and of what was learned of predictions, go into a decision. The rates of single decisions (now, slack,
memory, guard) are written into their places by whoever decides. Must not know the fleet beside its pools' names.
"""

from __future__ import annotations

import numpy as np

from atoll.model.job import Priority
from atoll.model.modelspec import Modality
from orchestrator.core.learning.book import Book
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import RATES, Dyn, Ints, Rate


class Worths:
    """Arrays of `rows.Rate`, kept while the widths of predictions stand still."""

    __slots__ = ("_book", "_columns", "_known", "_policy", "_widened")

    def __init__(self, columns: Columns, policy: Policy, book: Book) -> None:
        self._columns = columns
        self._policy = policy
        self._book = book
        self._known: dict[tuple[Priority, bool, Modality], Ints] = {}
        self._widened = (-1, -1)  # version of the widths that the tables tell, and layout of the columns

    def of(self, key: ClassKey, modality: Modality) -> Ints:
        """The rates of a class; the caller's to write into until the next is asked for."""
        widths = self._book.widths
        widened = widths.version, self._columns.layout
        if widened != self._widened:
            self._widen()
            self._widened = widened
        known = key.priority, key.gang_size == 1, modality
        rates = self._known.get(known)
        if rates is None:
            rates = self._known[known] = self._made(key, modality)
        return rates

    def _widen(self) -> None:
        """Tell the tables how wide errors are at each pool; where nothing is known, as they are on average."""
        self._known.clear()
        dyn, both = self._columns.dyn, [Dyn.WIDE_BEFORE, Dyn.WIDE_EXECUTION]
        dyn[:, both] = 1_000
        for place, scales_milli in self._book.widths.scales().items():
            column = self._columns.by_pool.get(place)
            if column is not None:
                dyn[column.index, both] = scales_milli

    def _made(self, key: ClassKey, modality: Modality) -> Ints:
        policy, rates = self._policy, np.zeros(RATES, dtype=np.int64)
        rates[Rate.TIE_US], rates[Rate.TIE_MILLI] = policy.tie_us, policy.tie_milli
        rates[Rate.TARDY_MILLI], rates[Rate.WIDTHS :] = policy.tardy_milli, self._book.widths.of(modality)
        rates[Rate.MONEY] = policy.seconds_per_dollar if "money" in policy.terms else 0
        rates[Rate.WEIGHT_MILLI] = policy.weight_milli(key.priority)
        rates[Rate.EVICT_MILLI] = self._per_weight("evict", policy.k_e_milli, key)
        rates[Rate.FRAGMENT_MILLI] = self._per_weight("fragmentation", policy.fragmentation_milli, key) if key.gang_size == 1 else 0
        rates[Rate.LINK_MILLI] = policy.link_milli if "link" in policy.terms else 0
        rates[Rate.LINK_USED_MILLI] = policy.link_used_milli
        return rates

    def _per_weight(self, term: str, milli: int, key: ClassKey) -> int:
        return milli * 1_000 // self._policy.weight_milli(key.priority) if term in self._policy.terms else 0
