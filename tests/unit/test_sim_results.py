"""Files of results: what is written is read back, half a file is no result, and figures count what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoll.model.errors import FieldError, SourceError
from sims.results.figures import ClassFigures, figures
from sims.results.parquet import JOBS_FILE, SITES_FILE, Metadata, ResultWriter, SitePlace, read_result
from sims.results.rows import JobRow, SiteRow
from tests.architecture.sources import REPOSITORY
from tests.unit.made_results import made_jobs, made_metadata, made_places, made_sites, write_made

PLACES = made_places(4)
METADATA = made_metadata(places=PLACES)
JOBS = list(made_jobs(METADATA, count=50))
SITES = list(made_sites(METADATA, samples=6))


def _write(folder: Path, metadata: Metadata, jobs: Iterable[JobRow], sites: Iterable[SiteRow]) -> None:
    with ResultWriter(folder, metadata) as writer:
        for job in jobs:
            writer.job(job)
        for site in sites:
            writer.site(site)


def test_rows_and_metadata_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    strange = replace(JOBS[0], tenant="</script>\N{PILE OF POO}\x00", model_id="", arrival_us=2**62)
    _write(tmp_path / "new" / "folder", METADATA, [strange, *JOBS[1:]], SITES)
    result = read_result(tmp_path / "new" / "folder")
    assert result.metadata == METADATA
    assert list(result.jobs()) == [strange, *JOBS[1:]]
    assert list(result.sites()) == SITES


def test_columns_are_those_of_the_rows_in_their_order(tmp_path: Path) -> None:
    """Others read these files too, without Atoll."""
    write_made(tmp_path, METADATA, count=5, samples=1)
    assert pq.read_schema(tmp_path / JOBS_FILE).names == [field.name for field in fields(JobRow)]
    assert pq.read_schema(tmp_path / SITES_FILE).names == [field.name for field in fields(SiteRow)]
    assert set(pq.read_schema(tmp_path / JOBS_FILE).types) == {pa.int64(), pa.string(), pa.bool_()}
    kept = json.loads(pq.read_metadata(tmp_path / JOBS_FILE).metadata[b"atoll.result"])
    assert (kept["seed"], kept["trace_licence"], kept["synthetic"]) == (1, "Apache-2.0", True)


def test_what_is_known_only_at_the_end_is_kept_too(tmp_path: Path) -> None:
    with ResultWriter(tmp_path, METADATA) as writer:
        writer.job(JOBS[0])
        writer.finish(replace(METADATA, digest="cafe", wall_us=7))
    assert read_result(tmp_path).metadata == replace(METADATA, digest="cafe", wall_us=7)


def test_rows_are_written_in_groups(tmp_path: Path) -> None:
    """However long a run is, no more than a group of its rows waits in memory."""
    write_made(tmp_path, METADATA, count=40_000, samples=1)
    file = pq.ParquetFile(tmp_path / JOBS_FILE)
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [16_384, 16_384, 7_232]


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    write_made(tmp_path, METADATA, count=5, samples=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stopped() -> Iterator[JobRow]:
        yield from JOBS
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _write(tmp_path, replace(METADATA, seed=2), stopped(), SITES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_row_that_no_column_can_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), ResultWriter(tmp_path, METADATA) as writer:
        writer.job(replace(JOBS[0], arrival_us=2**63))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_result(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.unit.made_results import made_jobs, made_metadata
from sims.results.parquet import ResultWriter
with ResultWriter(Path({str(tmp_path)!r}), made_metadata()) as writer:
    for job in made_jobs(made_metadata(), count=20_000):
        writer.job(job)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(FieldError, match=r"there is no jobs\.parquet"):
        read_result(tmp_path)
    write_made(tmp_path, METADATA, count=5, samples=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOBS_FILE, SITES_FILE]


def test_files_of_two_runs_are_no_result(tmp_path: Path) -> None:
    write_made(tmp_path / "a", METADATA, count=5, samples=1)
    write_made(tmp_path / "b", replace(METADATA, seed=2), count=5, samples=1)
    (tmp_path / "b" / JOBS_FILE).replace(tmp_path / "a" / JOBS_FILE)
    with pytest.raises(FieldError, match="these are of two"):
        read_result(tmp_path / "a")


def _rewritten(folder: Path, change: str) -> None:
    table = pq.read_table(folder / JOBS_FILE)
    metadata = pq.read_metadata(folder / JOBS_FILE).metadata[b"atoll.result"]
    table = table.replace_schema_metadata({b"atoll.result": metadata})
    match change:
        case "column":
            table = table.drop_columns(["cold"])
        case "type":
            table = table.set_column(table.schema.get_field_index("cold"), "cold", pa.array(["yes"] * len(table)))
        case "empty":
            index = table.schema.get_field_index("moves")
            table = table.set_column(index, "moves", pa.array([None] * len(table), pa.int64()))
        case "metadata":
            table = table.replace_schema_metadata({})
        case "version":
            table = table.replace_schema_metadata({b"atoll.result": metadata.replace(b'"version": 1', b'"version": 9')})
        case "field":
            table = table.replace_schema_metadata({b"atoll.result": metadata.replace(b'"seed": 1', b'"seed": "1"')})
        case _:
            table = table.replace_schema_metadata({b"atoll.result": b"{"})
    pq.write_table(table, folder / JOBS_FILE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("column", "a column 'cold'"),
        ("type", "column cold is"),
        ("empty", "column moves is"),
        ("metadata", r"the entry atoll\.result"),
        ("version", r"metadata\.version is 9: expected 1"),
        ("field", r"metadata\.seed is '1'"),
        ("json", "metadata is"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, change: str, told: str) -> None:
    write_made(tmp_path, METADATA, count=5, samples=1)
    _rewritten(tmp_path, change)
    with pytest.raises(SourceError, match=told) as error:
        read_result(tmp_path)
    assert error.value.file == str(tmp_path / JOBS_FILE)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    write_made(tmp_path, METADATA, count=5, samples=1)
    (tmp_path / JOBS_FILE).write_text("number,model_id\n")
    with pytest.raises(SourceError, match="a Parquet file"):
        read_result(tmp_path)
    with pytest.raises(FieldError, match="a folder that"):
        read_result(tmp_path / "nowhere")


def _job(number: int, **changes: object) -> JobRow:
    return replace(JOBS[0], number=number, **{"kind": "image", "state": "succeeded", "cold": False, "deadline_ms": 0, **changes})  # type: ignore[arg-type]


def _site(**changes: object) -> SiteRow:
    return replace(SITES[0], **changes)  # type: ignore[arg-type]


def test_figures_of_a_run_counted_by_hand(tmp_path: Path) -> None:
    second = 1_000_000
    jobs = [
        # Ten pictures of 1 to 10 seconds; the first arrives in the warm-up.
        *(
            _job(n, arrival_us=n * second, started_us=n * second, ended_us=2 * n * second, price_usd_micros=1_000, deadline_missed=False)
            for n in range(1, 11)
        ),
        _job(11, kind="video", arrival_us=9 * second, started_us=9 * second, ended_us=99 * second, cold=True, deadline_ms=60_000,
             deadline_missed=True, price_usd_micros=10_000),
        _job(12, kind="video", state="failed", arrival_us=9 * second, started_us=-1, ended_us=10 * second, deadline_ms=60_000,
             deadline_missed=False, price_usd_micros=0),
    ]  # fmt: skip
    metadata = Metadata(
        policy="default", policy_digest="d", seed=1, trace="t", trace_licence="", fleet="f", synthetic=True,
        warm_up_us=2 * second, simulated_us=100 * second, wall_us=2 * second, digest="feed", sites=(SitePlace(site_id="a"),),
    )  # fmt: skip
    sites = [
        _site(at_us=2 * second, slots=10, slots_busy=10, evictions=50, egress_bytes=9),
        _site(at_us=12 * second, slots=10, slots_busy=6, evictions=1, egress_bytes=5),
        _site(at_us=12 * second, site_id="b", slots=30, slots_busy=4, evictions=2, egress_bytes=6),
    ]
    _write(tmp_path, metadata, jobs, sites)
    found = figures(read_result(tmp_path))
    assert (found.digest, found.jobs, found.states) == ("feed", 11, {"failed": 1, "succeeded": 10})
    # 2 to 10 s: nine jobs; the median is the fifth, and nine of ten and 99 of 100 are the ninth.
    assert found.classes["image"] == ClassFigures(n=9, mean_s=6.0, p50_s=6.0, p90_s=10.0, p99_s=10.0)
    assert found.classes["video"] == ClassFigures(n=1, mean_s=90.0, p50_s=90.0, p90_s=90.0, p99_s=90.0)
    assert list(found.classes) == ["image", "video"]
    assert found.cold_start_share == 1 / 10
    assert found.deadline_miss_share == 1 / 2
    assert found.usd_per_1000_jobs == pytest.approx((9 * 0.001 + 0.010) / 10 * 1000)
    assert found.utilisation == 10 / 40
    assert (found.evictions, found.egress_bytes) == (3, 11)
    assert (found.simulated_s, found.wall_s, found.jobs_per_wall_s) == (100.0, 2.0, 5.5)
    assert found.terms_s["execution"] == pytest.approx(JOBS[0].execution_us / 1e6)


def test_figures_of_nothing_are_none_and_not_zero(tmp_path: Path) -> None:
    with ResultWriter(tmp_path, METADATA):
        pass
    found = asdict(figures(read_result(tmp_path)))
    assert found["jobs"] == 0 and found["states"] == {} and found["classes"] == {}
    for share in ("cold_start_share", "deadline_miss_share", "usd_per_1000_jobs", "utilisation"):
        assert found[share] is None
