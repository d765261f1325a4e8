"""What all loaders share: rows of somebody else's file, names made of theirs, choices that depend on a name alone.

Decides how a record's ids become ours and how what it lacks is drawn: by a digest, so that the same row gives the same job everywhere.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from atoll.model.errors import FieldError, SourceError
from atoll.model.ids import ModelId, parse_name
from atoll.model.modelspec import ModelSpec
from sims.traces.generating import REGIONS
from sims.traces.job import ARRIVAL_US_MAX, TraceJob
from sims.traces.metadata import TraceMeta
from sims.traces.reading import Rules, Skipped
from sims.traces.unpacking import lines_of

# Of a hundred base models whose kind the record does not say so many are taken for makers of films.
VIDEO_SHARE: Final = 0.08
Choice = TypeVar("Choice")
Made = TypeVar("Made")
_US = 1_000_000


@dataclass(slots=True, kw_only=True)
class Record:
    """What a loader is given, and `skipped`: what it left out of it. `video_share`: films, of base models whose kind is not recorded."""

    path: Path
    rules: Rules
    seed: int
    catalogue: Mapping[ModelId, ModelSpec]
    video_share: float = VIDEO_SHARE
    skipped: Skipped = field(default_factory=Skipped)

    def each(self, rows: Iterator[tuple[int, Any]], make: Callable[[Any], Made | None]) -> Iterator[Made]:
        """What is made of each row but those that are none (`make` says None), with the row in the error for one that is wrong."""
        self.skipped = Skipped()
        for count, (number, row) in enumerate(rows, start=1):
            if count > self.rules.rows_max:
                raise SourceError(str(self.path), number, "rows", count, f"at most {self.rules.rows_max} rows; --rows-max allows more")
            try:
                if isinstance(row, FieldError):
                    raise row
                made = make(row)
            except FieldError as error:
                wrong = SourceError(str(self.path), number, error.field, error.value, error.expected)
                if not self.rules.skip_bad:
                    raise wrong from None
                self.skipped.add(wrong)
                continue
            if made is not None:
                yield made

    def random(self, *names: object) -> Random:
        """Chance that depends on these names and the seed alone."""
        return Random(":".join(map(str, (self.seed, *names))))

    def pick(self, choices: Mapping[Choice, int], *names: object) -> Choice:
        """One of them by its weight, the same for the same names."""
        at = self.random(*names).random() * sum(choices.values())
        for choice, weight in choices.items():
            at -= weight
            if at < 0:
                return choice
        return next(iter(choices))

    def region(self, tenant: str) -> str:
        """Where a tenant is."""
        return self.pick({name: share for name, (share, _) in REGIONS.items()}, "region", tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One kind of record. `in_order`: its rows are sorted by arrival; `draws_films`: which models make films is drawn."""

    name: str
    about: str
    meta: TraceMeta
    jobs: Callable[[Record], Iterator[TraceJob]]
    in_order: bool = True
    draws_films: bool = False


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | FieldError]]:
    """Rows of a CSV file that has at least these columns. SourceError where it has not."""
    header: list[str] = []
    for number, line in lines_of(path):
        text = line.decode("utf-8", "surrogateescape").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        if not text:
            continue
        try:
            cells = text.split(",") if '"' not in text else next(csv.reader([text], strict=True))
        except csv.Error:
            yield number, FieldError("row", text, "cells between commas, with paired quotes")
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise SourceError(
                    str(path), number, "columns", ",".join(header), f"also {', '.join(lacking)}; is it another record (--from)?"
                )
        elif len(cells) != len(header):
            yield number, FieldError("row", f"{len(cells)} cells", f"{len(header)} cells, as the header has")
        else:
            yield number, dict(zip(header, cells, strict=True))
    if not header:
        raise SourceError(str(path), 1, "file", "", f"a header line with {', '.join(columns)}")


def json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """Objects of a file of JSON lines that have at least these names."""
    for number, line in lines_of(path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(name in found for name in columns):
            shown = line.decode("utf-8", "replace")
            yield number, FieldError("row", shown, f"a JSON object with {', '.join(columns)}; is it another record (--from)?")
        else:
            yield number, found


def number_of(row: Mapping[str, Any], column: str, low: float, high: float) -> float:
    """A figure of a row. FieldError for what is none, or out of bounds."""
    try:
        found = float(row[column])
    except (TypeError, ValueError):
        found = float("nan")
    if not low <= found <= high:
        raise FieldError(column, row[column], f"a number from {low:g} to {high:g}")
    return found


def moment_us(row: Mapping[str, Any], column: str) -> int:
    """Microseconds since 1970 of a moment such as "2023-11-16 18:17:03.9799600"."""
    text = str(row[column]).strip()
    whole, _, fraction = text.partition(".")
    try:
        seconds = int(datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
        return seconds * _US + int(f"{fraction:0<6}"[:6])
    except ValueError:
        raise FieldError(column, text, "a moment such as 2023-11-16 18:17:03.9") from None


def arrival_us(seconds: float) -> int:
    """Seconds since the record began, in microseconds."""
    return min(round(seconds * _US), ARRIVAL_US_MAX)


def named(prefix: str, text: str) -> str:
    """A name that is legal here, the same for the same text."""
    slug = text.strip().lower()
    try:
        return parse_name(prefix, slug)
    except FieldError:
        return f"{prefix}{blake2b(text.encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()}"
