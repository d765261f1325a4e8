"""`python -m tests.bench`: every figure, with the machine it was measured on; with names of cases, these of the placing core alone."""

from __future__ import annotations

import argparse

from tests.bench import core, learning, machine, servers


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Print every figure of this machine.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"only these of the placing core: {', '.join(core.CASES)}")
    cases: list[str] = parser.parse_args().cases
    for name in cases:
        if name not in core.CASES:
            parser.error(f"CASE {name!r} is not known: expected one of {', '.join(core.CASES)}")
    print(machine.describe(), flush=True)
    if cases:
        core.main(cases)
        return
    core.main()
    learning.main()
    servers.main()


main()
