"""`atoll sim`: the simulator's commands. The verbs are in modules of their own, and load the simulator when they run."""

from __future__ import annotations

import typer

from atoll.cli.session import verb
from atoll.cli.sim import compare, fidelity, replay, report, run, sweep, trace, whatif
from atoll.cli.verbs import Noun

app = typer.Typer(cls=Noun, name="sim", help="Traces in, decisions about the fleet out: the simulator.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    verb(
        app,
        "run",
        epilog="""
        atoll sim run day.parquet --scale 1/32 --warm-up 10m
        atoll sim run day.parquet --policy own.yaml --seed 1 --out result -o json
        """,
    )(run.run)
    verb(
        app,
        "compare",
        epilog="""
        atoll sim compare day.parquet --fleet fleet-small --policies default,least-loaded,random --seeds 5 --loads 0.5,0.9 --warm-up 20%
        atoll sim compare day.parquet --fleet fleet-small --policies own.yaml,default --ideal --out study
        """,
    )(compare.compare)
    verb(
        app,
        "sweep",
        epilog="""
        atoll sim sweep study.yaml  # on all cores; the same again goes on where it was stopped
        atoll sim sweep study.yaml --ablate --workers 4
        atoll sim sweep study.yaml --ray 10.0.0.1:6379
        """,
    )(sweep.sweep)
    verb(
        app,
        "report",
        epilog="""
        atoll sim report day/ --out report.html  # one result
        atoll sim report default-*/ random-*/ --out report.html  # others compared with the first
        atoll sim report day/ -o json  # the figures alone
        """,
    )(report.report)
    verb(
        app,
        "replay",
        epilog="""
        atoll sim replay run.jsonl  # does this code decide as was decided then?
        atoll sim replay run.jsonl --until job/JOB  # why it was placed where it was
        atoll sim replay run.jsonl --until 12m30s --explain JOB
        """,
    )(replay.replay)
    verb(
        app,
        "what-if",
        epilog="""
        atoll sim what-if --policy own.yaml  # before the fleet runs by it
        atoll sim what-if --drain aws-use1 --add site.yaml --hours 24 --seeds 10
        atoll sim what-if --policy least-loaded --trace friday.parquet -o json
        """,
    )(whatif.what_if)
    verb(
        app,
        "fidelity",
        epilog="""
        atoll sim fidelity trace.parquet --sites neo-osa,neo-icn --load 0.8
        atoll sim fidelity trace.parquet --sites az-sec --load 0.8 --time-scale 5 --noise-seeds 20 -o json
        """,
    )(fidelity.fidelity)
    app.add_typer(trace.app)
    root.add_typer(app)
