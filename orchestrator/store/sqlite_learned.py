"""What a fleet has learned, as rows: corrections of estimates, and how often models are asked for.

Decides their statements. Nothing rests on either, so what cannot be read counts as not there: it keeps nobody from starting.
Must not know transactions, terms or threads.
"""

from __future__ import annotations

import sqlite3

from atoll.model.demand import KeptDemand
from atoll.model.learned import Estimates
from atoll.wire import stored


def write(connection: sqlite3.Connection, estimates: Estimates | None, demand: KeptDemand | None, wall_ms: int) -> None:
    """What is not None replaces what was there, within the open transaction. `wall_ms` is what people's clocks say."""
    if estimates is not None:
        connection.execute("INSERT OR REPLACE INTO estimates VALUES (1, ?)", (stored.encode_estimates(estimates),))
    if demand is not None:
        connection.execute("INSERT OR REPLACE INTO demand VALUES (1, ?, ?)", (stored.encode_demand(demand), wall_ms))


def read_estimates(connection: sqlite3.Connection) -> Estimates:
    """What was learned of estimates."""
    row = connection.execute("SELECT estimates FROM estimates").fetchone()
    try:
        return stored.decode_estimates(row[0]) if row else Estimates()
    except stored.StoredFormatError:
        return Estimates()


def read_demand(connection: sqlite3.Connection, wall_ms: int) -> tuple[KeptDemand, int]:
    """Demand, and its age in microseconds: a clock that was set back makes nothing younger than new."""
    row = connection.execute("SELECT demand, written_ms FROM demand").fetchone()
    try:
        return (stored.decode_demand(row[0]), max(wall_ms - row[1], 0) * 1_000) if row else (KeptDemand(), 0)
    except stored.StoredFormatError:
        return KeptDemand(), 0
