"""`atoll sim compare`: policies on one trace and fleet, seed by seed and load by load.

Decides options only; what is done with them is in `studies`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import arguments
from atoll.cli.sim import studies, world
from atoll.cli.sim.trace import Dense, RowsMax, SkipBad


def compare(
    trace: world.Trace,
    *,
    policies: Annotated[
        str, typer.Option("--policies", metavar="NAME,...", help="Names or files; others are compared with the first.")
    ] = "default,least-loaded",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N", show_default=False, help="So many worlds, the same for each. (default 3)")
    ] = None,
    loads: Annotated[
        str | None,
        typer.Option("--loads", metavar="LOAD,...", show_default=False, help="Such as 0.5,0.75,0.9. (default: as the trace has it)"),
    ] = None,
    fleet: world.Fleet = "clusters.yaml",
    scale: world.Scale = "1",
    copies: world.Copies = None,
    sigma: world.Sigma = None,
    warm_up: world.WarmUpText = None,
    weather: world.WeatherName = "calm",
    sample: world.Sample = "60s",
    ideal: studies.Ideal = False,
    ablate: studies.Ablate = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", show_default=False, help="Keep all results there; what is there is not run again."),
    ] = None,
    workers: studies.Workers = None,
    ray: studies.Ray = None,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
) -> None:
    """Play a trace by several policies and say which is better, and how sure that is.

    All see the same jobs and, seed by seed, the same speeds and losses. From three seeds on each difference has a confidence interval, and
    a star where chance alone would hardly do as much. Same seeds, same digest, on any number of processes.
    """
    from sims.study.sweeping import POLICIES_MAX, SEEDS_MAX, Plan, checked

    plan = Plan(
        policies=world.policies("--policies", policies, POLICIES_MAX),
        loads_milli=world.loads_milli("--loads", loads),
        seeds=tuple(range(arguments.whole("--seeds", seeds, 1, SEEDS_MAX, 3))),
        ideal=ideal,
        ablate=ablate,
    )
    study = world.World(
        trace=trace, fleet=fleet, scale=scale, sigma=sigma, warm_up=warm_up, weather=weather, sample=sample, copies=copies,
        skip_bad=skip_bad, rows_max=rows_max, dense=dense,
    ).study()  # fmt: skip
    studies.conduct(study, checked(study, plan), out, workers, ray)
