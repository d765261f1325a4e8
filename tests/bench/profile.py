"""`python -m tests.bench.profile`: where the time of placing goes, function by function, on the fleet of the bench.

A profiler slows small functions more than large ones: read the order, take the figures from `make bench`.
"""

from __future__ import annotations

import cProfile
import pstats
import random

from tests.bench.core import Case, prepare

_JOBS = 3_000
_LINES = 40


def main() -> None:
    """Print the functions that take most of their own time."""
    case = Case()
    load = prepare(case)
    profile = cProfile.Profile()
    profile.enable()
    load.run(case.warm_up, _JOBS, random.Random(2))
    profile.disable()
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(_LINES)


if __name__ == "__main__":
    main()
