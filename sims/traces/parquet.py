"""Traces as Parquet: a file's row groups -> rows of cells, and jobs -> row groups.

Decides how columns are typed and how many rows are in memory at once. Needs pyarrow, which only this module imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from atoll.model.errors import FieldError, SourceError
from sims.traces.cells import check_columns
from sims.traces.job import COLUMNS, REQUIRED, WHOLE, TraceJob
from sims.traces.lines import Row
from sims.traces.metadata import KEY, TraceMeta, parse_meta

# Rows in memory at once: some 20 MB of jobs when written, a few when read.
GROUP_ROWS: Final = 65_536
_BATCH_ROWS: Final = 8_192
# A row group is unpacked as a whole, column by column: sixty times what is written here.
_GROUP_BYTES_MAX: Final = 512 * 1024 * 1024
_ADAPTERS: Final = "adapters"


def arrow() -> Any:
    """pyarrow and pyarrow.parquet. FieldError naming the extra where they are not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise FieldError(
            "pyarrow", "not installed", "the extra 'sim' for Parquet: pip install 'atoll[sim]'; CSV and JSONL need none"
        ) from None
    return pa, parquet


class ParquetSource:
    """A Parquet file. Texts are read as dictionaries: a long one that stands in each row is one text, not a row's worth of memory each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        pyarrow, _ = arrow()
        self._refusals = (pyarrow.ArrowException, OSError, ValueError)
        with self._opened() as opened:
            self.columns = tuple(opened.schema_arrow.names)
            said = (opened.schema_arrow.metadata or {}).get(KEY.encode(), b"").decode("utf-8", "replace")
            self.rows_claimed = int(opened.metadata.num_rows)
            try:
                check_columns(self.columns)
                self.meta = parse_meta(said) or TraceMeta()
            except FieldError as error:
                raise SourceError(str(path), 0, error.field, error.value, error.expected) from None
            self._check_types(pyarrow, opened.schema_arrow)
            for index in range(opened.metadata.num_row_groups):
                unpacked_bytes = opened.metadata.row_group(index).total_byte_size
                if unpacked_bytes > _GROUP_BYTES_MAX:
                    expected = f"row groups of at most {_GROUP_BYTES_MAX} bytes; write it with row_group_size={GROUP_ROWS}"
                    raise SourceError(str(path), 0, f"row group {index}", f"{unpacked_bytes} bytes", expected)

    def rows(self) -> Iterator[Row]:
        """All rows, numbered from 1."""
        number = 0
        used = [name for name in self.columns if name in COLUMNS]
        with self._opened() as opened:
            batches = opened.iter_batches(batch_size=_BATCH_ROWS, columns=used, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except self._refusals as error:
                    raise self._unreadable(error) from None
                if batch is None:
                    return
                by_name = {name: _cells(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
                blank = [None] * batch.num_rows
                for cells in zip(*(by_name.get(name, blank) for name in self.columns), strict=True):
                    number += 1
                    yield number, cells

    def _opened(self) -> Any:
        pyarrow, parquet = arrow()
        try:
            with parquet.ParquetFile(self._path) as plain:
                leaves = [plain.schema.column(index) for index in range(len(plain.schema))]
                texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            return parquet.ParquetFile(self._path, read_dictionary=texts, pre_buffer=False)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(error) from None

    def _check_types(self, pyarrow: Any, schema: Any) -> None:
        """Cells of other types would each be refused; said once, for the column, it is understood."""
        types = pyarrow.types
        for name in self.columns:
            found = schema.field(name).type
            if name in WHOLE and not types.is_integer(found) and not types.is_null(found):
                hint = "; seconds as fractions: multiply by 1,000,000" if types.is_floating(found) and name == REQUIRED[0] else ""
                raise SourceError(str(self._path), 0, name, str(found), f"a column of whole numbers (int64){hint}")

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(str(self._path), 0, "file", str(error).splitlines()[0][:200], "a whole Parquet file")


def _cells(column: Any) -> Sequence[Any]:
    """A column's values as Python has them. A dictionary's texts are made once each."""
    if hasattr(column, "dictionary"):
        texts = column.dictionary.to_pylist()
        return [None if index is None else texts[index] for index in column.indices.to_pylist()]
    found: list[Any] = column.to_pylist()
    return found


def schema(meta: TraceMeta) -> Any:
    """How a trace is typed in Parquet."""
    pyarrow, _ = arrow()
    adapter = pyarrow.struct([("adapter_id", pyarrow.string()), ("scale_milli", pyarrow.int32())])
    types = {_ADAPTERS: pyarrow.list_(adapter), **{name: pyarrow.int64() for name in WHOLE}}
    fields = [pyarrow.field(name, types.get(name, pyarrow.string()), nullable=False) for name in COLUMNS]
    return pyarrow.schema(fields, metadata={KEY: meta.to_json()})


class ParquetSink:
    """Writes jobs as row groups."""

    def __init__(self, path: Path, meta: TraceMeta) -> None:
        pyarrow, parquet = arrow()
        self._schema = schema(meta)
        self._table = pyarrow.table
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._jobs: list[TraceJob] = []

    def add(self, job: TraceJob) -> None:
        """One more job."""
        self._jobs.append(job)
        if len(self._jobs) >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left; the file is whole then."""
        if self._jobs:
            self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Close it as it is."""
        self._writer.close()

    def _flush(self) -> None:
        columns: dict[str, list[Any]] = {name: [getattr(job, name) for job in self._jobs] for name in COLUMNS}
        columns["precision"] = [job.precision.value if job.precision else "" for job in self._jobs]
        columns["priority"] = [job.priority.value for job in self._jobs]
        columns[_ADAPTERS] = [
            [{"adapter_id": use.adapter_id, "scale_milli": use.scale_milli} for use in job.adapters] for job in self._jobs
        ]
        self._writer.write_table(self._table(columns, schema=self._schema), row_group_size=GROUP_ROWS)
        self._jobs.clear()
