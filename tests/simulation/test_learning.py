"""The reference fleet in a world that differs from the prior: predictions come within their gates, by learning and by nothing else."""

from __future__ import annotations

import pytest

from atoll.model.learned import TOTAL, Component
from tests.bench.learning import simulate

JOBS = 3_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_bias_shrinks_with_learning_and_stays_without(seed: int) -> None:
    on, off = (simulate(seed, JOBS, learning=learning) for learning in (True, False))
    for name, share in ((Component.LOAD, 0.3), (Component.EXECUTION, 0.5), (TOTAL, 0.35)):
        assert on.last(name) < share * off.last(name), name
        assert on.last(name) < 0.7 * on.first(name), name
    # Sites tell the mean of their fetches, which goes up and down with the modes that these met: a floor for fetches.
    assert on.last(Component.FETCH) < min(0.15, 0.5 * on.first(Component.FETCH))
    # Without learning nothing becomes right by itself.
    assert off.last(Component.EXECUTION) > 0.9 * off.first(Component.EXECUTION)
    gates = {gate.name: gate for gate in on.calibration.gates}
    judged = {name for name, gate in gates.items() if gate.enough}
    assert judged >= {Component.FETCH, Component.LOAD, Component.EXECUTION, TOTAL}
    assert {name: gates[name] for name in judged if not gates[name].passed} == {}


def test_the_same_seed_learns_the_same() -> None:
    first, second = simulate(3, 600, learning=True), simulate(3, 600, learning=True)
    assert first == second
    assert first.calibration.factors > 100
