"""What every run of the simulator is of, as options: the fleet, what befalls it, the trace and the load that it is brought to.

Decides how these are written; what comes of them is `sims.study`'s matter, which is loaded when a verb runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments
from atoll.cli.figures import duration
from atoll.cli.fleetfile import read_fleet
from atoll.cli.output import note
from atoll.cli.sim.trace import packaged_models, rules_of, say_skipped
from atoll.model.errors import FieldError

if TYPE_CHECKING:
    from atoll.model.site import LinkSpec, SiteSpec
    from orchestrator.core.placement.policy import Policy
    from sims.play.scenario import Scenario
    from sims.play.weather import Weather
    from sims.study.running import Study, WarmUp

_SCALE: Final = re.compile(r"(\d{1,6})(?:/(\d{1,6}))?\Z")
_PER_CENT: Final = re.compile(r"(\d{1,2}(?:\.\d)?) ?%\Z")
_WARM_UP_MS_MAX: Final = 30 * 86_400_000
# A day of a fleet at one end of it, an hour at the other: what a person may mean by a look now and then.
_SAMPLE_MS: Final = (1_000, 86_400_000)
# As many as of anything that a person compares; a study of more is several.
_LOADS_MAX: Final = 32
_SITES_MAX: Final = 256

Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="The jobs: .parquet, .csv or .jsonl, the last two also with .gz.")]
Fleet = Annotated[str, typer.Option("--fleet", metavar="FILE", help="The sites and their links, or fleet-small.")]
Scale = Annotated[
    str, typer.Option("--scale", metavar="SHARE", help="So many of each pool's nodes, at least one; fleet-small is clusters.yaml at 1/32.")
]
Sigma = Annotated[
    str | None,
    typer.Option("--sigma", metavar="S", show_default=False, help="How far sites are from what is predicted of them. (default 0.35)"),
]
WarmUpText = Annotated[
    str | None,
    typer.Option("--warm-up", metavar="TIME", show_default=False, help="What arrives before is in no figure: 10m, or 20%. (default 0s)"),
]
WeatherName = Annotated[
    str,
    typer.Option("--weather", metavar="HOW", help="What befalls sites besides: calm (nothing), ordinary, rough, or hazy (late reports)."),
]
Sample = Annotated[str, typer.Option("--sample", metavar="DURATION", help="How often each site is looked at, for the table of sites.")]
Copies = Annotated[
    str | None,
    typer.Option("--copies", metavar="N", show_default=False, help="The trace so many times at once, each with models of its own."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The options that all runs have in common, as they were written."""

    trace: Path
    fleet: str = "clusters.yaml"
    sites: str | None = None
    scale: str = "1"
    sigma: str | None = None
    warm_up: str | None = None
    weather: str = "calm"
    sample: str = "60s"
    copies: str | None = None
    skip_bad: bool = False
    rows_max: str | None = None
    dense: bool = False

    def study(self) -> Study:
        """Read and checked, the trace to its end. Says which rows were left out."""
        from sims.study.running import Source, studied
        from sims.traces.shaping import COPIES_MAX

        catalogue = packaged_models()
        rules = rules_of(self.rows_max, dense=self.dense, skip_bad=self.skip_bad, models=catalogue)
        source = Source(path=self.trace, rules=rules, copies=arguments.whole("--copies", self.copies, 1, COPIES_MAX, 1))
        scale = "" if self.scale == "1" else f" x {self.scale}"
        found, skipped = studied(self._scenario(), source, fleet=f"{Path(self.fleet).name}{scale}", warm_up=warm_up(self.warm_up))
        say_skipped(skipped)
        return found

    def _chosen(
        self, text: str, sites: tuple[SiteSpec, ...], links: tuple[LinkSpec, ...]
    ) -> tuple[tuple[SiteSpec, ...], tuple[LinkSpec, ...]]:
        """Of "a,b": these sites, in the file's order, and the links between them."""
        names = listed("--sites", text, _SITES_MAX)
        known = [site.site_id for site in sites]
        for name in names:
            if name not in known:
                raise FieldError("--sites", name, f"sites of {self.fleet}{arguments.meant(name, known)}")
        return (
            tuple(site for site in sites if site.site_id in names),
            tuple(link for link in links if link.src in names and link.dst in names),
        )

    def _scenario(self) -> Scenario:
        from atoll import data
        from atoll.catalog.fleet import scaled
        from atoll.catalog.gpus import parse_gpus
        from atoll.physics.hidden import SIGMA_MAX, SIGMA_MIN
        from orchestrator.core.placement.policies import DEFAULT
        from sims.play.scenario import SIGMA, Scenario

        match = _SCALE.match(self.scale.strip())
        parts = (int(match[1]), int(match[2] or 1)) if match else (0, 1)
        if not 0 < parts[0] <= parts[1]:
            raise FieldError("--scale", self.scale, "a share above 0 and at most 1, such as 1/32")
        sites, links = read_fleet(Path(self.fleet))
        if not sites:
            raise FieldError("--fleet", self.fleet, "a file with at least one site")
        if self.sites is not None:
            sites, links = self._chosen(self.sites, sites, links)
        return Scenario(
            sites=scaled(sites, *parts),
            links=links,
            catalogue=packaged_models(),
            gpus=parse_gpus(data.gpus_csv(), "gpus.csv"),
            policy=DEFAULT,
            sigma=arguments.decimal("--sigma", self.sigma, SIGMA_MIN, SIGMA_MAX) or SIGMA,
            sample_us=_duration_us("--sample", self.sample, *_SAMPLE_MS),
            weather=_weather(self.weather),
        )


def warm_up(text: str | None) -> WarmUp:
    """ "10m" or "20%"."""
    from sims.study.running import WarmUp

    if text is None:
        return WarmUp()
    share = _PER_CENT.match(text.strip())
    if share:
        return WarmUp(share_milli=round(float(share[1]) * 10))
    if "%" in text:
        raise FieldError("--warm-up", text, "a duration such as 10m, or a share of the trace below 100%, such as 20%")
    return WarmUp(us=_duration_us("--warm-up", text, 0, _WARM_UP_MS_MAX))


def load_milli(option: str, text: str | None) -> int:
    """Thousandths of "0.75"; `AS_TRACED` when the option was not given."""
    from sims.study.loads import AS_TRACED, LOAD_MILLI

    low, high = LOAD_MILLI
    found = arguments.decimal(option, text, low / 1_000, high / 1_000)
    return AS_TRACED if found is None else round(found * 1_000)


def loads_milli(option: str, text: str | None) -> tuple[int, ...]:
    """Of "0.5,0.75,0.9", each once."""
    if text is None:
        return (load_milli(option, None),)
    found = tuple(load_milli(option, part) for part in listed(option, text, _LOADS_MAX))
    if len(set(found)) < len(found):
        raise FieldError(option, text, "each load once")
    return found


def policies(option: str, text: str, most: int) -> tuple[Policy, ...]:
    """Of "default,random,own.yaml", each once."""
    from atoll.cli.policies import load

    found = tuple(load(part) for part in listed(option, text, most))
    if len({policy.name for policy in found}) < len(found):
        raise FieldError(option, text, "policies of different names")
    return found


def listed(option: str, text: str, most: int) -> list[str]:
    """Parts between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(parts) > most:
        raise FieldError(option, text, f"1 to {most} values with commas between them")
    return parts


def note_if_short(study: Study, loads_milli: Iterable[int]) -> None:
    """A word where the trace ends before a load can show: the figures are true, but of a beginning."""
    from sims.study.loads import AS_TRACED

    highest_milli = max(loads_milli)
    copies = study.trace.copies_for(highest_milli) if highest_milli != AS_TRACED else 1
    if copies > 1:
        span, due = duration(study.trace.span_us(highest_milli)), duration(study.trace.most_due_us)
        note(
            f"at load {highest_milli / 1_000:g} this trace lasts {span}, and jobs in time take up to {due}: no queue has the time to grow; "
            f"--copies {copies * study.source.copies} makes it long enough"
        )


def _weather(name: str) -> Weather:
    from sims.play.weather import WEATHERS

    if name not in WEATHERS:
        raise FieldError("--weather", name, f"one of {', '.join(WEATHERS)}{arguments.meant(name, WEATHERS)}")
    return WEATHERS[name]


def _duration_us(option: str, text: str, low_ms: int, high_ms: int) -> int:
    return arguments.duration_ms(option, text, low_ms=low_ms, high_ms=high_ms) * 1_000
