"""One run of a study, from what its runs have in common and what is its own: a policy, a seed, a load.

Decides what names a run: a digest of everything that its rows depend on, so that a kept result is known to be of this run and no other.
Must not know how many runs there are, nor where they go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from atoll import __version__
from atoll.model.errors import AtollError, FieldError
from orchestrator.core.placement.policy import Policy
from sims.play.player import Played, Player
from sims.play.scenario import Scenario
from sims.results.parquet import Metadata, ResultWriter, SitePlace, read_result
from sims.study.loads import AS_TRACED, Measured, at_load, measured
from sims.study.reckoning import Reckoner
from sims.traces.job import TraceJob
from sims.traces.reading import Rules, Skipped, TraceFile
from sims.traces.shaping import copied

_KEY_CHARS: Final = 12
_READ_BYTES: Final = 1 << 20
Told = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What arrives before is in no figure: a time, or a share of the trace's."""

    us: int = 0
    share_milli: int = 0

    def of(self, span_us: int) -> int:
        """Of a trace that lasts so long. FieldError where nothing is left of it."""
        found = self.us or span_us * self.share_milli // 1_000
        if found > span_us:
            raise FieldError("warm-up", f"{found} us", f"less than the trace, whose last job arrives after {span_us} us")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The trace of a study. `copies`: so many at once, each with models, adapters and tenants of its own."""

    path: Path
    rules: Rules = Rules()
    copies: int = 1

    def jobs(self) -> Iterator[TraceJob]:
        """All of them, in order."""
        return copied(TraceFile(self.path, self.rules).jobs, self.copies)()


@dataclass(frozen=True, kw_only=True)
class Study:
    """What runs have in common. Of `scenario` a run replaces policy and seed. `fleet` and `licence` are words for people."""

    scenario: Scenario
    source: Source
    trace: Measured
    fleet: str
    licence: str = ""
    warm_up: WarmUp = WarmUp()

    @cached_property
    def digest(self) -> str:
        """Of all that rows depend on, the trace's bytes and the version of the code among it."""
        hashed = sha256()
        with self.source.path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                hashed.update(part)
        told = replace(self.scenario, policy=Policy(), seed=0), replace(self.source, path=Path()), self.warm_up, __version__
        hashed.update(repr(_ordered(told)).encode())
        return hashed.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a study. `load_milli`: `AS_TRACED`, or what the trace is brought to."""

    policy: Policy
    seed: int
    load_milli: int = AS_TRACED

    def name(self, study: Study) -> str:
        """For a folder: words for people, and a digest that no other run has."""
        hashed = sha256(f"{study.digest} {self.policy.name} {self.policy.identity.digest} {self.seed} {self.load_milli}".encode())
        load = f"load{self.load_milli / 1_000:g}" if self.load_milli else "as-traced"
        return f"{self.policy.name}-{load}-seed{self.seed}-{hashed.hexdigest()[:_KEY_CHARS]}"


def studied(scenario: Scenario, source: Source, *, fleet: str, warm_up: WarmUp = WarmUp()) -> tuple[Study, Skipped]:
    """A study, and what was left out of its trace, which is read once: so what is wrong in it is found before anything runs."""
    file = TraceFile(source.path, source.rules)
    jobs = copied(file.jobs, source.copies)()
    trace = measured(jobs, Reckoner(scenario.sites, scenario.gpus, scenario.catalogue))
    study = Study(scenario=scenario.check(), source=source, trace=trace, fleet=fleet, licence=file.meta.licence, warm_up=warm_up)
    return study, file.skipped


def carry_out(study: Study, run: Run, folder: Path, told: Told | None = None) -> Played:
    """Play it; the folder then has its result. Interrupted, it is as before. `told` hears how many jobs have arrived."""
    scenario = replace(study.scenario, policy=run.policy, seed=run.seed)
    metadata = metadata_of(study, run)
    with ResultWriter(folder, metadata) as writer:
        played = Player(scenario, at_load(study.source.jobs(), study.trace, run.load_milli), writer, told=told).play()
        writer.finish(replace(metadata, simulated_us=played.simulated_us, wall_us=played.wall_us, digest=played.digest))
    return played


def is_kept(folder: Path) -> bool:
    """Whether a whole result lies there. What is half written, or cannot be read, is none."""
    try:
        return bool(read_result(folder).metadata.digest)
    except AtollError:
        return False


def metadata_of(study: Study, run: Run) -> Metadata:
    """What a result of the run says of itself before it has begun. Names of files, not where they lay: others read it elsewhere."""
    identity = run.policy.identity
    copies = f" x {study.source.copies}" if study.source.copies > 1 else ""
    return Metadata(
        policy=identity.name,
        policy_digest=identity.digest,
        seed=run.seed,
        trace=f"{study.source.path.name}{copies}",
        trace_licence=study.licence,
        fleet=study.fleet,
        synthetic=any(site.synthetic for site in study.scenario.sites),
        load_milli=run.load_milli,
        fastest_load_milli=study.trace.fastest_milli(run.load_milli),
        warm_up_us=study.warm_up.of(study.trace.span_us(run.load_milli)),
        sites=tuple(
            SitePlace(
                site_id=site.site_id,
                region=site.region,
                latitude_micro_deg=site.latitude_micro_deg,
                longitude_micro_deg=site.longitude_micro_deg,
                slots=sum(pool.slots for pool in site.pools),
                gpu_types=tuple(dict.fromkeys(pool.gpu_type for pool in site.pools)),
            )
            for site in study.scenario.sites
        ),
    )


def _ordered(value: Any) -> Any:
    """The same in every interpreter: what has no order is put in one."""
    if is_dataclass(value):
        return type(value).__name__, [(field.name, _ordered(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, Mapping):
        return sorted((str(key), _ordered(inner)) for key, inner in value.items())
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [_ordered(inner) for inner in value]
    return value
