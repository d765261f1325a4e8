"""Which files the architecture tests look at, and how they are read. Knows no rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("atoll", "orchestrator", "agents", "sims")
EVERYTHING = (*PROGRAMS, "tests", "protos")
GENERATED = (REPOSITORY / "atoll" / "v1", REPOSITORY / "orchestrator" / "store" / "etcd" / "pb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement's target, as an absolute dotted name, and whether it runs when the module is imported."""

    target: str
    line: int
    at_import_time: bool


def python_files(*folders: str) -> list[Path]:
    """Every hand-written Python file under the folders of the repository, in a fixed order."""
    found: set[Path] = set()
    for folder in folders:
        found.update((REPOSITORY / folder).rglob("*.py"))
    return sorted(path for path in found if not any(folder in path.parents for folder in GENERATED))


def shown(path: Path, line: int | None = None) -> str:
    """``path:line`` relative to the repository, as editors understand it."""
    place = str(path.relative_to(REPOSITORY))
    return place if line is None else f"{place}:{line}"


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, those within functions and ``if TYPE_CHECKING`` included."""
    lazy = _lines_not_run_at_import(tree_of(path))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            # `from a import b` may name a module a.b or a thing in a; both questions are answered by the longer name.
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(target=target, line=node.lineno, at_import_time=node.lineno not in lazy)


def _lines_not_run_at_import(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        for statement in node.body:
            lines.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return lines


def is_within(name: str, package: str) -> bool:
    """Whether a dotted name is the package or lies in it."""
    return name == package or name.startswith(package + ".")
