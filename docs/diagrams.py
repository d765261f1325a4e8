"""Draws the state diagrams of docs/concepts.md from the transition tables, so that the docs cannot differ from the code.

`python docs/diagrams.py` rewrites the blocks between the markers; `--check` only says whether they are current.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from atoll.model.attempt import ATTEMPT_TABLE
from atoll.model.job import JOB_TABLE
from atoll.model.replica import REPLICA_TABLE
from atoll.model.site import ADMIN_TABLE, CONNECTION_TABLE

PAGE = Path(__file__).parent / "concepts.md"
TABLES: dict[str, Mapping[str, frozenset[str]]] = {
    "job": JOB_TABLE,
    "attempt": ATTEMPT_TABLE,
    "replica": REPLICA_TABLE,
    "site-connection": CONNECTION_TABLE,
    "site-admin": ADMIN_TABLE,
}


def mermaid(table: Mapping[str, frozenset[str]]) -> str:
    """A state diagram: the first state begins, states without successors end. Order is that of the table."""
    states = list(table)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {states[0]}"]
    lines += [f"    {old} --> {new}" for old in states for new in states if new in table[old]]
    lines += [f"    {state} --> [*]" for state in states if not table[state]]
    return "\n".join([*lines, "```"])


def drawn(text: str) -> str:
    """The page with every block drawn anew. Raises ValueError when a block is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- diagram: {name} -->", f"<!-- end: {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{PAGE.name} has no block between {begin} and {end}")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{mermaid(table)}\n{end}{after}"
    return text


def main() -> int:
    """Rewrite the page, or check it."""
    old = PAGE.read_text(encoding="utf-8")
    new = drawn(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
