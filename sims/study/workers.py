"""Tasks of a study on processes of this machine, one for each core.

Decides who does what next, and that nobody goes on when the study is stopped or one of them is lost. A task's outcome depends on nothing
but the task, so neither their number nor their order changes it. Must not know what tasks do.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, NoReturn

from atoll.model.errors import AtollError
from sims.study.running import Study
from sims.study.tasks import Task, perform

# Told to end, a worker puts away what is half written; one that is in the middle of a long call is killed.
_GRACE_S: Final = 5.0
WORKERS_MAX: Final = 1_024
# Who is told of a task how many jobs were played for it; None: it is done.
Heard = Callable[[Task, int | None], None]


class TaskFailedError(AtollError):
    """A task could not be done; what is done stays."""

    def __init__(self, task: Task, why: str) -> None:
        super().__init__(f"{task.place}: {why}")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_here(study: Study, tasks: Sequence[Task], out: Path, workers: int, heard: Heard) -> None:
    """Do all of them. TaskFailedError for the first that cannot be done, or whose worker was lost."""
    if workers == 1:
        for task in tasks:
            perform(study, task, out, lambda jobs, task=task: heard(task, jobs))  # type: ignore[misc]  # a lambda with a default
            heard(task, None)
        return
    crew = [_Worker(study, out) for _ in range(min(workers, len(tasks)))]
    try:
        _lead(crew, list(reversed(tasks)), heard)
    finally:
        for worker in crew:
            worker.dismiss()
        for worker in crew:
            worker.leave()


def _lead(crew: list[_Worker], waiting: list[Task], heard: Heard) -> None:
    busy: dict[Connection, _Worker] = {}
    for worker in crew:
        busy[worker.begin(waiting.pop())] = worker
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection), "nothing else is waited for"
            worker = busy[ready]
            said = worker.heard()
            heard(worker.task, said)
            if said is None:
                del busy[ready]
                if waiting:
                    busy[worker.begin(waiting.pop())] = worker


class _Worker:
    """One process. It hears a task, says now and then how many jobs it has played, then None; or a text: why it could not."""

    task: Task

    def __init__(self, study: Study, out: Path) -> None:
        # Forked, it would inherit threads that compiled code has started and that are not there.
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(study, out, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, task: Task) -> Connection:
        self.task = task
        try:
            self._pipe.send(task)
        except OSError:
            raise self._lost() from None
        return self._pipe

    def heard(self) -> int | None:
        try:
            said: int | str | None = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if isinstance(said, str):
            raise TaskFailedError(self.task, said)
        return said

    def dismiss(self) -> None:
        self._process.terminate()

    def leave(self) -> None:
        self._process.join(_GRACE_S)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _lost(self) -> TaskFailedError:
        self._process.join(_GRACE_S)
        code = self._process.exitcode or 0
        why = f"was killed by signal {-code}; is there too little memory? Fewer workers need less" if code < 0 else f"ended with {code}"
        return TaskFailedError(self.task, f"its process {why}")


def _work(study: Study, out: Path, pipe: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that leads decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    try:
        while True:
            task: Task = pipe.recv()
            try:
                perform(study, task, out, pipe.send)
            except (AtollError, OSError) as error:
                pipe.send(str(error))
                return
            pipe.send(None)
    except (EOFError, BrokenPipeError):  # who leads is gone
        return


def _end(*_: object) -> NoReturn:
    sys.exit(0)
