"""A process that writes to a store until it is killed, and what must be found of it then."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from atoll.model.ids import ChangeSeq
from orchestrator.core.durable import Stored
from orchestrator.store.base import Store

ROOT = Path(__file__).parents[2]


def writer(where: str, number: int, jobs_max: int = 40) -> subprocess.Popen[str]:
    """Begin a round on the store at `where`."""
    command = [sys.executable, "-m", "tests.integration.store_writer", where, str(number), str(jobs_max)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed_after(process: subprocess.Popen[str], lines: int) -> list[str]:
    """What the process had promised when it was killed in mid-flight."""
    assert process.stdout is not None
    promised: list[str] = []
    try:
        for _ in range(lines):
            line = process.stdout.readline()
            assert line.endswith("\n"), "the writer ended by itself"
            promised.append(line)
    finally:
        process.kill()
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
    # Lines that were on their way count too; a torn last one does not.
    promised.extend(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))
    assert process.returncode == -signal.SIGKILL
    return promised


async def check_whole(store: Store, stored: Stored, promised: Mapping[str, int]) -> None:
    """Every batch that was promised is there with all its jobs; also what was not promised is whole: its jobs and its line of the audit."""
    held = Counter(job.job_id.rpartition("-")[0] for job in stored.jobs)
    assert {batch: held[batch] for batch in promised} == promised
    told: dict[str, int] = {}
    while lines_of := await store.list_audit(after=ChangeSeq(len(told)), limit=1_000):
        told.update((batch, int(jobs)) for batch, jobs in (line.detail.split() for line in lines_of))
    assert told == dict(held)
