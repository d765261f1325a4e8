"""`make gpu-check`: what Atoll does and predicts on this machine's GPU. Skipped with one line where there is none.

Decides what is asked for on the command line. What is measured is in the modules beside this one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.gpu import show
from tests.gpu.steps import STEPS, Plan, card, run_all


def main() -> int:
    """0 if everything held, or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check"), help="where results go (default: out/gpu-check)")
    parser.add_argument("--only", default="", help=f"some of {','.join(STEPS)}")
    parser.add_argument("--models", default="", help="time only these")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin to time no further model after this (default: 120)")
    parser.add_argument("--work", type=Path, default=None, help="a folder for 20 GB of weights (default: a temporary one)")
    parser.add_argument("--tiny", action="store_true", help="a try of the check itself: small models, also on a CPU")
    parser.add_argument("--step", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    from agents.runtime.hardware import find_devices

    if not find_devices() and not given.tiny:
        print("gpu-check: skipped, NVML finds no NVIDIA GPU on this machine")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    if given.step:
        plan = Plan(
            work=given.work,
            out=given.out,
            device="cuda" if find_devices() else "cpu",
            tiny=given.tiny,
            seconds=given.seconds,
            models=tuple(filter(None, given.models.split(","))),
        )
        result = STEPS[given.step](plan)
        (given.out / f"{given.step}.json").write_text(json.dumps(result, indent=1, default=str))
        return 0
    names = [name for name in STEPS if not given.only or name in given.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="atoll-gpu-") as temporary:
        work = given.work or Path(temporary)
        arguments = ["--out", str(given.out.resolve()), "--work", str(work.resolve()), "--seconds", str(given.seconds)]
        arguments += [*(["--models", given.models] if given.models else []), *(["--tiny"] if given.tiny else [])]
        found = run_all(arguments, names, given.out)
    return show.report(found, card()[0], given.out)


sys.exit(main())
