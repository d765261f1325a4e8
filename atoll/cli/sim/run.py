"""`atoll sim run`: a trace, a fleet and a policy in, the figures of what would have become of it out.

Decides options and how figures look; the run itself is `sims.study`'s matter, which is loaded when the verb runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from atoll.cli import arguments
from atoll.cli.figures import NONE, count, duration
from atoll.cli.output import Form, note, say, show_plain
from atoll.cli.policies import load
from atoll.cli.session import session
from atoll.cli.sim import world
from atoll.cli.sim.counting import told
from atoll.cli.sim.trace import Dense, RowsMax, SkipBad
from atoll.model.errors import FieldError

Ideal = Annotated[
    bool, typer.Option("--ideal", help="Also find how much of the load that the ideal carries the policy does; ten runs more.")
]


def run(
    trace: world.Trace,
    *,
    fleet: world.Fleet = "clusters.yaml",
    scale: world.Scale = "1",
    policy: Annotated[str, typer.Option("--policy", metavar="POLICY", help="A policy's name, or a file.")] = "default",
    seed: Annotated[str | None, typer.Option("--seed", metavar="N", show_default=False, help="Of all chance. (default 0)")] = None,
    load_: Annotated[
        str | None,
        typer.Option("--load", metavar="LOAD", show_default=False, help="Bring the trace to this share of the fleet. (default: as it is)"),
    ] = None,
    copies: world.Copies = None,
    sigma: world.Sigma = None,
    warm_up: world.WarmUpText = None,
    weather: world.WeatherName = "calm",
    sample: world.Sample = "60s",
    ideal: Ideal = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", show_default=False, help="Keep all rows there: jobs.parquet and sites.parquet.")
    ] = None,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
) -> None:
    """Play a trace on a fleet in virtual time, with the deciding code of the live programs. Same seed, same digest.

    Interrupted, it keeps nothing: a part of a run is not its result.
    """
    from sims.report.reading import read_report
    from sims.study.bounding import pooled
    from sims.study.running import Run, carry_out

    form = session().form
    one = Run(policy=load(policy), seed=arguments.whole("--seed", seed, 0, 2**63 - 1), load_milli=world.load_milli("--load", load_))
    study = world.World(
        trace=trace, fleet=fleet, scale=scale, sigma=sigma, warm_up=warm_up, weather=weather, sample=sample, copies=copies,
        skip_bad=skip_bad, rows_max=rows_max, dense=dense,
    ).study()  # fmt: skip
    world.note_if_short(study, (one.load_milli, 1_000 if ideal else 0))
    with _folder(out) as folder:
        with told("played", study.trace.jobs) as heard:
            carry_out(study, one, folder, heard)
        if ideal:
            with told("played to find the highest load", None) as heard:
                pooled(study, one, folder, heard)
        report = read_report([folder])
        (found,) = report.comparison.groups[0].runs
        if form in {Form.JSON, Form.YAML}:
            show_plain(form, {**asdict(found.figures), "metrics": dict(found.metrics)})
        else:
            from rich.console import Console

            from sims.report.summary import summary

            Console(file=sys.stdout, highlight=False).print(summary(report))
            speed = f"{found.figures.jobs_per_wall_s:.0f} jobs a second" if found.figures.jobs_per_wall_s is not None else NONE
            say("")
            say(f"policy {one.policy.name} ({one.policy.identity.digest}), seed {one.seed}, digest {found.figures.digest}")
            say(f"ended: {', '.join(f'{number} {state}' for state, number in found.figures.states.items())}")
            say(f"{duration(found.metadata.simulated_us)} of fleet time, played in {duration(found.metadata.wall_us)} ({speed})")
    if out is not None:
        note(f"wrote {count(study.trace.jobs, 'job')} to {out}")


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        if out.exists() and not out.is_dir():
            raise FieldError("--out", str(out), "a folder, or a name that is free")
        yield out
        return
    with TemporaryDirectory(prefix="atoll-sim-") as folder:
        yield Path(folder)
