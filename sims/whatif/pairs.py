"""The runs of a what-if: the same jobs on the same worlds, as it is and with the change, on several cores.

Decides the order of runs and how they end early. A run is a process of its own where there is more than one; it ends with its parent, and
within moments when it is told to. Must not know what is changed.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any, Final

from atoll.model.errors import AtollError
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.traces.job import TraceJob
from sims.whatif.figures import Rows, figures_of_run
from sims.whatif.truth import Factors, LearnedWorld

# Progress is looked at so often; a person sees no more.
_LOOK_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


class Variant(StrEnum):
    """Which of the two."""

    NOW = "now"
    THEN = "then"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Both scenarios, the jobs, and what is known of the truth."""

    now: Scenario
    then: Scenario
    jobs: tuple[TraceJob, ...]
    factors: Factors = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one run, by name."""

    variant: Variant
    seed: int
    figures: dict[str, float]


class StoppedError(Exception):
    """A run was told to end."""


def play(experiment: Experiment, variant: Variant, seed: int, jobs: Iterable[TraceJob]) -> Measured:
    """One run."""
    scenario = replace(experiment.now if variant is Variant.NOW else experiment.then, seed=seed)
    rows = Rows()
    Player(scenario, jobs, rows, truth=LearnedWorld(seed, scenario.sigma, experiment.factors)).play()
    return Measured(variant=variant, seed=seed, figures=figures_of_run(rows.jobs, scenario))


def play_all(
    experiment: Experiment, seeds: Iterable[int], processes: int, told: Callable[[int, int], None]
) -> dict[Variant, dict[int, dict[str, float]]]:
    """All runs, both of a seed one after the other. `told` hears how many jobs have arrived, and how many runs are over.

    Raises AtollError where a process was killed.
    """
    tasks = [(variant, seed) for seed in seeds for variant in Variant]
    done = _alone(experiment, tasks, told) if processes == 1 else _side_by_side(experiment, tasks, processes, told)
    found: dict[Variant, dict[int, dict[str, float]]] = {variant: {} for variant in Variant}
    for one in done:
        found[one.variant][one.seed] = one.figures
    return found


def _alone(experiment: Experiment, tasks: list[tuple[Variant, int]], told: Callable[[int, int], None]) -> Iterator[Measured]:
    played = 0

    def counted(over: int) -> Iterator[TraceJob]:
        nonlocal played
        for job in experiment.jobs:
            played += 1
            told(played, over)
            yield job

    for over, (variant, seed) in enumerate(tasks):
        yield play(experiment, variant, seed, counted(over))
        told(played, over + 1)


# --- several at once --------------------------------------------------------------------------------------------------------------

# What a worker was begun with: the experiment, how many jobs have arrived by task, and whether it is to end. Numbers without a lock: a
# worker that is killed while it holds one would hold everybody for ever, and each has one writer.
_begun: tuple[Experiment, Any, Any] | None = None


def _side_by_side(
    experiment: Experiment, tasks: list[tuple[Variant, int]], processes: int, told: Callable[[int, int], None]
) -> Iterator[Measured]:
    context = get_context("spawn")  # threads of the caller's, gRPC's among them, may hold any lock
    played, stop = RawArray("q", len(tasks)), RawValue("b", 0)
    over, others = 0, set(active_children())
    with ProcessPoolExecutor(min(processes, len(tasks)), context, _begin, (experiment, played, stop)) as pool:
        try:
            with _deaf():
                running: set[Future[Measured]] = {pool.submit(_task, number, *task) for number, task in enumerate(tasks)}
            while running:
                ended, running = wait(running, _LOOK_S, FIRST_COMPLETED)
                over += len(ended)
                told(sum(played), over)
                yield from (future.result() for future in ended)
        except BrokenProcessPool:
            # The pool ends those it knew when it broke; one that it was just starting would be waited for without end.
            for process in set(active_children()) - others:
                process.kill()
            raise AtollError("a process that played was killed, for want of memory perhaps: fewer at once need less") from None
        finally:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that begin meanwhile do not hear Ctrl-C; this one hears it afterwards, and tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(experiment: Experiment, played: Any, stop: Any) -> None:
    global _begun  # noqa: PLW0603 - what a worker of a pool is begun with has no other place
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _begun = (experiment, played, stop)


def _task(number: int, variant: Variant, seed: int) -> Measured:
    assert _begun is not None, "a worker begins with its experiment"
    experiment, played, stop = _begun
    parent = os.getppid()

    def counted() -> Iterator[TraceJob]:
        for job in experiment.jobs:
            if stop.value or os.getppid() != parent:
                raise StoppedError
            played[number] += 1
            yield job

    return play(experiment, variant, seed, counted())
