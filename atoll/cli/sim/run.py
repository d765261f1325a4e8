"""`atoll sim run`: a trace, a fleet and a policy in, the figures of what would have become of it out.

Decides options and how figures look; the run itself is `sims.play`'s matter, which is loaded when the verb runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.figures import NONE, count, duration, size
from atoll.cli.fleetfile import read_fleet
from atoll.cli.output import Form, note, say, show_plain, table
from atoll.cli.policies import load
from atoll.cli.session import session
from atoll.cli.sim.counting import counted
from atoll.cli.sim.trace import Dense, RowsMax, SkipBad, packaged_models, rules_of, say_skipped
from atoll.model.errors import FieldError

if TYPE_CHECKING:
    from atoll.model.site import SiteSpec
    from sims.play.scenario import Scenario
    from sims.play.weather import Weather
    from sims.results.figures import Figures
    from sims.results.parquet import Metadata, Result

_SCALE: Final = re.compile(r"(\d{1,6})(?:/(\d{1,6}))?\Z")
_WARM_UP_MS_MAX: Final = 30 * 86_400_000
# A day of a fleet at one end of it, an hour at the other: what a person may mean by a look now and then.
_SAMPLE_MS: Final = (1_000, 86_400_000)


def run(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="The jobs: .parquet, .csv or .jsonl, the last two also with .gz.")],
    *,
    fleet: Annotated[Path, typer.Option("--fleet", metavar="FILE", help="The sites and their links.")] = Path("clusters.yaml"),
    scale: Annotated[
        str, typer.Option("--scale", metavar="SHARE", help="So many of each pool's nodes, at least one; 1/32 is the fleet of studies.")
    ] = "1",
    policy: Annotated[str, typer.Option("--policy", metavar="POLICY", help="A policy's name, or a file.")] = "default",
    seed: Annotated[str | None, typer.Option("--seed", metavar="N", show_default=False, help="Of all chance. (default 0)")] = None,
    sigma: Annotated[
        str | None,
        typer.Option("--sigma", metavar="S", show_default=False, help="How far sites are from what is predicted of them. (default 0.35)"),
    ] = None,
    warm_up: Annotated[
        str | None,
        typer.Option("--warm-up", metavar="DURATION", show_default=False, help="What arrives before is in no figure. (default 0s)"),
    ] = None,
    weather: Annotated[
        str, typer.Option("--weather", metavar="HOW", help="What befalls sites besides: calm (nothing), ordinary or rough.")
    ] = "calm",
    sample: Annotated[
        str, typer.Option("--sample", metavar="DURATION", help="How often each site is looked at, for the table of sites.")
    ] = "60s",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", show_default=False, help="Keep all rows there: jobs.parquet and sites.parquet.")
    ] = None,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
) -> None:
    """Play a trace on a fleet in virtual time, with the deciding code of the live programs. Same seed, same digest.

    Interrupted, it keeps nothing: a part of a run is not its result.
    """
    from sims.play.player import Player
    from sims.results.figures import figures
    from sims.results.parquet import ResultWriter, read_result
    from sims.traces.reading import TraceFile

    form = session().form
    catalogue = packaged_models()
    scenario = replace(_scenario(fleet, scale, policy, seed, sigma, sample), weather=_weather(weather))
    opened = TraceFile(trace, rules_of(rows_max, dense=dense, skip_bad=skip_bad, models=catalogue))
    warm_up_us = _duration_us("--warm-up", warm_up, 0, _WARM_UP_MS_MAX) if warm_up is not None else 0
    metadata = _metadata(scenario, warm_up_us, fleet=f"{fleet} x {scale}", trace=str(trace), licence=opened.meta.licence)
    with _folder(out) as folder:
        with ResultWriter(folder, metadata) as writer:
            played = Player(scenario, counted(opened.jobs(), "played", opened.rows_claimed), writer).play()
            writer.finish(replace(metadata, simulated_us=played.simulated_us, wall_us=played.wall_us, digest=played.digest))
        result = read_result(folder)
        found = figures(result)
        if form in {Form.JSON, Form.YAML}:
            show_plain(form, _plain(found))
        else:
            _show(found, result)
    if out is not None:
        note(f"wrote {count(played.jobs, 'job')} to {out}")
    say_skipped(opened.skipped)


def _scenario(fleet: Path, scale: str, policy: str, seed: str | None, sigma: str | None, sample: str) -> Scenario:
    from atoll import data
    from atoll.catalog.gpus import parse_gpus
    from atoll.physics.hidden import SIGMA_MAX, SIGMA_MIN
    from sims.play.scenario import SIGMA, Scenario, scaled

    match = _SCALE.match(scale.strip())
    parts = (int(match[1]), int(match[2] or 1)) if match else (0, 1)
    if not 0 < parts[0] <= parts[1]:
        raise FieldError("--scale", scale, "a share above 0 and at most 1, such as 1/32")
    sites, links = read_fleet(fleet)
    if not sites:
        raise FieldError("--fleet", str(fleet), "a file with at least one site")
    return Scenario(
        sites=scaled(sites, *parts),
        links=links,
        catalogue=packaged_models(),
        gpus=parse_gpus(data.gpus_csv(), "gpus.csv"),
        policy=load(policy),
        seed=arguments.whole("--seed", seed, 0, 2**63 - 1),
        sigma=arguments.decimal("--sigma", sigma, SIGMA_MIN, SIGMA_MAX) or SIGMA,
        sample_us=_duration_us("--sample", sample, *_SAMPLE_MS),
    )


def _weather(name: str) -> Weather:
    from sims.play.weather import WEATHERS

    if name not in WEATHERS:
        raise FieldError("--weather", name, f"one of {', '.join(WEATHERS)}{arguments.meant(name, WEATHERS)}")
    return WEATHERS[name]


def _duration_us(option: str, text: str, low_ms: int, high_ms: int) -> int:
    return arguments.duration_ms(option, text, low_ms=low_ms, high_ms=high_ms) * 1_000


def _metadata(scenario: Scenario, warm_up_us: int, *, fleet: str, trace: str, licence: str) -> Metadata:
    from sims.results.parquet import Metadata

    identity = scenario.policy.identity
    return Metadata(
        policy=identity.name,
        policy_digest=identity.digest,
        seed=scenario.seed,
        trace=trace,
        trace_licence=licence,
        fleet=fleet,
        synthetic=any(site.synthetic for site in scenario.sites),
        warm_up_us=warm_up_us,
        sites=tuple(_place(site) for site in scenario.sites),
    )


def _place(site: SiteSpec) -> Any:
    from sims.results.parquet import SitePlace

    return SitePlace(
        site_id=site.site_id,
        region=site.region,
        latitude_micro_deg=site.latitude_micro_deg,
        longitude_micro_deg=site.longitude_micro_deg,
        slots=sum(pool.slots for pool in site.pools),
        gpu_types=tuple(dict.fromkeys(pool.gpu_type for pool in site.pools)),
    )


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        if out.exists() and not out.is_dir():
            raise FieldError("--out", str(out), "a folder, or a name that is free")
        yield out
        return
    with TemporaryDirectory(prefix="atoll-sim-") as folder:
        yield Path(folder)


# --- how it looks ---------------------------------------------------------------------------------------------------------------


def _plain(found: Figures) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found)


def _show(found: Figures, result: Result) -> None:
    metadata = result.metadata
    say(f"{metadata.trace} on {metadata.fleet} by policy {metadata.policy} ({metadata.policy_digest}), seed {metadata.seed}")
    if metadata.synthetic:
        say("  figures of this fleet are invented")
    speed = f"{found.jobs_per_wall_s:.0f} jobs a second" if found.jobs_per_wall_s is not None else NONE
    say(
        f"  {count(found.jobs, 'job')} in {duration(metadata.simulated_us)} of fleet time, played in {duration(metadata.wall_us)} ({speed})"
    )
    say(f"  digest {found.digest}")
    say("")
    rows = [
        [kind, str(one.n), _s(one.mean_s), _s(one.p50_s), _s(one.p90_s), _s(one.p99_s)]
        for kind, one in found.classes.items()
    ]  # fmt: skip
    table(["KIND", "DONE", "MEAN S", "P50 S", "P90 S", "P99 S"], rows, frozenset(range(1, 6)), indent="  ")
    say("")
    say(f"  ended: {', '.join(f'{number} {state}' for state, number in found.states.items())}")
    say(f"  cold starts: {_share(found.cold_start_share)} of jobs that ran; deadlines missed: {_share(found.deadline_miss_share)}")
    usd = NONE if found.usd_per_1000_jobs is None else f"${found.usd_per_1000_jobs:.2f}"
    say(
        f"  {usd} per 1,000 jobs; GPUs busy {_share(found.utilisation)}; {found.evictions} evictions; {size(found.egress_bytes)} left sites"
    )
    say(f"  seconds of a job: {', '.join(f'{term} {seconds:.2f}' for term, seconds in found.terms_s.items() if seconds >= 0.005)}")


def _s(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.2f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value * 100:.1f} %"
