"""What a study is made of as far as a worker sees it: runs to play, and highest loads to find. Each is done when its files are there.

Decides what is kept, and that no half of it is ever taken for whole: what a task leaves gets its name when it is complete. Of a search that
was stopped the loads that it had tried are kept, and not tried again. Must not know who works, nor how many.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, assert_never

from orchestrator.core.placement.policy import Policy
from sims.results.parquet import JOBS_FILE, SITES_FILE
from sims.study.bounding import Shares, ideal_load, policy_load
from sims.study.idealised import carry_out_ideal
from sims.study.running import Run, Study, Told, carry_out, is_kept

# About so many runs as long as those of the trace are a search.
_RUNS_OF_A_SEARCH: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One run. `place`: the folder of its result, below that of the study."""

    run: Run
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The highest loads of a policy and of the ideal in one world. `place`: the file that says them."""

    policy: Policy
    seed: int
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideally:
    """What the ideal does at one load in one world. `place` as of a run."""

    seed: int
    load_milli: int
    place: str


Task = Play | Bound | Ideally


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search has found so far; `pooled_milli` is None until it is over."""

    ideal_milli: int
    pooled_milli: int | None = None
    tried: Shares = field(default_factory=dict)


def work_of(study: Study, task: Task) -> int:
    """About how many jobs are played for it."""
    return study.trace.jobs * (_RUNS_OF_A_SEARCH if isinstance(task, Bound) else 1)


def is_done(task: Task, out: Path) -> bool:
    """Whether all that it leaves is there."""
    match task:
        case Play() | Ideally():
            return is_kept(out / task.place)
        case Bound():
            found = read_found(out / task.place)
            return found is not None and found.pooled_milli is not None
        case _:
            assert_never(task)


def perform(study: Study, task: Task, out: Path, told: Told | None = None) -> None:
    """Do it, below `out`. `told` hears how many jobs were played for it."""
    match task:
        case Play():
            carry_out(study, task.run, out / task.place, told)
        case Ideally():
            carry_out_ideal(study, task.seed, task.load_milli, out / task.place)
        case Bound():
            _search(study, task, out / task.place, told)
        case _:
            assert_never(task)


def files_of(task: Task) -> tuple[str, ...]:
    """What it leaves, below the study's folder; that the last is there says that all are."""
    return (task.place,) if isinstance(task, Bound) else (f"{task.place}/{SITES_FILE}", f"{task.place}/{JOBS_FILE}")


def read_found(path: Path) -> Found | None:
    """What a search has found; None where there is none, or something else."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        tried = {int(load): float(share) for load, share in said["tried"].items()}
        pooled = said["pooled_milli"]
        return Found(ideal_milli=int(said["ideal_milli"]), pooled_milli=None if pooled is None else int(pooled), tried=tried)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_whole(path: Path, content: bytes) -> None:
    """All of it under this name, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _search(study: Study, task: Bound, path: Path, told: Told | None) -> None:
    kept = read_found(path)
    ideal_milli = kept.ideal_milli if kept is not None else ideal_load(study, task.seed).load_milli
    tried = dict(kept.tried) if kept is not None else {}
    played = 0

    def found(load_milli: int, share: float) -> None:
        nonlocal played
        played += study.trace.jobs
        _write_found(path, Found(ideal_milli=ideal_milli, tried={**tried, load_milli: share}))

    def heard(jobs: int) -> None:
        if told is not None:
            told(played + jobs)

    reached = policy_load(study, task.policy, task.seed, ideal_milli, known=tried, found=found, told=heard)
    _write_found(path, Found(ideal_milli=ideal_milli, pooled_milli=reached.load_milli, tried=tried))


def _write_found(path: Path, found: Found) -> None:
    said = {
        "ideal_milli": found.ideal_milli,
        "pooled_milli": found.pooled_milli,
        "tried": {str(load): share for load, share in sorted(found.tried.items())},
    }
    write_whole(path, json.dumps(said, indent=2).encode())
