"""Jobs -> a trace's file, one after the other. The file appears under its name once it is whole.

Decides which columns text files have (all of them; what is not given is empty, and absent in JSON); same jobs, same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

from atoll.model.errors import FieldError
from sims.traces.job import COLUMNS, REQUIRED, TraceJob
from sims.traces.metadata import TraceMeta
from sims.traces.parquet import ParquetSink
from sims.traces.reading import SUFFIXES

# Fast enough to keep up with a generator; more saves a tenth of the bytes for three times the time.
_GZIP_LEVEL: Final = 6
_DEFAULTS: Final = {field.name: field.default for field in TraceJob.__dataclass_fields__.values()}


class Sink(Protocol):
    """What jobs are written to."""

    def add(self, job: TraceJob) -> None:
        """One more job."""

    def close(self) -> None:
        """The file is whole."""

    def abandon(self) -> None:
        """Close it as it is."""


def write_trace(path: Path, meta: TraceMeta, jobs: Iterable[TraceJob]) -> int:
    """All of them; how many they were. FieldError for a name without a known ending, or a place that cannot be written."""
    count = 0
    with trace_sink(path, meta) as sink:
        for count, job in enumerate(jobs, start=1):  # noqa: B007 - the count is what is returned
            sink.add(job)
    return count


@contextmanager
def trace_sink(path: Path, meta: TraceMeta) -> Iterator[Sink]:
    """What to add jobs to; the file is there when the block ends well, and not otherwise."""
    if not path.name.lower().endswith(SUFFIXES):
        raise FieldError("FILE", str(path), f"a name that ends in one of {', '.join(SUFFIXES)}")
    part = path.with_name(f".{path.name}.part")
    try:
        sink = _sink(part, path.name.lower(), meta)
    except OSError as error:
        raise FieldError("FILE", str(path), f"a place that can be written: {error.strerror or error}") from None
    try:
        yield sink
        sink.close()
    except BaseException:
        sink.abandon()
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)


def _sink(part: Path, name: str, meta: TraceMeta) -> Sink:
    if name.endswith(".parquet"):
        return ParquetSink(part, meta)
    raw = part.open("wb")
    # Neither a moment nor a name in the packed file: same jobs, same bytes.
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=_GZIP_LEVEL, mtime=0) if name.endswith(".gz") else None
    text = io.TextIOWrapper(packed or raw, encoding="utf-8", newline="")
    return (_CsvSink if ".csv" in name else _JsonSink)(text, raw, meta)


class _TextSink(ABC):
    """Text, packed or not; closing it closes the file beneath a packed one too."""

    def __init__(self, text: io.TextIOWrapper, raw: IO[bytes], meta: TraceMeta) -> None:
        self._text = text
        self._raw = raw
        self._begin(meta)

    def close(self) -> None:
        """The file is whole."""
        self._text.close()
        self._raw.close()

    abandon = close

    @abstractmethod
    def add(self, job: TraceJob) -> None:
        """One more job."""

    @abstractmethod
    def _begin(self, meta: TraceMeta) -> None:
        """What stands before the first job."""


class _CsvSink(_TextSink):
    def _begin(self, meta: TraceMeta) -> None:
        self._text.write(f"# {meta.to_json()}\n")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def add(self, job: TraceJob) -> None:
        """One more job."""
        cells = given(job)
        if job.adapters:
            cells["adapters"] = ";".join(f"{use.adapter_id}:{use.scale_milli}" for use in job.adapters)
        self._rows.writerow([cells.get(name, "") for name in COLUMNS])


class _JsonSink(_TextSink):
    def _begin(self, meta: TraceMeta) -> None:
        self._text.write(f"{meta.to_json()}\n")

    def add(self, job: TraceJob) -> None:
        """One more job."""
        cells = given(job)
        if job.adapters:
            cells["adapters"] = [{"adapter_id": use.adapter_id, "scale_milli": use.scale_milli} for use in job.adapters]
        self._text.write(f"{json.dumps(cells)}\n")


def given(job: TraceJob) -> dict[str, Any]:
    """The columns of a job that say something."""
    found = {}
    for name in COLUMNS:
        value = getattr(job, name)
        if name in REQUIRED or value != _DEFAULTS[name]:
            found[name] = value
    return found
