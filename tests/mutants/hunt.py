"""Planted bugs prove the checker: each patch beside this file is applied to a copy of the sources and must be caught by the seeds.

`python tests/mutants/hunt.py [NAME ...]`: exit 0 when every mutant was caught within SEEDS seeds. A patch that no longer applies
fails too: it proves nothing any more and has to be made anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SOURCES = ("atoll", "orchestrator", "agents", "sims")
SEEDS = 200
LIMIT_S = 1_200


def hunt(patch: Path) -> str | None:
    """None when the mutant was caught, else why not."""
    with tempfile.TemporaryDirectory(prefix="atoll-mutant-") as folder:
        for name in SOURCES:
            shutil.copytree(REPOSITORY / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        applied = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", "-C1", "-p1", str(patch)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if applied.returncode != 0:
            return f"does not apply: {applied.stderr.strip()}"
        done = subprocess.run(
            [sys.executable, "-m", "sims.soak", "--seeds", str(SEEDS), "--until-violation"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    failures = [line.strip() for line in done.stdout.splitlines() if "FAILED:" in line]
    if not failures:
        return f"survived {SEEDS} seeds\n{done.stdout[-500:]}{done.stderr[-500:]}"
    seeds = next((line for line in done.stdout.splitlines() if " seeds from " in line), "")
    print(f"{patch.stem}: caught ({seeds.split(' from ')[0]}): {failures[0]}", flush=True)
    return None


def main(names: list[str]) -> int:
    """Hunt the named mutants, or all."""
    patches = [path for path in sorted(HERE.glob("*.patch")) if not names or path.stem in names]
    if not patches:
        print("no such mutant")
        return 2
    failed = 0
    for patch in patches:
        began_s = time.monotonic()
        problem = hunt(patch)
        if problem is not None:
            failed += 1
            print(f"{patch.stem}: NOT CAUGHT after {time.monotonic() - began_s:.0f} s: {problem}", flush=True)
    print(f"{len(patches) - failed} of {len(patches)} mutants were caught")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
