"""A trace's file -> its jobs, one after the other, in order of arrival.

Decides which kind of file it is, and what makes a trace as a whole unbelievable: rows out of order, more of them than anybody means,
times in another unit. Whoever wants the rest of a bad file skips what is bad, and is told what that was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atoll.model.errors import FieldError, SourceError, quoted
from sims.traces.cells import CellParser
from sims.traces.job import TraceJob
from sims.traces.lines import CsvSource, JsonSource
from sims.traces.metadata import TraceMeta
from sims.traces.parquet import ParquetSource

# Two weeks of 40 jobs a second. A file with more is most likely one that was joined to itself; who means it says so.
ROWS_MAX: Final = 50_000_000
# More jobs a second, over all of a trace, than any service of generative media has seen: its times are in seconds.
_RATE_PER_S_MAX: Final = 5_000
# So many rows must have come before a rate is one.
_RATE_FROM_ROWS: Final = 1_000
_US: Final = 1_000_000
SUFFIXES: Final = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is asked of a trace besides its form. `models`: those that there are (and their fine-tunes); None: any.

    `dense`: so many jobs a second are meant. `skip_bad`: rows that are wrong are left out and counted. `any_order`: whoever reads sorts.
    """

    models: Collection[str] | None = None
    rows_max: int = ROWS_MAX
    dense: bool = False
    skip_bad: bool = False
    any_order: bool = False


@dataclass(slots=True, kw_only=True)
class Skipped:
    """Rows that were left out, by the column that was wrong; the first of each as it would have been refused."""

    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, error: SourceError) -> None:
        """One more."""
        self.rows[error.field] += 1
        self.first.setdefault(error.field, str(error))


class TraceFile:
    """A trace's file. Its jobs may be read more than once, also at the same time; `skipped` is of the last reading that ended."""

    def __init__(self, path: Path, rules: Rules = Rules()) -> None:
        self.path = path
        self.rules = rules
        self.skipped = Skipped()
        self._source = _source(path)
        self.columns = self._source.columns

    @property
    def meta(self) -> TraceMeta:
        """What it says of itself."""
        return self._source.meta

    @property
    def rows_claimed(self) -> int | None:
        """How many rows it says it has, where its form says so."""
        return self._source.rows_claimed if isinstance(self._source, ParquetSource) else None

    def jobs(self) -> Iterator[TraceJob]:
        """All of them. SourceError for the first row that is wrong, and for what makes the whole unbelievable."""
        self._check_rows(0, self.rows_claimed or 0)
        parser = CellParser(self.columns, self.rules.models)
        skipped = Skipped()
        first_us, last_us, count = 0, 0, 0
        for row, (number, cells) in enumerate(self._source.rows(), start=1):
            if row > self.rules.rows_max:
                self._check_rows(number, row)
            try:
                if isinstance(cells, FieldError):
                    raise cells
                job = parser.job(cells)
                if job.arrival_us < last_us and not self.rules.any_order:
                    expected = f"at least {last_us}, that of the row before; 'atoll sim trace convert --sort' puts rows in order"
                    raise FieldError("arrival_us", job.arrival_us, expected)
            except FieldError as error:
                wrong = SourceError(str(self.path), number, error.field, error.value, error.expected)
                if not self.rules.skip_bad:
                    raise wrong from None
                skipped.add(wrong)
                continue
            if not count:
                first_us = job.arrival_us
            last_us, count = job.arrival_us, count + 1
            if count % _RATE_FROM_ROWS == 0 and not self.rules.any_order:
                self._check_rate(number, count, last_us - first_us)
            yield job
        self.skipped = skipped
        self._check_end(count, skipped)

    def _check_rows(self, number: int, rows: int) -> None:
        if rows > self.rules.rows_max:
            expected = f"at most {self.rules.rows_max} rows; --rows-max allows more"
            raise SourceError(str(self.path), number, "rows", rows, expected)

    def _check_rate(self, number: int, count: int, span_us: int) -> None:
        """At the first rows that tell: a burst of as many jobs in one second is believed, if a pause comes before or after it."""
        if self.rules.dense or count < 10 * _RATE_FROM_ROWS or count * _US <= _RATE_PER_S_MAX * span_us:
            return
        said = f"{count} jobs within {span_us} us"
        expected = f"microseconds, at most {_RATE_PER_S_MAX} jobs a second: multiply seconds by 1,000,000; --dense if so many are meant"
        raise SourceError(str(self.path), number, "arrival_us", said, expected)

    def _check_end(self, count: int, skipped: Skipped) -> None:
        if count:
            return
        if skipped.rows:
            column, _ = skipped.rows.most_common(1)[0]
            raise SourceError(str(self.path), 0, "rows", "all skipped", f"a row that is right; first: {skipped.first[column]}")
        raise SourceError(str(self.path), 0, "rows", "none", "at least one job")


def _source(path: Path) -> CsvSource | JsonSource | ParquetSource:
    name = path.name.lower()
    if not path.is_file():
        raise FieldError("FILE", str(path), "a trace's file" if path.exists() else "a file that exists")
    try:
        if name.endswith(".parquet"):
            return ParquetSource(path)
        if name.endswith((".csv", ".csv.gz")):
            return CsvSource(path)
        if name.endswith((".jsonl", ".jsonl.gz")):
            return JsonSource(path)
    except OSError as error:
        raise FieldError("FILE", str(path), f"a file that can be read: {error.strerror or error}") from None
    raise FieldError("FILE", str(path), f"a name that ends in one of {', '.join(SUFFIXES)}")


def as_text(skipped: Skipped) -> list[str]:
    """One line for each reason: how many rows, and the first of them."""
    return [f"skipped {rows} rows, {quoted(column)}: {skipped.first[column]}" for column, rows in skipped.rows.most_common()]
