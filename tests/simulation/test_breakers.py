"""Sites that fail whoever comes: the fleet notices, leaves them alone, tries them again, and keeps every promise meanwhile."""

from __future__ import annotations

from sims.faults import Fault
from sims.run import Options, run_seed

_SEEDS = (2, 3, 4)


def test_breakers_open_and_close_and_no_promise_is_broken() -> None:
    told: list[str] = []
    for seed in _SEEDS:
        outcome = run_seed(seed, Options(faults=frozenset({Fault.BROKEN_SITE})), listener=told.append)
        assert outcome.violation is None and outcome.vacuous is None, (seed, outcome.violation, outcome.vacuous)
    assert any("breaker_opened" in line for line in told)
    assert any("breaker_closed" in line for line in told)
