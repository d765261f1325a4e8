"""How a result is kept: a folder with `jobs.parquet` and `sites.parquet`, and in both what they are results of.

Decides the files' form, and that a half-written one is never taken for a result: rows go to files of another name, which get their own
when all is written and on the disk. Rows are held in memory one row group at a time, however long the run. Must not know where rows come
from, nor what is drawn from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from atoll.model.errors import AtollError, FieldError, SourceError
from sims.results.rows import JobRow, SiteRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = TypeVar("Row", JobRow, SiteRow)

JOBS_FILE: Final = "jobs.parquet"
SITES_FILE: Final = "sites.parquet"
_PARTIAL: Final = ".partial"
_METADATA_KEY: Final = b"atoll.result"
# Of the metadata's form: a reader refuses another one.
_VERSION: Final = 1
# As many rows as are held before they are written: 35 columns of them are some 10 MB, and a group of this size still compresses well.
_GROUP_ROWS: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlace:
    """Where a site of the result's fleet is and what it is made of: what a map shows."""

    site_id: str
    region: str = ""
    latitude_micro_deg: int = 0
    longitude_micro_deg: int = 0
    slots: int = 0
    gpu_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a result is of. Who repeats the run needs no more than this and the trace."""

    policy: str
    policy_digest: str
    seed: int
    trace: str  # where the jobs came from
    trace_licence: str  # on what terms; empty: not said
    fleet: str
    synthetic: bool  # figures of the fleet are invented
    load_milli: int = 0  # 0: as the trace has it
    fastest_load_milli: int = 0  # the same work, each job on the fastest GPUs, as a share of all GPUs alike
    warm_up_us: int = 0  # what arrives before is no part of any figure
    simulated_us: int = 0
    wall_us: int = 0
    digest: str = ""
    # The highest loads at which 95 of 100 jobs are in time, by this policy and by the ideal; 0: nobody looked.
    pooled_load_milli: int = 0
    ideal_load_milli: int = 0
    sites: tuple[SitePlace, ...] = ()


class MissingExtraError(AtollError):
    """A package of an optional part of Atoll is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed: results of simulations need the extra 'sim' (pip install 'atoll[sim]')")


class ResultWriter:
    """Writes one result; the folder has it when the `with` block ends well, and is as before when it does not.

    `finish` tells what is known only at the end (the digest, how long it took).
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self._folder = folder
        self._metadata = metadata

    def __enter__(self) -> ResultWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._jobs: _TableWriter[JobRow] = _TableWriter(self._folder / JOBS_FILE, JobRow)
        self._sites: _TableWriter[SiteRow] = _TableWriter(self._folder / SITES_FILE, SiteRow)
        return self

    def job(self, row: JobRow) -> None:
        self._jobs.add(row)

    def site(self, row: SiteRow) -> None:
        self._sites.add(row)

    def finish(self, metadata: Metadata) -> None:
        """The metadata as it is after the run."""
        self._metadata = metadata

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._jobs.close(self._metadata)
            self._sites.close(self._metadata)
        except BaseException:
            self._abandon()
            raise
        # Between these steps the folder has no jobs at all: never the jobs of one run beside the sites of another.
        (self._folder / JOBS_FILE).unlink(missing_ok=True)
        self._sites.publish()
        self._jobs.publish()

    def _abandon(self) -> None:
        try:
            self._jobs.abandon()
        finally:
            self._sites.abandon()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One result that can be read: its folder and what it is of."""

    folder: Path
    metadata: Metadata

    def jobs(self) -> Iterator[JobRow]:
        """Every job, in the order written, one row group in memory at a time."""
        return _rows(self.folder / JOBS_FILE, JobRow)

    def sites(self) -> Iterator[SiteRow]:
        """Every sample, as above."""
        return _rows(self.folder / SITES_FILE, SiteRow)

    def job_columns(self, *names: str) -> dict[str, NDArray[Any]]:
        """These columns of all jobs, as arrays: a long run does not fit as rows, a few of its columns do."""
        return _columns(self.folder / JOBS_FILE, names)

    def site_columns(self, *names: str) -> dict[str, NDArray[Any]]:
        """As above, of all samples."""
        return _columns(self.folder / SITES_FILE, names)


def read_result(folder: Path) -> Result:
    """The result in a folder; an error that names the file where there is none, half of one, or something else."""
    if not folder.is_dir():
        raise FieldError("result", str(folder), "a folder that `atoll sim run --out` wrote")
    jobs = _metadata_of(folder / JOBS_FILE, JobRow)
    if jobs != _metadata_of(folder / SITES_FILE, SiteRow):
        raise FieldError("result", str(folder), f"{JOBS_FILE} and {SITES_FILE} of one run; these are of two: run the simulation again")
    return Result(folder=folder, metadata=jobs)


def amend(result: Result, metadata: Metadata) -> None:
    """The same rows with other words about them: what was found out later."""
    with ResultWriter(result.folder, metadata) as writer:
        for job in result.jobs():
            writer.job(job)
        for site in result.sites():
            writer.site(site)


class _TableWriter(Generic[Row]):
    """One file being written, under another name until it is published."""

    def __init__(self, path: Path, row: type[Row]) -> None:
        arrow, parquet = _pyarrow()
        self._path = path
        self._partial = path.with_name(path.name + _PARTIAL)
        self._names = [field.name for field in fields(row)]
        self._values: Callable[[Row], tuple[Any, ...]] = attrgetter(*self._names)
        self._schema = _schema(row)
        self._held: list[tuple[Any, ...]] = []
        self._table_of = arrow.Table.from_arrays
        self._array = arrow.array
        self._file = self._partial.open("wb")
        self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")

    def add(self, row: Row) -> None:
        self._held.append(self._values(row))
        if len(self._held) >= _GROUP_ROWS:
            self._flush()

    def close(self, metadata: Metadata) -> None:
        """All is on the disk, though not under its name yet."""
        self._flush()
        text = json.dumps({"version": _VERSION, **asdict(metadata)}, sort_keys=True)
        self._writer.add_key_value_metadata({_METADATA_KEY: text.encode()})
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        self._partial.replace(self._path)

    def abandon(self) -> None:
        try:
            self._writer.close()
        finally:  # a full disk refuses this too
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._held:
            return
        columns = [self._array(column, field.type) for column, field in zip(zip(*self._held, strict=True), self._schema, strict=True)]
        self._writer.write_table(self._table_of(columns, schema=self._schema))
        self._held.clear()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow") from error
    return pa, pq


def _schema(row: type[Row]) -> Any:
    arrow, _ = _pyarrow()
    # Postponed annotations are texts.
    types = {"int": arrow.int64(), "str": arrow.string(), "bool": arrow.bool_()}
    return arrow.schema([arrow.field(field.name, types[str(field.type)], nullable=False) for field in fields(row)])


def _open(path: Path) -> Any:
    arrow, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise FieldError("result", str(path.parent), f"a folder with {JOBS_FILE} and {SITES_FILE}; there is no {path.name}") from None
    except (OSError, arrow.ArrowException) as error:
        raise SourceError(str(path), 0, "content", str(error).splitlines()[0], "a Parquet file") from None


def _metadata_of(path: Path, row: type[Row]) -> Metadata:
    with _open(path) as file:
        found, wanted = file.schema_arrow, _schema(row)
        for field in wanted:
            index = found.get_field_index(field.name)
            if index < 0:
                raise SourceError(str(path), 0, "columns", found.names, f"a column {field.name!r}")
            if not found.field(index).equals(field):  # a column of this type that may hold nothing is another one
                raise SourceError(str(path), 0, f"column {field.name}", str(found.field(index)), str(field))
        text = (file.metadata.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise SourceError(str(path), 0, "metadata", None, f"the entry {_METADATA_KEY.decode()}, as `atoll sim run` writes it")
    return _read_metadata(str(path), text)


def _read_metadata(path: str, text: bytes) -> Metadata:
    try:
        found = json.loads(text)
        version = found.pop("version")
        if version != _VERSION:
            raise SourceError(path, 0, "metadata.version", version, f"{_VERSION}: run the simulation again")
        sites = tuple(SitePlace(**{**site, "gpu_types": tuple(site["gpu_types"])}) for site in found.pop("sites"))
        metadata = Metadata(**found, sites=sites)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(path, 0, "metadata", str(error), "what `atoll sim run` writes: run the simulation again") from None
    kinds = {"int": int, "str": str, "bool": bool}
    nouns: tuple[Metadata | SitePlace, ...] = (metadata, *sites)
    for noun in nouns:
        for field in fields(noun):
            value = getattr(noun, field.name)
            wanted = kinds.get(str(field.type))
            if wanted is not None and type(value) is not wanted:
                raise SourceError(path, 0, f"metadata.{field.name}", value, f"a value of the type {field.type}")
    return metadata


def _rows(path: Path, row: type[Row]) -> Iterator[Row]:
    names = [field.name for field in fields(row)]
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP_ROWS, columns=names):
            columns = [batch.column(name).to_pylist() for name in names]
            for values in zip(*columns, strict=True):
                yield row(**dict(zip(names, values, strict=True)))


def _columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    with _open(path) as file:
        table: Any = file.read(columns=list(names))
    return {name: _array(table.column(name)) for name in names}


def _array(column: Any) -> NDArray[Any]:
    """Texts are one object for all rows that hold the same: few are different, and there may be millions of rows."""
    import numpy as np

    arrow, _ = _pyarrow()
    if column.type != arrow.string():
        found: NDArray[Any] = column.to_numpy()
        return found
    coded = column.combine_chunks().dictionary_encode()
    texts: NDArray[Any] = np.array(coded.dictionary.to_pylist(), dtype=object)
    return texts[coded.indices.to_numpy()] if len(texts) else texts
