"""Among places of equal cost the virtues that docs/placement.md names decide, in its order."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.placement import leasts
from orchestrator.core.placement.rows import NO_DEADLINE, RATES, Dyn, Fix, Out, Rate, State

# Best first. Each: which table, which column, and whether more of it is better.
VIRTUES = (
    ("out", Out.FETCH, False),
    ("out", Out.EVICTED_BYTES, False),
    ("fix", Fix.USD, False),
    ("dyn", Dyn.FREE, True),
    ("fix", Fix.HASH, False),
)
POOLS = 2


def _best(tables: dict[str, np.ndarray]) -> int:
    rates = np.zeros(RATES, dtype=np.int64)
    rates[Rate.TIE_US], rates[Rate.SLACK] = 50_000, NO_DEADLINE
    fix, dyn, out = tables["fix"], tables["dyn"], tables["out"]
    return int(leasts.best(fix, dyn, rates, np.ones(len(out), dtype=np.bool_), out, POOLS, int(State.BINDABLE)))


def _equal() -> dict[str, np.ndarray]:
    """A loaded and a cold row of each of two pools, all at the same cost."""
    tables = {
        "fix": np.zeros((2 * POOLS, len(Fix)), dtype=np.int64),
        "dyn": np.zeros((POOLS, len(Dyn)), dtype=np.int64),
        "out": np.zeros((2 * POOLS, len(Out)), dtype=np.int64),
    }
    tables["out"][:, Out.STATE], tables["out"][:, Out.TOTAL] = State.BINDABLE, 10**6
    return tables


def _lacks(tables: dict[str, np.ndarray], pool: int, virtues: tuple[tuple[str, int, bool], ...]) -> None:
    """A pool has less of these virtues, loaded or not."""
    other = 1 - pool
    for name, column, more in virtues:
        worse = other if more else pool
        tables[name][worse::POOLS, column] = 7


@pytest.mark.parametrize("deciding", range(len(VIRTUES)), ids=[column.name.lower() for _, column, _ in VIRTUES])
@pytest.mark.parametrize("pool", [0, 1])
def test_of_equal_places_the_first_virtue_that_differs_decides(deciding: int, pool: int) -> None:
    tables = _equal()
    _lacks(tables, 1 - pool, VIRTUES[deciding : deciding + 1])
    _lacks(tables, pool, VIRTUES[deciding + 1 :])
    tables["out"][:POOLS, Out.STATE] = State.IMPOSSIBLE
    assert _best(tables) == POOLS + pool


@pytest.mark.parametrize("pool", [0, 1])
def test_a_loaded_replica_goes_before_any_load_that_costs_as_much(pool: int) -> None:
    tables = _equal()
    _lacks(tables, pool, VIRTUES)
    tables["out"][1 - pool, Out.STATE] = State.IMPOSSIBLE
    assert _best(tables) == pool
