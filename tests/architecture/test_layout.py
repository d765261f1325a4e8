"""Rules of layout that no linter knows: lengths of files and functions, names of modules, docstrings, open ends."""

from __future__ import annotations

import ast
import re

from tests.architecture.sources import EVERYTHING, PROGRAMS, REPOSITORY, python_files, shown, tree_of

FILE_LINES = 400
FUNCTION_LINES = 70

# Names that say nothing about what is inside.
EMPTY_NAMES = frozenset({"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"})

OPEN_ENDS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
TEXT_SUFFIXES = {".py", ".proto", ".md", ".toml", ".yaml", ".yml", ".sh"}


def test_there_is_something_to_check() -> None:
    """The tests below would pass on an empty tree."""
    assert len(python_files(*EVERYTHING)) >= 20


def test_files_are_short() -> None:
    long = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*EVERYTHING)}
    offences = [f"{shown(path)} has {lines} lines" for path, lines in long.items() if lines > FILE_LINES]
    assert not offences, f"split by noun (limit {FILE_LINES}):\n" + "\n".join(offences)


def test_functions_are_short() -> None:
    offences = []
    for path in python_files(*EVERYTHING):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    offences.append(f"{shown(path, node.lineno)} {node.name} has {lines} lines")
    assert not offences, f"limit {FUNCTION_LINES}:\n" + "\n".join(offences)


def test_modules_are_named_for_what_they_hold() -> None:
    offences = [
        shown(path)
        for path in python_files(*EVERYTHING)
        if EMPTY_NAMES & {part.removesuffix(".py") for part in path.relative_to(REPOSITORY).parts}
    ]
    assert not offences, "\n".join(offences)


def test_every_module_says_what_it_is_for() -> None:
    """An ``__init__`` without any code needs no docstring; everything else does."""
    offences = [
        shown(path) for path in python_files(*EVERYTHING) if tree_of(path).body and not (ast.get_docstring(tree_of(path)) or "").strip()
    ]
    assert not offences, "without a module docstring:\n" + "\n".join(offences)


def test_every_module_postpones_annotations() -> None:
    offences = [
        shown(path)
        for path in python_files(*PROGRAMS)
        if any(not isinstance(node, ast.Expr) for node in tree_of(path).body)
        and "from __future__ import annotations" not in path.read_text(encoding="utf-8")
    ]
    assert not offences, "without `from __future__ import annotations`:\n" + "\n".join(offences)


def test_no_open_ends_in_the_text() -> None:
    """An open end belongs in an issue, where somebody sees it."""
    offences = []
    for folder in (*EVERYTHING, "docs", ".ci"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if not path.is_file() or (path.suffix not in TEXT_SUFFIXES and folder != ".ci"):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if OPEN_ENDS.search(line):
                    offences.append(f"{shown(path, number)}: {line.strip()[:80]}")
    assert not offences, "\n".join(offences)
