"""Traces as files: what is written is read again, in memory that does not grow, and what is wrong is said with file, row and remedy."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from atoll.model.errors import AtollError, FieldError, SourceError
from sims.traces.job import TraceJob
from sims.traces.reading import Rules, TraceFile, as_text
from sims.traces.unpacking import LINE_BYTES_MAX
from sims.traces.writing import write_trace
from tests.unit.traces_made import FORMS, META, jobs, written

HEAD = "arrival_us,model_id,tenant"


def read(path: Path, rules: Rules = Rules()) -> list[TraceJob]:
    return list(TraceFile(path, rules).jobs())


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_trace(path, META, jobs(2_000)) == 2_000
    opened = TraceFile(path)
    assert opened.meta == META
    assert list(opened.jobs()) == list(jobs(2_000))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMS)
def test_same_jobs_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    first, second = tmp_path / name, tmp_path / f"other-{name}"
    write_trace(first, META, jobs(500))
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    write_trace(second, META, jobs(500))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["trace.parquet", "trace.csv.gz", "trace.jsonl"])
def test_memory_does_not_grow_with_the_trace(tmp_path: Path, name: str) -> None:
    """Reading four times as many rows, where each says something of its own, takes no more memory: a few batches."""

    def peak_bytes(count: int) -> int:
        path = tmp_path / f"{count}-{name}"
        write_trace(path, META, jobs(count))
        tracemalloc.start()
        try:
            assert sum(1 for _ in TraceFile(path).jobs()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(1_000)  # what is loaded once
    assert peak_bytes(60_000) < peak_bytes(15_000) * 1.5


def test_writing_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"

    def broken() -> Iterator[TraceJob]:
        yield from jobs(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_trace(path, META, broken())
    assert list(tmp_path.iterdir()) == []


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "missing columns": ("arrival_us,model_id\n0,m\n", ":1: columns is 'arrival_us,model_id': expected also tenant"),
    "seconds by name": ("arrival_s,model_id,tenant\n0,m,t\n", ":1: columns is 'arrival_s': expected arrival_us: the same multiplied"),
    "a mistyped column": (f"{HEAD},deadlin_ms\n0,m,t,5\n", "columns is 'deadlin_ms': expected one of arrival_us"),
    "a column twice": (f"{HEAD},tenant\n0,m,t,t\n", "expected each column once"),
    "semicolons": ("arrival_us;model_id;tenant\n0;m;t\n", "expected commas between columns, not semicolons"),
    "tabs": ("arrival_us\tmodel_id\ttenant\n0\tm\tt\n", "expected commas between columns, not tabs"),
    "nothing": ("", "expected a header line"),
    "only a header": (f"{HEAD}\n", "rows is 'none': expected at least one job"),
    "unsorted": (f"{HEAD}\n5,m,t\n4,m,t\n", ":3: arrival_us is 4: expected at least 5, that of the row before; 'atoll sim trace"),
    "negative": (f"{HEAD}\n-1,m,t\n", ":2: arrival_us is '-1': expected a whole number from 0"),
    "NaN": (f"{HEAD}\nnan,m,t\n", ":2: arrival_us is 'nan': expected a whole number from 0"),
    "a fraction": (f"{HEAD}\n12.5,m,t\n", "a fraction is none of microseconds: multiply seconds by 1,000,000"),
    "since 1970": (f"{HEAD}\n1700000000000000,m,t\n", "subtract the first arrival"),
    "a million digits": (f"{HEAD}\n{'9' * 60_000},m,t\n", ":2: arrival_us is '9999"),
    "no model": (f"{HEAD}\n0,,t\n", ":2: model_id is '': expected a value in each row"),
    "a bad name": (f"{HEAD}\n0,../../x,t\n", ":2: model_id is '../../x': expected 1 to 63 of a-z"),
    "cells": (f"{HEAD}\n0,m\n", ":2: row is '2 cells': expected 3 cells, as the header has"),
    "an open quote": (f'{HEAD}\n0,"m,t\n1,m,t\n', ":2: row is '0,\"m,t': expected cells between commas, with paired quotes"),
    "a long session": (f"{HEAD},session\n0,m,t,{'s' * 64}\n", "session is 'sss"),
    "a long line": (f"{HEAD}\n0,m,{'t' * LINE_BYTES_MAX}\n", "bytes and more': expected lines of at most"),
    "no UTF-8": (f"{HEAD},session\n0,m,t,".encode() + b"\xff\xfe\n", ":2: session is"),
    "a gang of three": (f"{HEAD},gang_size\n0,m,t,3\n", ":2: gang_size is '3': expected one of 1, 2, 4, 8"),
    "one side": (f"{HEAD},width\n0,m,t,512\n", ":2: width is '512 with height 0': expected both sides"),
    "a huge frame": (f"{HEAD},width,height\n0,m,t,16384,16384\n", "pixels a frame"),
    "a word": (f"{HEAD},priority\n0,m,t,high\n", ":2: priority is 'high': expected one of urgent, normal, batch"),
    "bad adapters": (f"{HEAD},adapters\n0,m,t,style:0.8\n", ":2: adapters is 'style:0.8': expected '' or ID:SCALE;ID:SCALE"),
    "an adapter twice": (f"{HEAD},adapters\n0,m,t,a:1;a:2\n", "expected each adapter once"),
    "nine adapters": (f"{HEAD},adapters\n0,m,t,{';'.join(f'a{n}' for n in range(9))}\n", "expected at most 8 adapters"),
    "an adapter's name": (f"{HEAD},adapters\n0,m,t,A B:1\n", "adapters.adapter_id is 'A B'"),
    "a later format": (f'# {{"atoll_trace": 2}}\n{HEAD}\n0,m,t\n', ":1: atoll_trace is 2: expected 1, the version"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_said_with_file_row_and_remedy(tmp_path: Path, case: str) -> None:
    text, said = HOSTILE[case]
    path = written(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"arrival_us": NaN, "model_id": "m", "tenant": "t"}', "expected a JSON object (without NaN or Infinity)"),
        ('{"arrival_us": 1e400, "model_id": "m", "tenant": "t"}', "arrival_us is inf: expected a whole number"),
        ("[" * 60_000, "expected a JSON object"),
        ("[1]", "row is [1]: expected a JSON object"),
        ('{"arrival_us": true, "model_id": "m", "tenant": "t"}', "arrival_us is True: expected a whole number"),
        ('{"arrival_us": 0, "model_id": ["m"], "tenant": "t"}', "model_id is ['m']: expected 1 to 63"),
        ('{"arrival_us": 0, "tenant": "t"}', "columns is 'arrival_us,tenant': expected also model_id"),
        ('{"arrival_s": 0, "model_id": "m", "tenant": "t"}', "expected arrival_us: the same multiplied by 1,000,000"),
        ('{"arrival_us": 0, "model_id": "m", "tenant": "t", "adapters": [{"id": "a"}]}', "adapters is [{'id': 'a'}]: expected"),
        ('{"arrival_us": 0, "model_id": "m", "tenant": "t", "adapters": {"a": 1}}', "adapters is {'a': 1}: expected"),
    ],
)
def test_json_lines_are_checked_as_well(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SourceError, match=":1: ") as caught:
        read(written(tmp_path, line, "trace.jsonl"))
    assert said in str(caught.value)


def test_a_model_that_there_is_not_is_named_with_those_like_it(tmp_path: Path) -> None:
    rules = Rules(models=frozenset({"flux.1-dev", "sd-1.5"}))
    assert len(read(written(tmp_path, f"{HEAD}\n0,flux.1-dev,t\n1,flux.1-dev--m7,t\n"), rules)) == 2
    with pytest.raises(SourceError, match=r"model_id is 'flux.1-dve': expected a model that there is, such as flux.1-dev"):
        read(written(tmp_path, f"{HEAD}\n0,flux.1-dve,t\n"), rules)


def test_seconds_in_place_of_microseconds_are_noticed(tmp_path: Path) -> None:
    """Two days of them, 0.2 jobs a second, say of themselves that 200,000 come in each."""
    path = tmp_path / "trace.csv"
    write_trace(path, META, jobs(40_000, gap_us=5))
    with pytest.raises(SourceError, match="multiply seconds by 1,000,000; --dense"):
        read(path)
    assert len(read(path, Rules(dense=True))) == 40_000


def test_more_rows_than_anybody_means_are_refused(tmp_path: Path) -> None:
    for name in ("trace.parquet", "trace.csv"):
        write_trace(tmp_path / name, META, jobs(101))
        with pytest.raises(SourceError, match="rows is 101: expected at most 100 rows; --rows-max allows more"):
            read(tmp_path / name, Rules(rows_max=100))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A hundred megabytes in a hundred kilobytes: it is refused when a few megabytes are out."""
    row = b"0,sd-1.5,t\n"
    packed = gzip.compress(f"{HEAD}\n".encode() + row * (100 * 2**20 // len(row)))
    path = written(tmp_path, packed, "trace.csv.gz")
    tracemalloc.start()
    with pytest.raises(SourceError, match="expected a file that unpacks to at most 200 times its size"):
        sum(1 for _ in TraceFile(path, Rules(dense=True)).jobs())
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_packing_that_is_not_what_the_name_says(tmp_path: Path) -> None:
    text = f"{HEAD}\n0,m,t\n".encode()
    for name, content, said in (
        ("a.csv.gz", text, "expected a gzip file, as its name ends in .gz"),
        ("a.csv", gzip.compress(text), "let its name end in .gz"),
        ("b.csv.gz", gzip.compress(text)[:-6], "expected a whole gzip file"),
        ("b.csv", b"PK\x03\x04" + text, "unpack it first"),
        ("c.parquet", text, "expected a whole Parquet file"),
    ):
        with pytest.raises(SourceError) as caught:
            read(written(tmp_path, content, name))
        assert said in str(caught.value)
    with pytest.raises(FieldError, match=r"expected a name that ends in one of .parquet, .csv"):
        TraceFile(written(tmp_path, text, "a.txt"))
    with pytest.raises(FieldError, match="expected a file that exists"):
        TraceFile(tmp_path / "none.csv")


def test_parquet_of_others(tmp_path: Path) -> None:
    """Only the required columns, in another order; times as fractions are refused as a column; a long text is one text."""
    path = tmp_path / "trace.parquet"
    parquet.write_table(pa.table({"tenant": ["t", "u"], "arrival_us": [0, 7], "model_id": ["m", "m"], "x_note": [1.5, 2.5]}), path)
    assert [(job.arrival_us, job.tenant) for job in read(path)] == [(0, "t"), (7, "u")]
    parquet.write_table(pa.table({"tenant": ["t"], "arrival_us": [0.25], "model_id": ["m"]}), path)
    with pytest.raises(SourceError, match=r"arrival_us is 'double': expected a column of whole numbers .*multiply by 1,000,000"):
        read(path)
    parquet.write_table(pa.table({"tenant": ["t"], "arrival_us": [None], "model_id": ["m"]}), path)
    with pytest.raises(SourceError, match=":1: arrival_us is None: expected a value in each row"):
        read(path)


def test_a_long_text_in_each_row_is_one_text(tmp_path: Path) -> None:
    """Half a gigabyte of texts in a file of some kilobytes is never made."""
    path = tmp_path / "trace.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), ["x" * 100_000])
    columns = {"tenant": long, "arrival_us": range(5_000), "model_id": ["m"] * 5_000}
    parquet.write_table(pa.table(columns), path, store_schema=False)  # read as plain text by whoever does not ask for more
    tracemalloc.start()
    with pytest.raises(SourceError, match=":1: tenant is 'xxx"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_skipped_is_counted_by_reason(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEAD},steps\n2,m,t,\n2,M!,t,\n2,m,t,many\n3,m,t,-1\n1,m,t,\n4,m\n5,m,t,9\n")
    opened = TraceFile(path, Rules(skip_bad=True))
    assert [job.arrival_us for job in opened.jobs()] == [2, 5]
    assert opened.skipped.rows == {"model_id": 1, "steps": 2, "arrival_us": 1, "row": 1}
    assert f"{path}:4: steps is 'many'" in as_text(opened.skipped)[0]
    with pytest.raises(AtollError, match="rows is 'all skipped'"):
        read(written(tmp_path, f"{HEAD}\nx,m,t\n"), Rules(skip_bad=True))
