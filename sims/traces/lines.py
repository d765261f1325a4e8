"""Traces as text: CSV and JSON lines -> rows of cells, in the order of `columns`.

Decides how a row is laid out; what a cell may hold is decided by `cells`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from atoll.model.errors import FieldError, SourceError
from sims.traces.cells import OWN_PREFIX, check_columns
from sims.traces.job import COLUMNS
from sims.traces.metadata import TraceMeta, parse_meta
from sims.traces.unpacking import lines_of

# A row with its number, or what is wrong with it as a whole.
Row = tuple[int, Sequence[Any] | FieldError]
_BOM: Final = b"\xef\xbb\xbf"
_DELIMITERS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}
# What a cell of a line that is no UTF-8 cannot be, so that its column refuses it.
_ENCODING: Final = "surrogateescape"


class CsvSource:
    """A CSV file: comments, a header, rows. A row is one line: no column of a trace holds a line's end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.meta = TraceMeta()
        self._header_line = 0
        for number, line in lines_of(path):
            text = line.removeprefix(_BOM).decode("utf-8", _ENCODING)
            if text.startswith("#"):
                self._read_comment(number, text)
            elif text.strip():
                self._header_line = number
                self.columns = self._read_header(number, text)
                break
        if not self._header_line:
            raise SourceError(str(path), 1, "file", "", f"a header line with the columns {', '.join(COLUMNS[:3])} and rows")

    def rows(self) -> Iterator[Row]:
        """All rows, from the first."""
        width = len(self.columns)
        for number, line in lines_of(self._path):
            if number <= self._header_line or not line:
                continue
            text = line.decode("utf-8", _ENCODING)
            cells = text.split(",") if '"' not in text else _quoted_cells(text)
            if isinstance(cells, list) and len(cells) != width:
                yield number, FieldError("row", f"{len(cells)} cells", f"{width} cells, as the header has")
            else:
                yield number, cells

    def _read_comment(self, number: int, text: str) -> None:
        try:
            self.meta = parse_meta(text.lstrip("# ")) or self.meta
        except FieldError as error:
            _wrong(self._path, number, error)

    def _read_header(self, number: int, text: str) -> tuple[str, ...]:
        cells = _quoted_cells(text)
        if isinstance(cells, FieldError):
            _wrong(self._path, number, cells)
        names = tuple(cell.strip() for cell in cells)
        for mark, word in _DELIMITERS.items():
            if mark in text and len(names) == 1:
                raise SourceError(str(self._path), number, "columns", text, f"commas between columns, not {word}")
        try:
            check_columns(names)
        except FieldError as error:
            _wrong(self._path, number, error)
        return names


class JsonSource:
    """A file of JSON lines: perhaps a header, then one object a line."""

    columns = COLUMNS

    def __init__(self, path: Path) -> None:
        self._path = path
        self.meta = TraceMeta()
        self._header_line = 0
        for number, line in lines_of(path):
            if not line.strip():
                continue
            try:
                found = parse_meta(line.removeprefix(_BOM).decode("utf-8", _ENCODING))
            except FieldError as error:
                _wrong(path, number, error)
            if found is not None:
                self.meta, self._header_line = found, number
            break
        else:
            raise SourceError(str(path), 1, "file", "", 'one JSON object a line, such as {"arrival_us": 0, "model_id": ..., "tenant": ...}')

    def rows(self) -> Iterator[Row]:
        """All rows, from the first."""
        known: set[str] = set()
        for number, line in lines_of(self._path):
            if number > self._header_line and line.strip():
                yield number, _json_cells(line, known)


def _quoted_cells(text: str) -> list[str] | FieldError:
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        return FieldError("row", text, "cells between commas, with paired quotes")


def _json_cells(line: bytes, known: set[str]) -> list[Any] | FieldError:
    """`known`: names of columns that were checked already."""
    try:
        found = json.loads(line.removeprefix(_BOM), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return FieldError("row", line.decode("utf-8", "replace"), "a JSON object (without NaN or Infinity)")
    if not isinstance(found, dict):
        return FieldError("row", found, "a JSON object")
    if not known.issuperset(found):
        try:
            check_columns(tuple(found))
        except FieldError as error:
            return error
        known.update(name for name in found if not name.startswith(OWN_PREFIX))
    return [found.get(name) for name in COLUMNS]


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _wrong(path: Path, number: int, error: FieldError) -> NoReturn:
    raise SourceError(str(path), number, error.field, error.value, error.expected) from None
