"""`python -m tests.bench`: the usual figures, with the machine it was measured on; with names of cases, these alone."""

from __future__ import annotations

import argparse
from typing import Final

from tests.bench import core, learning, machine, moves, quotes, servers, sim

# Besides the cases of the placing core.
_OTHERS: Final = {"learning": learning.main, "moves": moves.main, "quotes": quotes.main, "servers": servers.main, "sim": sim.main}
_USUAL: Final = (*core.USUAL, *_OTHERS)
_NAMES: Final = (*core.CASES, *_OTHERS)


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Print the figures of this machine.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"only these: {', '.join(_USUAL)}, or several of one kind, joined by +")
    cases: list[str] = parser.parse_args().cases
    for name in cases:
        if name not in _NAMES:
            parser.error(f"CASE {name!r} is not known: expected one of {', '.join(_NAMES)}")
    print(machine.describe(), flush=True)
    wanted = cases or _USUAL
    if placing := [name for name in wanted if name in core.CASES]:
        core.main(placing)
    for name, measured in _OTHERS.items():
        if name in wanted:
            measured()


main()
