"""Same seed, same history: again, under another hash seed, and from snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.placement.choose import Board
from sims.run import Options, run_seed

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = 40
PROBE = """
import sys
from orchestrator.core.placement.choose import Board
from sims.run import Options, run_seed
print(run_seed(int(sys.argv[1]), Options(jobs=int(sys.argv[2]))).digest)
"""


def _digest_in_fresh_interpreter(seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(seed), str(JOBS)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("seed", [1, 3])
def test_same_seed_same_digest(seed: int) -> None:
    here = run_seed(seed, Options(jobs=JOBS)).digest
    assert run_seed(seed, Options(jobs=JOBS)).digest == here
    assert _digest_in_fresh_interpreter(seed, "1") == here
    assert _digest_in_fresh_interpreter(seed, "4711") == here


def test_other_seed_other_digest() -> None:
    assert run_seed(1, Options(jobs=JOBS)).digest != run_seed(2, Options(jobs=JOBS)).digest


@pytest.mark.parametrize("seed", [1, 3])
def test_snapshot_covers_everything(seed: int) -> None:
    """A machine restored from its snapshot after each event goes on as if nothing had happened."""
    assert run_seed(seed, Options(jobs=JOBS, resnapshot=True)).digest == run_seed(seed, Options(jobs=JOBS)).digest


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_costs_that_are_told_to_hold_are_those_that_would_be_found_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scored to order classes by regret decides for them, unless something changed; scoring each anew changes no decision."""
    asked, holds = list[bool](), Board.holds

    def noted(board: Board, slack_us: int, begin_us: int) -> bool:
        asked.append(holds(board, slack_us, begin_us))
        return asked[-1]

    monkeypatch.setattr(Board, "holds", noted)
    kept = run_seed(seed, Options(jobs=JOBS)).digest
    assert any(asked), "no board was used twice"
    assert not all(asked), "nothing changed before a board was used again"
    monkeypatch.setattr(Board, "holds", lambda board, slack_us, begin_us: False)
    assert run_seed(seed, Options(jobs=JOBS)).digest == kept
