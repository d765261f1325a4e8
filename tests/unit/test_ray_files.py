"""Logs and notes of attempts on disk, and the record by which a cluster's processes are found again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agents.runtime import attempt_files
from agents.runtime.attempt_files import LOG_BYTES_MAX, AttemptFiles, AttemptLog, file_name, lock_folder, parse_file_name
from agents.runtime.ray_processes import MARK_VARIABLE, ClusterProcesses, start_ticks_of
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import AttemptKey, JobId, Ordinal


def key_of(job: str, ordinal: int = 1) -> AttemptKey:
    return AttemptKey(job_id=JobId(job), ordinal=Ordinal(ordinal))


def test_a_log_is_bounded_and_still_says_how_it_ended(tmp_path: Path) -> None:
    files = AttemptFiles(tmp_path)
    log = AttemptLog(files.logs_dir, key_of("loud"))
    for number in range(2_000):
        log.line(f"{number} " + "x" * 1_000)
    log.line("failed: at last", last=True)
    log.close()
    log.line("after its end")
    assert (files.logs_dir / "loud@1.log").stat().st_size <= LOG_BYTES_MAX
    assert files.tail(key_of("loud"), 1)[0].endswith("failed: at last")


def test_what_is_logged_stays_one_printable_line(tmp_path: Path) -> None:
    files = AttemptFiles(tmp_path)
    log = AttemptLog(files.logs_dir, key_of("odd"))
    log.line("bell \x07 and escape \x1b[2J\nsecond " + "y" * 5_000)
    log.close()
    first, second = files.tail(key_of("odd"), 10)
    assert first.endswith("bell ? and escape ?[2J")
    assert len(second) < 2_100


def test_a_log_that_cannot_be_written_ends_no_attempt(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    log = AttemptLog(tmp_path / "logs", key_of("lost"))
    log.line("nobody will read this")
    log.close()


def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_files, "LOGS_MAX", 3)
    files = AttemptFiles(tmp_path)
    for number in range(5):
        log = AttemptLog(files.logs_dir, key_of(f"job-{number}"))
        log.line("said")
        log.close()
        os.utime(files.logs_dir / f"job-{number}@1.log", (number, number))
    assert files.prune() == 2
    assert [bool(files.tail(key_of(f"job-{number}"), 1)) for number in range(5)] == [False, False, True, True, True]


def test_open_attempts_are_those_opened_and_not_settled(tmp_path: Path) -> None:
    files = AttemptFiles(tmp_path)
    files.open(key_of("a.b-c"), "file:///store")
    files.open(key_of("done", 3), "file:///store")
    files.settle(key_of("done", 3))
    files.settle(key_of("never"))
    (tmp_path / "open" / "no attempt").write_text("")
    assert AttemptFiles(tmp_path).open_attempts() == {key_of("a.b-c"): "file:///store"}


@pytest.mark.parametrize("key", [key_of("../x"), key_of("a/b"), key_of("a", 0), key_of(""), key_of("a\n")])
def test_a_key_that_could_lead_elsewhere_has_no_file(key: AttemptKey) -> None:
    with pytest.raises(FieldError):
        file_name(key)


@pytest.mark.parametrize("name", ["", "a", "a@", "a@x", "a@01", "@1", "../a@1", "a@1.log"])
def test_a_name_that_is_of_no_attempt_is_passed_over(name: str) -> None:
    assert parse_file_name(name) is None
    assert parse_file_name(file_name(key_of("a", 7))) == key_of("a", 7)


def test_a_folder_belongs_to_one_agent_at_a_time(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(StateError, match="another agent works on"):
        lock_folder(tmp_path)
    lock.close()
    lock_folder(tmp_path).close()


def start_session(mark: str) -> subprocess.Popen[str]:
    """Two processes as Ray's: the first leads a session, the second has wiped its environment."""
    child = "import os, time; os.execve('/bin/sleep', ['sleep', '60'], {})"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); print('up', flush=True); time.sleep(60)"
    environment = {**os.environ, MARK_VARIABLE: mark}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    return process


def test_a_cluster_is_found_by_its_record_and_ended_whole(tmp_path: Path) -> None:
    mark = "0123456789abcdef" * 2
    process = start_session(mark)
    record = ClusterProcesses(mark=mark, address="127.0.1.1:1", pid=process.pid, start_ticks=start_ticks_of(process.pid) or 0)
    record.write(tmp_path / "head.json")
    found = ClusterProcesses.read(tmp_path / "head.json")
    assert found == record
    assert found.head() == psutil.Process(process.pid)
    assert len(found.members()) == 2
    process.kill()
    process.wait()
    # Its leader is dead and reaped, its mark wiped: the other is known by its session.
    (orphan,) = found.members()
    found.end(0)
    assert not orphan.is_running()
    assert found.members() == []
    assert found.head() is None


def test_a_later_process_of_the_same_number_is_left_alone() -> None:
    pid = os.getpid()
    stranger = ClusterProcesses(mark="f" * 32, address="127.0.1.1:1", pid=pid, start_ticks=(start_ticks_of(pid) or 0) - 1)
    assert stranger.head() is None
    assert stranger.members() == []
    stranger.end(0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mark": 1, "address": "", "pid": 1, "start_ticks": 1}', '{"mark": "x"'])
def test_a_file_that_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "head.json").write_text(text)
    assert ClusterProcesses.read(tmp_path / "head.json") is None
