"""Every planted bug of tests/mutants still applies; `python tests/mutants/hunt.py` shows, in minutes, that each is caught."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATCHES = sorted((REPOSITORY / "tests" / "mutants").glob("*.patch"))


def test_there_are_mutants() -> None:
    assert len(PATCHES) >= 8


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_mutant_applies(patch: Path) -> None:
    done = subprocess.run(
        ["git", "apply", "--check", "-C1", "-p1", str(patch)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"make the mutant anew, it plants nothing any more:\n{done.stderr}"
