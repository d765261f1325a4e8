"""A fleet of real processes under load and under faults: `python -m tests.chaos [--times N] [--rate N] [--fault NAME ...] [--write]`.

Each fault strikes so often while 200 jobs a second are submitted, half of them twice; then every job must have ended, once. Ends with 0
when no promise was broken, and no run showed nothing. `--write` puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.programs import ROOT, fleet_of
from tests.chaos.run import COLUMNS, Outcome, declare, play
from tests.integration.etcd_members import Ports

PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- chaos -->\n"
END: Final = "<!-- end: chaos -->\n"


def table(outcomes: Iterable[Outcome]) -> str:
    """As the page shows it."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(outcome.figures for outcome in outcomes)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(text: str) -> None:
    """Put the table into the page, in place of the last one."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(faults: Sequence[Fault], *, times: int, rate: float, seed: int, ports: Ports) -> list[Outcome]:
    """One fleet after the other, each struck by one fault."""
    outcomes = []
    for fault in faults:
        with tempfile.TemporaryDirectory(prefix="atoll-chaos-") as folder:
            fleet = fleet_of(Path(folder), ports, etcd=fault.etcd)
            try:
                declare(fleet)
                print(f"{fault.name}: {times} times under {rate:g} submits a second", flush=True)
                outcome = asyncio.run(play(fleet, fault, times=times, rate=rate, seed=seed))
            finally:
                asyncio.run(fleet.end())
        outcomes.append(outcome)
        print("  " + ", ".join(f"{name}: {figure}" for name, figure in zip(COLUMNS[1:], outcome.figures[1:], strict=True)), flush=True)
        for one in outcome.broken:
            print(f"  BROKEN: {one}", flush=True)
        if outcome.vacuous:
            print(f"  VACUOUS: {outcome.vacuous}", flush=True)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real processes under load and faults.")
    parser.add_argument("--times", type=int, default=10, help="how often each fault strikes")
    parser.add_argument("--rate", type=float, default=200.0, help="submits a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", choices=[fault.name for fault in FAULTS], help="only this one; may be repeated")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if not options.fault or fault.name in options.fault]
    outcomes = run(faults, times=options.times, rate=options.rate, seed=options.seed, ports=_free_port)
    text = table(outcomes)
    print(text)
    if options.write:
        write(text)
    return 1 if any(outcome.broken or outcome.vacuous for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
