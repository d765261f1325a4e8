"""Rows of a CSV table with typed readers of their cells; every mistake goes to Problems with its line.

Decides how a table is laid out (a header, equal rows). Must not know what it describes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from atoll.catalog.figures import parse_figure, parse_whole, range_text
from atoll.catalog.likeness import alike
from atoll.catalog.problems import Problems, one_of

T = TypeVar("T")

# Some 130,000 rows of times, which take 350 MB while they are read.
TABLE_BYTES_MAX: Final = 8 * 1024 * 1024

# What spreadsheets put between columns where a comma stands in numbers.
_OTHER_MARKS: Final = ((";", "semicolons"), ("\t", "tabs"))


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
        raise problems.give_up(1, "file", "empty", "a table with a header line")
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader)]
        lacks = sorted(columns - set(header))
        if lacks:
            problems.add(1, "header", ",".join(header), _lacking(lacks, header, columns))
        elif len(set(header)) < len(header):
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


def _lacking(lacks: list[str], header: list[str], columns: frozenset[str]) -> str:
    """What a header should have besides. One that is a single cell may have another mark between its columns."""
    parting = next((shown for mark, shown in _OTHER_MARKS if len(header) == 1 and len(columns & set(header[0].split(mark))) > 1), "")
    if parting:
        return f"commas between the columns, in place of {parting}"
    others = [name for name in header if name not in columns]
    meant = {name: alike(name, others, most=1) for name in lacks}
    named = ", ".join(f"{name} (is {close[0]!r} meant?)" if (close := meant[name]) else name for name in lacks)
    return f"also the {'columns' if len(lacks) > 1 else 'column'} {named}"


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
        raise problems.give_up(1, "file", "a header alone", "at least one row below the header")
    return found
