"""Twenty seeds of the simulated fleet, and every seed that ever failed: all promises kept, no run without its faults."""

from __future__ import annotations

from pathlib import Path

import pytest

import sims
from orchestrator.core.placement.policies import POLICIES
from sims.run import Options, Outcome, run_seed

# `make soak` goes on from here for as long as it is let.
SEEDS = range(20)
CHUNK = 5
_OF_BASELINES = 100
REGRESSIONS = Path(sims.__file__).parent / "regressions.txt"


def _explained(outcome: Outcome) -> str:
    return "\n".join(
        (
            f"seed {outcome.seed}: {outcome.violation}",
            f"replay: python -m sims.soak --replay {outcome.seed}",
            "the last of its history:",
            *outcome.tail[-40:],
        )
    )


def _check(seeds: list[int]) -> None:
    outcomes = [run_seed(seed) for seed in seeds]
    failed = [outcome for outcome in outcomes if outcome.violation is not None]
    assert not failed, _explained(failed[0])
    vacuous = [f"seed {outcome.seed}: {outcome.vacuous}" for outcome in outcomes if outcome.vacuous is not None]
    assert not vacuous, "\n".join(vacuous)
    assert sum(outcome.accepted for outcome in outcomes) >= 60 * len(seeds)


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    _check(list(SEEDS)[first : first + CHUNK])


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"default"}))
def test_every_promise_is_kept_by_every_baseline(name: str) -> None:
    outcome = run_seed(_OF_BASELINES + sorted(POLICIES).index(name), Options(jobs=60, policy=POLICIES[name]))
    assert outcome.violation is None, _explained(outcome)
    assert outcome.vacuous is None


def test_what_failed_once_stays_fixed() -> None:
    lines = (line.partition("#")[0].strip() for line in REGRESSIONS.read_text(encoding="utf-8").splitlines())
    outcomes = [run_seed(int(line)) for line in lines if line]
    failed = [outcome for outcome in outcomes if outcome.violation is not None]
    assert not failed, _explained(failed[0])
