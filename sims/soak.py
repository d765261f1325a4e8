"""Seed after seed until interrupted: `python -m sims.soak [--seeds N] [--seed0 K] [--jobs-per-run N]`; `--replay SEED` shows one run.

Decides how a soak is reported. A failing seed prints one command that replays it; it is then added to `sims/regressions.txt` by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from sims.faults import Fault
from sims.run import Options, Outcome, run_seed


def replay_command(outcome: Outcome, jobs: int | None) -> str:
    """The one command that shows a failed run again."""
    return f"python -m sims.soak --replay {outcome.seed}" + ("" if jobs is None else f" --jobs-per-run {jobs}")


def main(arguments: list[str] | None = None) -> int:
    """0: every run kept every promise and was not vacuous."""
    parser = argparse.ArgumentParser(prog="python -m sims.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="how many; 0: until interrupted")
    parser.add_argument("--seed0", type=int, default=0, help="the first")
    parser.add_argument("--jobs-per-run", type=int, default=None, help="instead of a number drawn from the seed")
    parser.add_argument("--replay", type=int, default=None, help="one seed, with its whole history on standard output")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failing seed")
    parser.add_argument("--until-violation", action="store_true", help="stop at a broken promise, not at a vacuous run")
    given = parser.parse_args(arguments)
    options = Options(jobs=given.jobs_per_run)
    if given.replay is not None:
        return _show(run_seed(given.replay, options, listener=print), given.jobs_per_run)
    began_s = time.monotonic()
    fired: Counter[Fault] = Counter()
    failed = runs = jobs = 0
    try:
        while not given.seeds or runs < given.seeds:
            outcome = run_seed(given.seed0 + runs, options)
            runs += 1
            jobs += outcome.accepted
            fired.update(outcome.fired)
            if outcome.violation is not None or outcome.vacuous is not None:
                failed += 1
                _show(outcome, given.jobs_per_run)
                vacuous = outcome.violation is None
                if not (given.keep_going or (given.until_violation and vacuous)):
                    break
            if runs % 10 == 0:
                rate = runs / (time.monotonic() - began_s)
                print(f"{runs} seeds, {jobs} jobs, {failed} failed, {rate:.2f} seeds/s", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    print(f"{runs} seeds from {given.seed0}, {jobs} jobs, {failed} failed in {time.monotonic() - began_s:.0f} s")
    print("faults: " + ", ".join(f"{fault} {fired[fault]}" for fault in Fault if fired[fault]))
    return 1 if failed else 0


def _show(outcome: Outcome, jobs: int | None) -> int:
    states = ", ".join(f"{state} {count}" for state, count in sorted(outcome.states.items()))
    print(
        f"seed {outcome.seed}: {outcome.accepted} jobs ({states}), {outcome.events} events, "
        f"{outcome.virtual_us / 1e6:.0f} s of virtual time, digest {outcome.digest}"
    )
    print(f"  faults: {', '.join(fault for fault in Fault if fault in outcome.enabled) or 'none'}")
    if outcome.overcommits:
        print(f"  loads that did not fit: {outcome.overcommits}")
    if outcome.violation is not None:
        print(f"  FAILED: {outcome.violation}\n  replay: {replay_command(outcome, jobs)}")
        return 1
    if outcome.vacuous is not None:
        print(f"  VACUOUS: {outcome.vacuous}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
