"""The reference fleet in a world that differs from the prior: predictions come within their gates, by learning and by nothing else."""

from __future__ import annotations

import statistics

import pytest

from atoll.model.learned import Component
from tests.bench.learning import TOTAL, bias, simulate

JOBS = 3_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_bias_shrinks_below_the_gate_with_learning_and_stays_without(seed: int) -> None:
    on, off = (simulate(seed, JOBS, learning=learning) for learning in (True, False))
    last, without = on.errors[Component.EXECUTION][-1_000:], off.errors[Component.EXECUTION][-1_000:]
    assert abs(statistics.median(last)) <= 0.05
    assert bias(last) < 0.45 * bias(without)
    assert bias(last) < 0.7 * bias(on.errors[Component.EXECUTION][:1_000])
    assert bias(on.errors[TOTAL][-1_000:]) < 0.65 * bias(off.errors[TOTAL][-1_000:])
    gates = {gate.name: gate for gate in on.calibration.gates}
    judged = {name for name, gate in gates.items() if gate.enough}
    assert judged >= {Component.FETCH, Component.LOAD, Component.EXECUTION, TOTAL}
    assert {name: gates[name] for name in judged if not gates[name].passed} == {}


def test_the_same_seed_learns_the_same() -> None:
    first, second = simulate(3, 600, learning=True), simulate(3, 600, learning=True)
    assert first == second
    assert first.calibration.factors > 100
