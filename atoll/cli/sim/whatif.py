"""`atoll sim what-if`, and `--what-if` of other verbs: a live fleet and its last hours, played as it is and with a change.

Decides options, how much is enough to say anything, and how the answer looks. What is played, and what may be claimed, is `sims.whatif`'s
matter, which is loaded when the verb runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count, duration
from atoll.cli.output import Form, note, say, show_plain, table
from atoll.cli.policies import load
from atoll.cli.session import session
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId, SiteId, parse_name

if TYPE_CHECKING:
    from atoll.cli.sim.live import Recent
    from atoll.model.modelspec import ModelSpec
    from sims.traces.job import TraceJob
    from sims.whatif.change import Change
    from sims.whatif.outcome import Outcome

# Of fewer jobs the 99th percentile is the slowest one.
JOBS_MIN: Final = 100
_JOBS: Final = 2_000
_JOBS_MOST: Final = 1_000_000
_HOURS: Final = 6.0
_HOURS_MOST: Final = 8_784.0
# t over five seeds needs 2.8 standard errors, over three 4.3, over ten 2.3.
_SEEDS: Final = 5
_SEEDS_BOUNDS: Final = (3, 100)
_PROCESSES_MOST: Final = 256
_DRAWN_EVERY_S: Final = 0.2

Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", show_default=False, help="Play these jobs in place of the fleet's own. (with --what-if)"),
]
Hours = Annotated[
    str | None, typer.Option("--hours", metavar="H", show_default=False, help="So far back jobs are taken. (with --what-if; default 6)")
]
JobsMax = Annotated[
    str | None, typer.Option("--jobs-max", metavar="N", show_default=False, help="The newest N of them. (with --what-if; default 2000)")
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="N", show_default=False, help="Play both so many times. (with --what-if; default 5)")
]
Processes = Annotated[
    str | None, typer.Option("--processes", metavar="N", show_default=False, help="Runs at once. (with --what-if; default all cores)")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is played how often."""

    trace: Path | None
    hours: float
    jobs_max: int
    seeds: int
    processes: int


def settings(trace: Path | None, hours: str | None, jobs_max: str | None, seeds: str | None, processes: str | None) -> Settings:
    """The options, read. Raises FieldError."""
    if trace is not None and hours is not None:
        raise CliError("--hours is given with --trace: expected one of them", code=Exit.USAGE)
    cores = len(os.sched_getaffinity(0))
    return Settings(
        trace=trace,
        hours=arguments.decimal("--hours", hours, 0.01, _HOURS_MOST) or _HOURS,
        jobs_max=arguments.whole("--jobs-max", jobs_max, JOBS_MIN, _JOBS_MOST, _JOBS),
        seeds=arguments.whole("--seeds", seeds, *_SEEDS_BOUNDS, _SEEDS),
        processes=arguments.whole("--processes", processes, 1, _PROCESSES_MOST, cores),
    )


def refuse_alone(*given: object) -> None:
    """CliError where options that say how to play are given and nothing is to be played."""
    for name, value in zip(("--trace", "--hours", "--jobs-max", "--seeds", "--processes"), given, strict=True):
        if value is not None:
            raise CliError(f"{name} is given without --what-if: expected both or neither", code=Exit.USAGE)


def what_if(
    *,
    policy: Annotated[
        str, typer.Option("--policy", metavar="POLICY", show_default=False, help="If the fleet ran by this policy: a name, or a file.")
    ] = "",
    drain: Annotated[
        list[str] | None, typer.Option("--drain", metavar="SITE", show_default=False, help="If this site were drained; may be repeated.")
    ] = None,
    add: Annotated[
        Path | None, typer.Option("--add", metavar="FILE", show_default=False, help="If the sites of this fleet file were added.")
    ] = None,
    trace: Trace = None,
    hours: Hours = None,
    jobs_max: JobsMax = None,
    seeds: Seeds = None,
    processes: Processes = None,
) -> None:
    """What a change would change: the live fleet and its last hours, played as it is and with the change, seed by seed.

    Asks the orchestrator for its sites, copies, policy, what it has learned and the jobs of the last hours, and changes nothing there.
    """
    from sims.whatif.change import Change

    if not (policy or drain or add):
        raise CliError("nothing is changed: expected --policy, --drain or --add", code=Exit.USAGE)
    read = settings(trace, hours, jobs_max, seeds, processes)
    sites, links = added(add) if add is not None else ((), ())
    drains = tuple(dict.fromkeys(SiteId(parse_name("--drain", name.removeprefix("site/"))) for name in drain or ()))
    answer(Change(drains=drains, sites=sites, links=links, policy=load(policy) if policy else None), read)


def added(file: Path) -> tuple[Any, Any]:
    """Sites and links of a fleet file. Raises CliError."""
    from atoll.cli.fleetfile import read_fleet

    sites, links = read_fleet(file)
    if not sites:
        raise FieldError("site file", str(file), "a file with at least one site")
    empty = [site.site_id for site in sites if not site.pools]
    if empty:
        raise FieldError("pools", f"none of site {empty[0]}", f"pools, as {file} is all that is known of the site")
    return sites, links


def answer(change: Change, read: Settings) -> None:
    """Ask, play and tell."""
    from atoll import data
    from atoll.catalog.gpus import parse_gpus
    from atoll.cli.sim import live as asking
    from sims.whatif.live import scenario_of
    from sims.whatif.outcome import outcomes
    from sims.whatif.pairs import Experiment, play_all
    from sims.whatif.truth import factors_of

    form = session().form
    if form is Form.NAME:
        raise FieldError("-o", form.value, "table, wide, json or yaml: a comparison has no name")
    with session().client() as client:
        found = asking.live(client)
        catalogue = {model.model_id: model for model in found.models}
        recent = asking.recent(client, read.hours, read.jobs_max) if read.trace is None else _traced(read.trace, read.jobs_max, catalogue)
    jobs = tuple(job for job in recent.jobs if _known(job, catalogue))
    scenario, left_out = scenario_of(found, parse_gpus(data.gpus_csv(), "gpus.csv"), {job.model_id for job in jobs})
    changed = change.made(scenario, found.time_scale_milli)
    _enough(len(jobs), read)
    notes = [*left_out, *_notes(recent, len(recent.jobs) - len(jobs))]
    factors = factors_of(found.learned, scenario.sites)
    experiment = Experiment(now=scenario, then=changed, jobs=jobs, factors=factors)
    played = play_all(experiment, range(read.seeds), read.processes, _progress(len(jobs) * read.seeds * 2, read.seeds * 2))
    results = outcomes(played)
    learned = len({site_id for _, site_id in factors})
    if form in {Form.JSON, Form.YAML}:
        jobs_told = {"jobs": len(jobs), "span_us": recent.span_us, "trace": str(read.trace) if read.trace else None}
        told = {"what_if": change.words, **jobs_told, "seeds": read.seeds, "sites": len(scenario.sites), "sites_learned": learned}
        show_plain(form, {**told, "notes": notes, "figures": [_plain(one, recent.measured) for one in results]})
        return
    source = str(read.trace) if read.trace else f"the last {duration(recent.span_us)}"
    say(f"What if {change.words}?")
    say(f"  {count(len(jobs), 'job')} of {source}, played {read.seeds} times as it is and {read.seeds} times with the change")
    say(f"  {count(len(scenario.sites), 'site')}; {learned} of them as fast as was learned, the others as chance has it, alike in both")
    say("")
    _show(results, recent.measured)
    for line in notes:
        note(line)


def _known(job: TraceJob, catalogue: dict[ModelId, ModelSpec]) -> bool:
    from sims.traces.variants import base_of

    return job.model_id in catalogue or base_of(job.model_id) in catalogue


def _traced(trace: Path, most: int, catalogue: dict[ModelId, ModelSpec]) -> Recent:
    from atoll.cli.sim.live import Recent
    from atoll.cli.sim.trace import rules_of
    from sims.traces.reading import TraceFile

    jobs = tuple(islice(TraceFile(trace, rules_of(None, dense=False, skip_bad=False, models=catalogue)).jobs(), most))
    return Recent(jobs=jobs, span_us=jobs[-1].arrival_us if jobs else 0, bound=0, measured={})


def _enough(jobs: int, read: Settings) -> None:
    if jobs >= JOBS_MIN:
        return
    wanted = f"at least {JOBS_MIN} are needed, or the 99th percentile is the slowest job"
    if read.trace is not None:
        raise CliError(f"{read.trace} has {count(jobs, 'job')}: {wanted}", code=Exit.UNDECIDED)
    hint = f"--hours {min(read.hours * 4, _HOURS_MOST):g} looks further back; --trace FILE plays other jobs (atoll sim trace generate)"
    raise CliError(f"{count(jobs, 'job')} arrived in the last {read.hours:g} hours: {wanted}", code=Exit.UNDECIDED, hint=hint)


def _notes(recent: Recent, unknown: int) -> list[str]:
    notes = []
    if unknown:
        notes.append(f"{count(unknown, 'job')} of models that are no longer known {'is' if unknown == 1 else 'are'} left out")
    if recent.bound:
        notes.append(f"{count(recent.bound, 'job')} bound to sites, regions, GPU types or a price may go anywhere here")
    return notes


def _progress(jobs: int, runs: int) -> Callable[[int, int], None]:
    """Tells how far all runs are, on a terminal."""
    if not sys.stderr.isatty():
        return lambda _played, _over: None

    drawn_s = 0.0

    def told(played: int, over: int) -> None:
        nonlocal drawn_s
        now_s = time.monotonic()
        if over < runs and now_s - drawn_s < _DRAWN_EVERY_S:
            return
        drawn_s = now_s
        share = played * 100 // max(jobs, 1)
        sys.stderr.write("\r\033[K" if over == runs else f"\r{share} %: {over} of {runs} runs, {played:,} of {jobs:,} jobs played\033[K")
        sys.stderr.flush()

    return told


# --- how it looks ---------------------------------------------------------------------------------------------------------------


def _plain(one: Outcome, measured: Mapping[str, float]) -> dict[str, Any]:
    return {
        "figure": one.metric.key,
        "unit": one.metric.unit.value,
        "measured": measured.get(one.metric.key),
        "now": one.now,
        "then": one.then,
        "verdict": one.verdict.value,
        "difference": None if one.difference is None else asdict(one.difference),
    }


def _show(results: tuple[Outcome, ...], measured: Mapping[str, float]) -> None:
    from sims.report import wording
    from sims.whatif.outcome import Verdict

    rows = []
    for one in results:
        in_life = [wording.value(one.metric, measured.get(one.metric.key))] if measured else []
        cells = [one.metric.title, *in_life, wording.value(one.metric, one.now), wording.value(one.metric, one.then)]
        if one.difference is None or one.now is None or one.then is None:
            cells += ["", "", one.verdict.value]
        else:
            sure = (
                one.verdict.value if one.exact or one.verdict is Verdict.SAME else f"{one.verdict.value}, {wording.chance(one.difference)}"
            )
            cells += [wording.change(one.metric, one.now, one.then), wording.interval(one.metric, one.difference), sure]
        rows.append(cells)
    titles = ["FIGURE", *(["IN LIFE"] if measured else []), "NOW", "THEN", "CHANGE", "WITH 95 %", "HOW SURE"]
    table(titles, rows, frozenset(range(1, len(titles) - 1)), indent="  ")
