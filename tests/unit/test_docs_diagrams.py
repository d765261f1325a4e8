"""The diagrams of the docs are those of the transition tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_state_diagrams_are_current() -> None:
    spec = importlib.util.spec_from_file_location("diagrams", DOCS / "diagrams.py")
    assert spec is not None
    assert spec.loader is not None
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    assert diagrams.drawn(page) == page, "run: python docs/diagrams.py"
