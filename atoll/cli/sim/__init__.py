"""`atoll sim`: the simulator's commands. The verbs are in modules of their own, and load the simulator when they run."""

from __future__ import annotations

import typer

from atoll.cli.session import verb
from atoll.cli.sim import replay, report, run, trace, whatif
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
    app.add_typer(trace.app)
    root.add_typer(app)
