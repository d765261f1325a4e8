"""`python -m tests.bench`: every figure, with the machine it was measured on."""

from __future__ import annotations

from tests.bench import core, learning, machine, servers


def main() -> None:
    """Print them."""
    print(machine.describe(), flush=True)
    core.main()
    learning.main()
    servers.main()


main()
