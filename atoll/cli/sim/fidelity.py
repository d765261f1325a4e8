"""`atoll sim fidelity`: the same jobs through real processes and through the simulator, class by class.

Decides options, and how the comparison looks. Both sides have the same sites, models, hidden factors and arrivals, and different noise; the
simulated one is told how long commits and ways took in life, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count, duration
from atoll.cli.output import Form, note, say, show_plain, table
from atoll.cli.policies import load
from atoll.cli.session import session
from atoll.cli.sim import world
from atoll.cli.sim.counting import told
from atoll.cli.sim.recording import traced
from atoll.cli.sim.rehearsal import Lived, Plan, live
from atoll.model.errors import FieldError
from atoll.model.job import JobState

if TYPE_CHECKING:
    from atoll.model.adapter import AdapterSpec
    from atoll.model.ids import AdapterId, ModelId
    from atoll.model.job import Job, JobSpec
    from atoll.model.modelspec import ModelSpec
    from sims.play.scenario import Scenario
    from sims.study.fidelity import Likeness, Nearness
    from sims.study.running import Study
    from sims.traces.job import TraceJob

_SEEDS: Final = 8
_SEEDS_BOUNDS: Final = (3, 100)
_SCALE: Final = 10.0
# Above this the processes of this machine would be most of what is measured.
_SCALE_MOST: Final = 100.0
# As many as an orchestrator keeps readable and a person waits for.
_JOBS_MOST: Final = 50_000
_REAL_TIME_MILLI: Final = 1_000


def fidelity(
    trace: world.Trace,
    *,
    fleet: world.Fleet = "fleet-small",
    sites: Annotated[
        str | None, typer.Option("--sites", metavar="NAME,...", show_default=False, help="Only these. (default all of the fleet)")
    ] = None,
    scale: world.Scale = "1",
    load_: Annotated[
        str | None,
        typer.Option("--load", metavar="LOAD", show_default=False, help="Bring the trace to this share of the sites. (default: as it is)"),
    ] = None,
    time_scale: Annotated[
        str | None,
        typer.Option("--time-scale", metavar="X", show_default=False, help="Live, fleet time runs X times as fast. (default 10)"),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="POLICY", help="A policy's name, or a file.")] = "default",
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="N", show_default=False, help="Of hidden factors, on both sides. (default 1)")
    ] = None,
    noise_seed: Annotated[
        str | None,
        typer.Option("--noise-seed", metavar="N", show_default=False, help="Of the live side's noise; others follow it. (default 1)"),
    ] = None,
    noise_seeds: Annotated[
        str | None, typer.Option("--noise-seeds", metavar="N", show_default=False, help="So many simulated runs. (default 8)")
    ] = None,
    sigma: world.Sigma = None,
    warm_up: world.WarmUpText = "20%",
) -> None:
    """Do the same jobs take as long in the simulator as with real processes? An orchestrator and twins run here, and then the simulator.

    Exit code 0: each class's median and 99th percentile are within 5 %; 8: one is not, as noise alone might do; 1: one differs by more.
    """
    from sims.study.fidelity import Verdict, likenesses, simulated, worst

    form = session().form
    if form is Form.NAME:
        raise FieldError("-o", form.value, "table, wide, json or yaml: a comparison has no name")
    asked = _Asked(
        load_milli=world.load_milli("--load", load_),
        time_scale_milli=round((arguments.decimal("--time-scale", time_scale, 1, _SCALE_MOST) or _SCALE) * _REAL_TIME_MILLI),
        seed=arguments.whole("--seed", seed, 0, 2**63 - 1, 1),
        noise_seed=arguments.whole("--noise-seed", noise_seed, 0, 2**62, 1),
        runs=arguments.whole("--noise-seeds", noise_seeds, *_SEEDS_BOUNDS, _SEEDS),
    )
    load(policy)
    study = world.World(trace=trace, fleet=fleet, sites=sites, scale=scale, sigma=sigma, warm_up=warm_up).study()
    plan, left_out = _planned(study, policy, asked)
    _say_begin(plan, left_out)
    with told("submitted", len(plan.jobs)) as heard:
        lived = live(plan, heard)
    scenario, jobs = _simulation(plan, lived)
    measured = [_latency(job, lived.jobs[0].accepted_us) for job in lived.jobs if job.state is JobState.SUCCEEDED]
    if not measured:
        raise CliError("no job succeeded: there is nothing to compare", code=Exit.FAILED)
    note(f"live: {count(len(measured), 'job')} done in {lived.wall_s:.0f} s; now the simulator, {asked.runs} times")
    with told("simulated", len(jobs) * asked.runs) as heard:
        runs = [
            simulated(scenario, jobs, asked.noise_seed + 1 + number, partial(_further, heard, number * len(jobs)))
            for number in range(asked.runs)
        ]
    warm_up_us = study.warm_up.of(jobs[-1].arrival_us)
    found = likenesses(measured, runs, warm_up_us)
    verdict = worst(one.verdict for one in found)
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, _plain(found, verdict.value, plan, lived))
    else:
        _show(found, plan, lived, asked.runs)
    raise typer.Exit({Verdict.WITHIN: Exit.OK, Verdict.NOISE: Exit.UNDECIDED, Verdict.DIFFERS: Exit.FAILED}[verdict])


def _further(heard: Callable[[int], None], before: int, played: int) -> None:
    heard(before + played)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    load_milli: int
    time_scale_milli: int
    seed: int
    noise_seed: int
    runs: int


def _planned(study: Study, policy: str, asked: _Asked) -> tuple[Plan, int]:
    """What is run, and how many jobs are left out: no slot of these sites can run them, and live they would wait for one."""
    from atoll.physics.memory import peak_bytes
    from sims.play.asking import Asking
    from sims.study.loads import at_load
    from sims.study.reckoning import Reckoner

    scenario = replace(study.scenario, seed=asked.seed)
    asking = Asking(scenario.catalogue, scenario.sites)
    reckoner = Reckoner(scenario.sites, scenario.gpus, scenario.catalogue)
    memory_bytes = {
        f"{site.site_id}/{pool.pool_id}": pool.gpu_memory_bytes or scenario.gpus[pool.gpu_type].memory_bytes
        for site in scenario.sites
        for pool in site.pools
    }
    models: dict[ModelId, ModelSpec] = {}
    adapters: dict[AdapterId, AdapterSpec] = {}
    jobs: list[tuple[TraceJob, JobSpec]] = []
    left_out = 0
    for job in at_load(study.source.jobs(), study.trace, asked.load_milli):
        if len(jobs) == _JOBS_MOST:
            raise FieldError("TRACE", f"more than {_JOBS_MOST:,} jobs", "a shorter one: it is played with real processes")
        one = asking.asked(len(jobs), job)
        adapters.update((adapter.adapter_id, adapter) for adapter in one.new_adapters)
        of_adapters_bytes = sum(adapters[use.adapter_id].weights_bytes for use in job.adapters)
        needed_bytes = one.model.resident_bytes + of_adapters_bytes + peak_bytes(one.model, one.submission.spec.shape)
        if not any(memory_bytes[name] >= needed_bytes for name in reckoner.job(job).execution_us):
            left_out += 1
            continue
        models[one.model.model_id] = one.model
        jobs.append((job, one.submission.spec))
    if not jobs:
        raise CliError("no job of the trace can run at these sites", code=Exit.USAGE)
    plan = Plan(
        scenario=scenario,
        policy=policy,
        noise_seed=asked.noise_seed,
        time_scale_milli=asked.time_scale_milli,
        models=tuple(models.values()),
        adapters=tuple(adapters.values()),
        jobs=tuple(jobs),
    )
    return plan, left_out


def _say_begin(plan: Plan, left_out: int) -> None:
    if left_out:
        note(f"{count(left_out, 'job')} that no GPU of these sites can run {'is' if left_out == 1 else 'are'} left out")
    span_us, scale = plan.jobs[-1][0].arrival_us, plan.time_scale_milli / _REAL_TIME_MILLI
    slots = sum(pool.slots for site in plan.scenario.sites for pool in site.pools)
    real_us = max(round(span_us / scale), 1)
    note(
        f"{count(len(plan.jobs), 'job')} at {count(len(plan.scenario.sites), 'site')} with {slots} GPUs, "
        f"in {duration(span_us)} of fleet time: {duration(real_us)} at {scale:g} times its speed, "
        f"{len(plan.jobs) * 1e6 / real_us:.1f} jobs a second"
    )


def _simulation(plan: Plan, lived: Lived) -> tuple[Scenario, tuple[TraceJob, ...]]:
    """The same beginning, the policy as the orchestrator had it, and the jobs as they were accepted."""
    from orchestrator.core.placement.policy_file import parse_policy
    from sims.play.scenario import Beginning

    begins_us = lived.jobs[0].accepted_us
    jobs = tuple(replace(traced(job), arrival_us=job.accepted_us - begins_us) for job in lived.jobs)
    scenario = replace(
        plan.scenario,
        policy=parse_policy(lived.policy, "the orchestrator's policy", in_use=True),
        beginning=Beginning(models=plan.models, adapters=plan.adapters),
        time_scale_milli=plan.time_scale_milli,
        commit_us=lived.commit_us * plan.time_scale_milli // _REAL_TIME_MILLI,
        way_us=max(lived.way_us * plan.time_scale_milli // _REAL_TIME_MILLI, 1),
    )
    return scenario.check(), jobs


def _latency(job: Job, begins_us: int) -> Any:
    from sims.study.fidelity import Latency
    from sims.traces.job import kind_of

    return Latency(kind=kind_of(job.spec.shape), arrival_us=job.accepted_us - begins_us, latency_us=job.ended_us - job.accepted_us)


def _lags_us(plan: Plan, lived: Lived) -> list[int]:
    """Real microseconds of jobs from their lease to their end that their site has not timed, less a commit and two ways."""
    lags = []
    for job in lived.jobs:
        last = job.attempts[-1] if job.attempts else None
        if job.state is JobState.SUCCEEDED and last is not None:
            timed_us = sum(max(us, 0) for us in astuple(last.times))
            beyond_us = (last.ended_us - last.leased_us - timed_us) * _REAL_TIME_MILLI // plan.time_scale_milli
            lags.append(beyond_us - lived.commit_us - 2 * lived.way_us)
    return lags


# --- how it looks ---------------------------------------------------------------------------------------------------------------


def _each(found: Sequence[Likeness]) -> Iterator[tuple[Likeness, Nearness]]:
    for likeness in found:
        for one in likeness.quantiles:
            yield likeness, one


def _plain(found: Sequence[Likeness], verdict: str, plan: Plan, lived: Lived) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "jobs": len(lived.jobs),
        "sites": [site.site_id for site in plan.scenario.sites],
        "time_scale": plan.time_scale_milli / _REAL_TIME_MILLI,
        "commit_us": lived.commit_us,
        "way_us": lived.way_us,
        "lag_us": round(median(_lags_us(plan, lived))),
        "classes": [
            {
                "kind": likeness.kind,
                "quantile": f"p{one.per_mille // 10}",
                "n": likeness.n,
                "live_us": one.live_us,
                "simulated_us": one.simulated_us,
                "difference": one.difference_milli / 1_000,
                "noise": one.noise_milli / 1_000,
                "verdict": one.verdict.value,
            }
            for likeness, one in _each(found)
        ],
    }


def _show(found: Sequence[Likeness], plan: Plan, lived: Lived, runs: int) -> None:
    rows = [
        [
            likeness.kind,
            str(likeness.n),
            f"p{one.per_mille // 10}",
            f"{one.live_us / 1e6:.3f}",
            f"{one.simulated_us / 1e6:.3f}",
            f"{one.difference_milli / 10:+.1f} %",
            f"±{one.noise_milli / 10:.1f} %",
            one.verdict.value,
        ]
        for likeness, one in _each(found)
    ]
    table(["CLASS", "JOBS", "", "LIVE, s", "SIMULATED, s", "DIFFERENCE", "BY NOISE", "VERDICT"], rows, frozenset(range(1, 7)))
    say("")
    say(f"simulated {runs} times; by noise: how far one such run is from their mean, 95 times of 100")
    say(f"real time: a commit {lived.commit_us / 1e3:.2f} ms, a way {lived.way_us / 1e3:.2f} ms, {_lag(_lags_us(plan, lived))}")


def _lag(lags_us: Sequence[int]) -> str:
    ordered = sorted(lags_us)
    return f"a lag of {median(ordered) / 1e3:.2f} ms, at most {ordered[-1 - len(ordered) // 100] / 1e3:.2f} ms of 99 jobs of 100"
