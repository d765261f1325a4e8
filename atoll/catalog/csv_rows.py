"""Rows of a CSV table with typed readers of their cells; every mistake goes to Problems with its line.

Decides how a table is laid out (a header, equal rows). Must not know what it describes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from atoll.catalog.figures import parse_figure, parse_whole, range_text
from atoll.catalog.problems import Problems, one_of

T = TypeVar("T")

TABLE_BYTES_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table. Readers answer a substitute after noting a mistake."""

    line: int
    cells: dict[str, str]
    problems: Problems

    def text(self, column: str) -> str:
        """The cell without blanks around it, perhaps empty."""
        return self.cells[column].strip()

    def figure(self, column: str, unit: int, low: int, high: int, *, default: int | None = None) -> int:
        """The cell as base units; an empty one is `default` where there is one."""
        text = self.text(column)
        if not text and default is not None:
            return default
        found = parse_figure(text, unit, low, high)
        if found is None:
            self.wrong(column, range_text(unit, low, high))
            return default if default is not None else low
        return found

    def whole(self, column: str, low: int, high: int, *, default: int | None = None) -> int:
        """The cell as a whole number; an empty one is `default` where there is one."""
        text = self.text(column)
        if not text and default is not None:
            return default
        found = parse_whole(text, low, high)
        if found is None:
            self.wrong(column, f"a whole number from {low} to {high}")
            return default if default is not None else low
        return found

    def wrong(self, column: str, expected: str) -> None:
        """Note that this cell is not what it should be."""
        self.problems.add(self.line, column, self.cells[column], expected)


def read_rows(text: str, problems: Problems, columns: frozenset[str]) -> list[Row]:
    """All rows of a table that has at least these columns. Raises SourceErrors when it is no such table."""
    if len(text) > TABLE_BYTES_MAX:
        raise problems.give_up(0, "file", f"{len(text)} characters", f"at most {TABLE_BYTES_MAX} characters")
    if not text.strip():
        raise problems.give_up(1, "file", "", "a table with a header line")
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader)]
        lacks = sorted(columns - set(header))
        if lacks:
            noun = "columns" if len(lacks) > 1 else "column"
            problems.add(1, "header", ",".join(header), f"also the {noun} {', '.join(lacks)}")
        if len(set(header)) < len(header):
            problems.add(1, "header", ",".join(header), "each column once")
        problems.check()
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                problems.add(reader.line_num, "row", f"{len(cells)} cells", f"{len(header)} cells, as the header has")
                continue
            rows.append(Row(line=reader.line_num, cells=dict(zip(header, cells, strict=True)), problems=problems))
    except csv.Error as error:
        raise problems.give_up(reader.line_num, "row", str(error), "comma-separated values with paired quotes") from None
    return rows


def known(row: Row, column: str, words: frozenset[str], kind: str) -> str:
    """The cell if it is one of `words`; else a note, and the first of them."""
    value = row.text(column)
    if value in words:
        return value
    row.wrong(column, one_of(value, words, kind))
    return min(words)


def parse_rows(text: str, file_name: str, columns: frozenset[str], parse: Callable[[Row], T]) -> tuple[T, ...]:
    """All rows of a table that has at least these columns and one row, each as `parse` reads it. Raises SourceErrors."""
    problems = Problems(file_name)
    found = tuple(parse(row) for row in read_rows(text, problems, columns))
    problems.check()
    if not found:
        raise problems.give_up(1, "file", "", "at least one row below the header")
    return found
