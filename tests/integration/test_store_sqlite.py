"""The embedded store against the real world: kill -9, a second process, a full disk, and files that are not ours."""

# ruff: noqa: ASYNC240 - the files of a test are small and its loop has nothing else to do

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.model.demand import KeptDemand
from atoll.model.errors import StateError
from atoll.model.ids import JobId
from atoll.model.learned import Estimates
from orchestrator.core.demand import PutDemand
from orchestrator.core.outputs import AppendAudit, PutAdapter, PutEstimates, PutJob, PutModel
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.sqlite import SqliteStore
from orchestrator.store.sqlite_backup import TERM_GAP
from orchestrator.store.sqlite_schema import FORMAT
from tests.integration.killed_writer import check_whole, killed_after, writer
from tests.integration.store_backends import adapter, audit, demand, ended, estimates, model, queued

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atoll.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    await store.close()


async def test_kill_at_any_moment_loses_nothing_promised_and_tears_no_batch(path: Path) -> None:
    chance = random.Random(20)
    promised: dict[str, int] = {}
    rounds = 5
    for number in range(rounds):
        process = writer(str(path), number)
        lines = await asyncio.to_thread(killed_after, process, chance.randint(1, 60))
        promised.update((f"r{number}-b{batch}", int(jobs)) for batch, jobs in (line.split() for line in lines))
    store = SqliteStore(path)
    stored = await store.take_over()
    await check_whole(store, stored, promised)
    assert stored.term == rounds + 1
    await store.close()


async def test_a_second_process_is_told_who_holds_the_store(path: Path, store: SqliteStore) -> None:
    process = writer(str(path), 0)
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline)
        with pytest.raises(StateError, match=rf"in use by pid {process.pid} on "):
            await store.take_over()
        with pytest.raises(StateError, match=rf"in use by pid {process.pid} on "):
            await store.take_over()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    # The kernel let go of the lock for the dead.
    assert (await store.take_over()).term == 2


async def test_two_stores_of_one_process_exclude_each_other(path: Path, store: SqliteStore, tmp_path: Path) -> None:
    await store.take_over()
    (tmp_path / "alias.db").symlink_to(path)
    other = SqliteStore(tmp_path / "alias.db")
    with pytest.raises(StateError, match=rf"in use by pid {os.getpid()} "):
        await other.take_over()
    await store.close()
    assert (await other.take_over()).term == 2
    await other.close()


async def test_only_the_owner_may_read(path: Path, store: SqliteStore) -> None:
    path.touch(mode=0o666)
    stored = await store.take_over()
    await store.commit(stored.term, 1, [PutJob(job=queued("j1"))])
    target = path.with_name("copy.db")
    await store.backup(str(target))
    files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(files) == {"atoll.db", "atoll.db-wal", "atoll.db-shm", "atoll.db.lock", "copy.db"}
    assert set(files.values()) == {0o600}


async def test_a_backup_serves_as_a_store_whose_term_no_agent_refuses(path: Path, store: SqliteStore) -> None:
    stored = await store.take_over()
    await store.commit(stored.term, 7, [PutJob(job=queued("live")), PutJob(job=ended(queued("done"), 5)), AppendAudit(event=audit(1))])
    await store.backup(str(path.with_name("copy.db")))
    await store.commit(stored.term, 8, [PutJob(job=queued("later"))])
    restored = SqliteStore(path.with_name("copy.db"))
    copied = await restored.take_over()
    assert copied.jobs == (queued("live"),)
    assert (copied.fleet_id, copied.fleet_time_us, copied.last_audit_seq, copied.ended_count) == (stored.fleet_id, 7, 1, 1)
    assert copied.term > stored.term + TERM_GAP
    assert await restored.get_job(JobId("done")) == ended(queued("done"), 5)
    await restored.close()


async def test_a_backup_of_a_store_in_use_is_consistent(store: SqliteStore, path: Path) -> None:
    """Batches of ten go on being committed: a copy holds whole batches only."""
    stored = await store.take_over()
    stop = asyncio.Event()

    async def load() -> int:
        batch = 0
        while not stop.is_set():
            jobs = [queued(f"b{batch}-j{job}", prompt="x" * 4_000) for job in range(10)]
            assert await store.commit(stored.term, batch, [PutJob(job=job) for job in jobs]) is CommitOutcome.COMMITTED
            batch += 1
        return batch

    loading = asyncio.create_task(load())
    targets = [path.with_name(f"copy{number}.db") for number in range(3)]
    for target in targets:
        await store.backup(str(target))
    stop.set()
    assert await loading > 0
    for target in targets:
        copy = SqliteStore(target)
        batches = Counter(job.job_id.partition("-")[0] for job in (await copy.take_over()).jobs)
        assert set(batches.values()) <= {10}
        await copy.close()


async def test_a_backup_that_was_cut_off_is_named(store: SqliteStore, path: Path) -> None:
    await store.take_over()
    partial = path.with_name("copy.db.partial")
    partial.touch()
    with pytest.raises(Exception, match=r"copy\.db\.partial"):
        await store.backup(str(path.with_name("copy.db")))
    assert partial.exists()


async def test_a_full_disk_refuses_the_batch_and_spares_the_rest(store: SqliteStore, path: Path) -> None:
    """`max_page_count` makes SQLite meet the same end of space as a full disk, at a place of our choosing."""
    stored = await store.take_over()
    await store.commit(stored.term, 1, [PutJob(job=queued("before"))])

    def limit(connection: sqlite3.Connection | None, pages: int) -> None:
        assert connection is not None
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._write(lambda: limit(store._writer, 1))
    with pytest.raises(StoreError, match="the disk is full; nothing is accepted until there is room"):
        await store.commit(stored.term, 2, [PutJob(job=queued(f"big{number}", prompt="x" * 9_000)) for number in range(50)])
    again = await store.take_over()
    assert [job.job_id for job in again.jobs] == ["before"]
    assert await store.commit(again.term, 3, [PutJob(job=queued("after", prompt="x" * 9_000))]) is CommitOutcome.COMMITTED


IO_ERROR = """
import asyncio, resource, sys
from orchestrator.core.outputs import PutJob
from orchestrator.store.base import StoreError
from orchestrator.store.sqlite import SqliteStore
from tests.integration.killed_writer import check_whole, killed_after, writer
from tests.integration.store_backends import queued

async def main(path):
    store = SqliteStore(path)
    stored = await store.take_over()
    await store.commit(stored.term, 1, [PutJob(job=queued("before"))])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        await store.commit(stored.term, 2, [PutJob(job=queued(f"big{n}", prompt="x" * 9_000)) for n in range(100)])
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    again = await store.take_over()
    print(*[job.job_id for job in again.jobs])
    print(await store.commit(again.term, 3, [PutJob(job=queued("after"))]))
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="files are limited already")
def test_a_write_that_fails_half_way_leaves_no_half_batch(path: Path) -> None:
    """The kernel itself cuts the write short: part of the batch is in the log when it fails."""
    done = subprocess.run([sys.executable, "-c", IO_ERROR, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told, jobs, after = done.stdout.splitlines()
    assert "atoll.db" in told
    assert (jobs, after) == ("before", "committed")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: aws-use1\n" * 500, "is not a database"),
        (b"SQLite format 3\x00" + b"\xff" * 8_192, "is not a database|is damaged"),
    ],
)
async def test_a_file_that_is_no_store_is_left_alone(path: Path, store: SqliteStore, content: bytes, told: str) -> None:
    path.write_bytes(content)
    with pytest.raises(StateError, match=told):
        await store.take_over()
    assert path.read_bytes() == content


async def test_a_database_of_another_program_is_left_alone(path: Path, store: SqliteStore) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (note TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="a database of another program"):
        await store.take_over()
    assert path.read_bytes() == before


async def test_a_later_format_is_refused_with_both_numbers(path: Path, store: SqliteStore) -> None:
    await store.take_over()
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE fleet SET format = ?", (FORMAT + 1,))
    connection.close()
    later = SqliteStore(path)
    with pytest.raises(StateError, match=f"has format {FORMAT + 1}, this version of Atoll reads {FORMAT}"):
        await later.take_over()
    await later.close()


async def test_a_file_of_the_first_format_is_taken_over_with_all_that_it_holds(path: Path, store: SqliteStore) -> None:
    term = (await store.take_over()).term
    await store.commit(term, 1, [PutModel(model=model("m"))])
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE adapters")
    connection.execute("DROP TABLE estimates")
    connection.execute("DROP TABLE demand")
    connection.execute("DROP TABLE stopping")
    connection.execute("DROP TABLE pins")
    connection.execute("DROP TABLE pushes")
    connection.execute("DROP TABLE policy")
    connection.execute("ALTER TABLE audit DROP COLUMN written_ms")
    connection.execute("UPDATE fleet SET format = 1")
    connection.close()
    later = SqliteStore(path)
    loaded = await later.take_over()
    assert (loaded.models, loaded.adapters, loaded.estimates, loaded.policy) == ((model("m"),), (), Estimates(), None)
    await later.commit(loaded.term, 2, [PutAdapter(adapter=adapter("l"))])
    await later.close()
    again = SqliteStore(path)
    assert (await again.take_over()).adapters == (adapter("l"),)
    await again.close()


async def test_a_path_that_cannot_be_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "atoll.db"):
        store = SqliteStore(path)
        with pytest.raises(StoreError, match=str(tmp_path)):
            await store.take_over()
        await store.close()


async def test_two_live_jobs_of_one_key_are_a_bug_and_change_nothing(store: SqliteStore) -> None:
    stored = await store.take_over()
    await store.commit(stored.term, 1, [PutJob(job=queued("one", key="k"))])
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.commit(stored.term, 2, [PutJob(job=queued("bystander")), PutJob(job=queued("two", key="k"))])
    again = await store.take_over()
    assert [job.job_id for job in again.jobs] == ["one"]
    assert again.fleet_time_us == 1


async def test_a_bounded_number_of_ended_keys_is_loaded_the_rest_is_found(path: Path) -> None:
    store = SqliteStore(path, ended_keys_max=3)
    stored = await store.take_over()
    await store.commit(stored.term, 1, [PutJob(job=ended(queued(f"j{number}"), number + 1)) for number in range(6)])
    again = await store.take_over()
    assert [key.job_id for key in again.ended_keys] == ["j3", "j4", "j5"]
    assert again.ended_count == 6
    found = await store.find_keys(tenant=queued("x").spec.tenant, keys=["key-j0"])
    assert [key.job_id for key in found] == ["j0"]
    await store.close()


async def test_the_commit_in_flight_is_finished_before_the_store_closes(path: Path, store: SqliteStore) -> None:
    stored = await store.take_over()
    writing = asyncio.create_task(store.commit(stored.term, 1, [PutJob(job=queued(f"j{number}")) for number in range(2_000)]))
    await asyncio.sleep(0)
    await store.close()
    assert await writing is CommitOutcome.COMMITTED
    again = SqliteStore(path)
    assert len((await again.take_over()).jobs) == 2_000
    await again.close()


async def test_estimates_and_demand_that_cannot_be_read_are_learned_again(path: Path, store: SqliteStore) -> None:
    """Nothing rests on them: they keep nobody from starting."""
    term = (await store.take_over()).term
    await store.commit(term, 1, [PutModel(model=model("m")), PutEstimates(estimates=estimates(2)), PutDemand(demand=demand("m"))])
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE estimates SET estimates = x'01c1'")
    connection.execute("UPDATE demand SET demand = x'01c1'")
    connection.close()
    later = SqliteStore(path)
    loaded = await later.take_over()
    await later.close()
    assert (loaded.models, loaded.estimates, loaded.demand) == ((model("m"),), Estimates(), KeptDemand())


@pytest.mark.parametrize(("later_ms", "age_us"), [(90_000, 90_000_000), (0, 0), (-5, 0)])
async def test_demand_is_as_old_as_peoples_clocks_say(path: Path, later_ms: int, age_us: int) -> None:
    """Also when they were set back: it is never younger than new."""
    written_ms = 1_700_000_000_000
    store = SqliteStore(path, wall_ms=lambda: written_ms)
    await store.commit((await store.take_over()).term, 1, [PutDemand(demand=demand("m"))])
    await store.close()
    later = SqliteStore(path, wall_ms=lambda: written_ms + later_ms)
    loaded = await later.take_over()
    await later.close()
    assert (loaded.demand, loaded.demand_age_us) == (demand("m"), age_us)
