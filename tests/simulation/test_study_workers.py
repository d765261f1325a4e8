"""Processes that work on a study: what they do does not depend on how many they are, and one that is lost is no end without a word."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from atoll.packaged import load_packaged
from sims.study.running import Run, Source, Study, studied
from sims.study.tasks import Play, Task, is_done
from sims.study.workers import TaskFailedError, do_here
from sims.traces.metadata import TraceMeta
from sims.traces.writing import write_trace
from tests.simulation.played import mixed, three_sites


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "trace.parquet"
    write_trace(path, TraceMeta(), mixed(30))
    scenario = three_sites()
    scenario = replace(scenario, gpus={**load_packaged().gpus, **scenario.gpus})
    return studied(scenario, Source(path=path), fleet="three")[0]


def _tasks(study: Study, count: int) -> list[Task]:
    runs = [Run(policy=study.scenario.policy, seed=seed) for seed in range(count)]
    return [Play(run=run, place=run.name(study)) for run in runs]


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_every_task_is_done_once_and_told(study: Study, tmp_path: Path) -> None:
    tasks, heard = _tasks(study, 5), []
    do_here(study, tasks, tmp_path / "out", 2, lambda task, jobs: heard.append((task.place, jobs)))
    assert sorted(place for place, jobs in heard if jobs is None) == sorted(task.place for task in tasks)
    assert all(is_done(task, tmp_path / "out") for task in tasks)
    assert not _workers()


def test_a_worker_that_is_killed_ends_the_study_with_a_word(study: Study, tmp_path: Path) -> None:
    def kill(task: Task, jobs: int | None) -> None:
        if jobs is None:
            for worker in _workers():
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(TaskFailedError, match=r"its process was killed by signal 9; is there too little memory\?"):
        do_here(study, _tasks(study, 60), tmp_path / "out", 2, kill)


def test_what_cannot_be_done_is_said_of_the_task(study: Study, tmp_path: Path) -> None:
    tasks = _tasks(study, 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / tasks[1].place).write_text("no folder")
    with pytest.raises(TaskFailedError, match=f"{tasks[1].place}: "):
        do_here(study, tasks, tmp_path / "out", 2, lambda *_: None)
