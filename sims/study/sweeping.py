"""A whole study: policies x loads x seeds, before it the search for each policy's best setting, beside it the highest loads.

Decides what is done, in which order, and where in the study's folder it is kept. Whatever is there already is not done again: a study that
was stopped goes on. Must not know who does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Final

from atoll.model.errors import FieldError
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.policy_file import write_policy
from sims.report.comparison import METRICS, Metric, run_of
from sims.results.parquet import read_result
from sims.study.bounding import with_loads
from sims.study.idealised import NAME as IDEAL
from sims.study.pooling import LOAD_MAX_MILLI
from sims.study.running import Run, Study, metadata_of
from sims.study.tasks import Bound, Ideally, Play, Task, is_done, read_found, write_whole
from sims.study.tuning import Grid, ablations, settings_of

RUNS: Final = "runs"
_TUNING: Final = "tuning"
_BEST: Final = "best"
_BOUNDS: Final = "highest-loads"
# Settings are chosen in other worlds than those in which they are shown: the best of many by chance would win there too.
TUNING_SEED: Final = 1_000_000
# Of all tasks of one study; a mistake in a grid is more.
TASKS_MAX: Final = 100_000
# Policies, loads and seeds of a study.
POLICIES_MAX: Final = 64
SEEDS_MAX: Final = 1_000
Work = Callable[[Sequence[Task]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """How settings are tried: of each policy so many, in so many worlds, at one load. `grids`: more of it for policies by name."""

    by: Metric
    budget: int
    load_milli: int
    seeds: int = 1
    grid: Grid = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked. The first policy is what others are compared with; `ablate` takes its parts away one by one."""

    policies: tuple[Policy, ...]
    loads_milli: tuple[int, ...]
    seeds: tuple[int, ...]
    ideal: bool = False
    ablate: bool = False
    tune: Tune | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The best setting that was found of a policy. `tried`: (policy, value of the metric) of all, in the order tried."""

    base: Policy
    best: Policy
    tried: tuple[tuple[Policy, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The folders of all results, in the order in which they are shown, and what tuning has found."""

    folders: tuple[Path, ...]
    tuned: tuple[Tuned, ...] = ()
    digest: str = ""  # of the digests of all results


def checked(study: Study, plan: Plan) -> Plan:
    """Self, or FieldError for what cannot be done: found before anything is."""
    for load_milli in plan.loads_milli:
        metadata_of(study, Run(policy=plan.policies[0], seed=0, load_milli=load_milli))
    if plan.ideal:
        study.warm_up.of(study.trace.span_us(LOAD_MAX_MILLI))
    policies = len(plan.policies) + (len(ablations(plan.policies[0])) if plan.ablate else 0)
    count = policies * len(plan.seeds) * (len(plan.loads_milli) + plan.ideal)
    if plan.tune is not None:
        metadata_of(study, Run(policy=plan.policies[0], seed=0, load_milli=plan.tune.load_milli))
        count += sum(len(_settings(plan.tune, policy)) for policy in plan.policies) * plan.tune.seeds
    if count > TASKS_MAX:
        raise FieldError("runs", count, f"at most {TASKS_MAX} in one study")
    return plan


def conduct(study: Study, plan: Plan, out: Path, work: Work) -> Outcome:
    """All of it. `work` does tasks, of which none is done yet; stopped by an exception, it leaves a folder from which it can go on."""
    plan = checked(study, plan)
    tuned = () if plan.tune is None else _tuned(study, plan.policies, plan.tune, out, work)
    policies = tuple(one.best for one in tuned) or plan.policies
    if plan.ablate:
        policies = (policies[0], *ablations(policies[0]), *policies[1:])
    runs = [Run(policy=policy, seed=seed, load_milli=load) for load in plan.loads_milli for policy in policies for seed in plan.seeds]
    plays = [Play(run=run, place=f"{RUNS}/{run.name(study)}") for run in runs]
    bounds = {(policy.identity, seed): _bound(study, policy, seed) for policy in policies for seed in plan.seeds} if plan.ideal else {}
    ideals = [_ideally(study, load, seed) for load in plan.loads_milli for seed in plan.seeds] if plan.ideal else []
    _do(out, [*bounds.values(), *ideals, *plays], work)
    ideal_milli: dict[int, int] = {}
    for play in plays:
        found = read_found(out / bound.place) if (bound := bounds.get((play.run.policy.identity, play.run.seed))) is not None else None
        if found is not None:
            ideal_milli[play.run.seed] = found.ideal_milli
            with_loads(out / play.place, found.pooled_milli or 0, found.ideal_milli)
    for one in ideals:
        with_loads(out / one.place, ideal_milli[one.seed], ideal_milli[one.seed])
    folders = tuple(out / place for place in (*(play.place for play in plays), *(one.place for one in ideals)))
    return Outcome(folders=folders, tuned=tuned, digest=_digest(folders))


def _do(out: Path, tasks: Sequence[Task], work: Work) -> None:
    left = [task for task in tasks if not is_done(task, out)]
    if left:
        work(left)


def _bound(study: Study, policy: Policy, seed: int) -> Bound:
    return Bound(policy=policy, seed=seed, place=f"{_BOUNDS}/{Run(policy=policy, seed=seed).name(study)}.json")


def _ideally(study: Study, load_milli: int, seed: int) -> Ideally:
    """Named as the run of a policy would be that had nothing to decide."""
    name = Run(policy=Policy(name=IDEAL), seed=seed, load_milli=load_milli).name(study)
    return Ideally(seed=seed, load_milli=load_milli, place=f"{RUNS}/{name}")


def _digest(folders: Sequence[Path]) -> str:
    hashed = blake2b(digest_size=16)
    for folder in folders:
        hashed.update(read_result(folder).metadata.digest.encode())
    return hashed.hexdigest()


# --- tuning ---------------------------------------------------------------------------------------------------------------------


def _settings(tune: Tune, policy: Policy) -> tuple[Policy, ...]:
    return settings_of(policy, {**tune.grid, **tune.grids.get(policy.name, {})}, tune.budget)


def _tuned(study: Study, policies: Sequence[Policy], tune: Tune, out: Path, work: Work) -> tuple[Tuned, ...]:
    seeds = range(TUNING_SEED, TUNING_SEED + tune.seeds)
    plays: dict[str, list[list[Play]]] = {}
    for policy in policies:
        of_settings = [[Run(policy=one, seed=seed, load_milli=tune.load_milli) for seed in seeds] for one in _settings(tune, policy)]
        plays[policy.name] = [[Play(run=run, place=f"{_TUNING}/{run.name(study)}") for run in runs] for runs in of_settings]
    _do(out, [play for settings in plays.values() for setting in settings for play in setting], work)
    found = tuple(_best(policy, plays[policy.name], tune.by, out) for policy in policies)
    for one in found:
        write_whole(out / _BEST / f"{one.base.name}.yaml", write_policy(one.best).encode())
    return found


def _best(policy: Policy, settings: Sequence[Sequence[Play]], by: Metric, out: Path) -> Tuned:
    """By the mean over the worlds; of equals the one that was tried first, so that nothing is changed for nothing."""
    tried = tuple((plays[0].run.policy, _mean([_value(out / play.place, by) for play in plays])) for plays in settings)
    best, _ = min(tried, key=lambda one: one[1] if by.lower_is_better else -one[1])
    return Tuned(base=policy, best=best if best == policy else replace(best, name=f"{policy.name}.tuned"), tried=tried)


def _value(folder: Path, by: Metric) -> float:
    run, _, _ = run_of(read_result(folder))
    return run.metrics.get(by.key, inf if by.lower_is_better else -inf)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def metric_of(key: str) -> Metric:
    """FieldError for one that there is not."""
    known = {metric.key: metric for metric in METRICS}
    if key not in known:
        raise FieldError("by", key, f"one of {', '.join(known)}")
    return known[key]
