"""Measured rates of sites, as placing reckons with them.

Decides when a rate has moved enough to count: by more than a tenth, since each that does has estimates computed anew. Must not know who
measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.core.placement.column import Column
from orchestrator.core.state import Site

if TYPE_CHECKING:
    from orchestrator.core.placement.columns import Columns  # which begins with them


def take(columns: Columns, sites: Iterable[Site]) -> None:
    """What these sites measured counts from now on."""
    for site in sites:
        if columns.rated.get(site.site_id) != site.rates:
            columns.rated[site.site_id] = site.rates
            for column in columns.of_site(site):
                take_of(columns, column)


def take_of(columns: Columns, column: Column) -> None:
    """As `take`, of one pool."""
    index = column.index
    for array, rate in zip((columns.disk_rate, columns.h2d_rate, columns.origin_rate), column.rates(), strict=True):
        if abs(int(array[index]) - rate) * 10 > int(array[index]):
            array[index] = max(rate, 1)
            columns.version += 1
