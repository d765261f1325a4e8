"""`atoll sim trace inspect|convert|generate|record`: what a trace is like, one made of another, of nothing, or of a live fleet.

Decides options and how answers look; what a trace may say is `sims.traces`' matter, which is loaded when a verb runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count
from atoll.cli.output import Form, note, show_plain
from atoll.cli.session import session, verb
from atoll.cli.sim import recording, tracetable
from atoll.cli.sim.counting import counted
from atoll.cli.verbs import Noun
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec

if TYPE_CHECKING:
    from sims.traces.job import TraceJob
    from sims.traces.loaders.records import Loader, Record
    from sims.traces.metadata import TraceMeta
    from sims.traces.reading import Rules, Skipped, TraceFile
    from sims.traces.shaping import Jobs

app = typer.Typer(cls=Noun, name="trace", help="Traces: files of jobs in order of arrival.", no_args_is_help=True)

_ROWS_MOST: Final = 10_000_000_000
_OWN: Final = "atoll"

SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that are wrong, and say how many of each kind.")]
RowsMax = Annotated[
    str | None, typer.Option("--rows-max", metavar="N", show_default=False, help="Refuse a file with more rows. (default 50000000)")
]
Dense = Annotated[bool, typer.Option("--dense", help="More than 5,000 jobs a second are meant.")]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", show_default=False, help="Of all that is drawn. (default 0)")]


def _inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace: .parquet, .csv or .jsonl, the last two also with .gz.")],
    *,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
    known_models: Annotated[bool, typer.Option("--known-models", help="Refuse models that the catalogue does not have.")] = False,
) -> None:
    """Show what a trace is like: how many jobs of what, how fast they come, how often they repeat, where it is from."""
    from sims.traces.reading import TraceFile
    from sims.traces.statistics import statistics_of

    form = session().form
    catalogue = packaged_models()
    opened = TraceFile(file, rules_of(rows_max, dense=dense, skip_bad=skip_bad, models=catalogue if known_models else None))
    found = statistics_of(counted(opened.jobs(), "read", opened.rows_claimed), catalogue).summary()
    said = {"file": str(file), **told(opened.meta), "skipped": dict(opened.skipped.rows), **found}
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, said)
    else:
        tracetable.show(said)
    say_skipped(opened.skipped)


def _convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A trace, or with --from a record of another service.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new trace; its name's ending says which form.")],
    *,
    from_: Annotated[
        str, typer.Option("--from", metavar="KIND", help="What FILE is: atoll, diffusion, azure-llm, servegen, mooncake, openb or philly.")
    ] = _OWN,
    copies: Annotated[
        str | None,
        typer.Option("--copies", metavar="N", show_default=False, help="So many at once, with models and tenants of their own."),
    ] = None,
    speed: Annotated[
        str | None, typer.Option("--speed", metavar="FACTOR", show_default=False, help="Arrivals come so many times as fast.")
    ] = None,
    first: Annotated[str | None, typer.Option("--first", metavar="N", show_default=False, help="Only so many jobs.")] = None,
    video_share: Annotated[
        str | None,
        typer.Option(
            "--video-share", metavar="SHARE", show_default=False, help="With --from diffusion: films, of base models. (default 0.08)"
        ),
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Put rows in order of arrival first.")] = False,
    seed: Seed = None,
    skip_bad: SkipBad = False,
    rows_max: RowsMax = None,
    dense: Dense = False,
) -> None:
    """Make a trace of another one, or of a record of another service: other form, more models, higher load."""
    from sims.traces import shaping
    from sims.traces.writing import write_trace

    if source.resolve() == target.resolve():
        raise FieldError("OUT", str(target), "another file than FILE")
    rules = rules_of(rows_max, dense=dense, skip_bad=skip_bad)
    films = None if video_share is None else _figure("--video-share", video_share, 0, 1, 0)
    begun = _Source(source, rules, from_, sort=sort, seed=arguments.whole("--seed", seed, 0, 2**63 - 1), video_share=films)
    jobs: Jobs = begun.jobs
    settings: dict[str, str] = {}
    if copies is not None:
        jobs = shaping.copied(jobs, arguments.whole("--copies", copies, 1, shaping.COPIES_MAX))
        settings["copies"] = copies
    if speed is not None:
        factor = arguments.decimal("--speed", speed, 0.001, shaping.SPEED_MAX) or 1.0
        jobs = shaping.faster(jobs, round(factor * 1_000))
        settings["speed"] = f"{factor:g}"
    if first is not None:
        jobs = shaping.first(jobs, arguments.whole("--first", first, 1, _ROWS_MOST))
    written = write_trace(target, with_settings(begun.meta, settings), some(counted(jobs(), "written"), str(source)))
    note(f"wrote {count(written, 'job')} to {target}")
    say_skipped(begun.skipped)


def _generate(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new trace; its name's ending says which form.")],
    *,
    models: Annotated[str | None, typer.Option("--models", metavar="N", show_default=False, help="How many. (default 600)")] = None,
    hours: Annotated[str | None, typer.Option("--hours", metavar="H", show_default=False, help="How long. (default 24)")] = None,
    seed: Seed = None,
    jobs_per_hour: Annotated[
        str | None, typer.Option("--jobs-per-hour", metavar="N", show_default=False, help="On average. (default 4000)")
    ] = None,
    tenants: Annotated[str | None, typer.Option("--tenants", metavar="N", show_default=False, help="How many. (default 2000)")] = None,
    video_share: Annotated[
        str | None, typer.Option("--video-share", metavar="SHARE", show_default=False, help="Films, of all jobs. (default 0.08)")
    ] = None,
    share_4k: Annotated[
        str | None, typer.Option("--4k-share", metavar="SHARE", show_default=False, help="4K, of all pictures. (default 0.02)")
    ] = None,
    gang_share: Annotated[
        str | None,
        typer.Option("--gang-share", metavar="SHARE", show_default=False, help="Films on 2, 4 or 8 GPUs, of all films. (default 0)"),
    ] = None,
    urgent_share: Annotated[
        str | None, typer.Option("--urgent-share", metavar="SHARE", show_default=False, help="Sessions in a hurry. (default 0)")
    ] = None,
    batch_share: Annotated[
        str | None, typer.Option("--batch-share", metavar="SHARE", show_default=False, help="Sessions that have time. (default 0)")
    ] = None,
    gap_cv: Annotated[
        str | None,
        typer.Option("--gap-cv", metavar="CV", show_default=False, help="Variation of gaps: 1 is Poisson, more are bursts. (default 12)"),
    ] = None,
    zipf: Annotated[
        str | None, typer.Option("--zipf", metavar="EXPONENT", show_default=False, help="Of the models' popularity. (default 1.1)")
    ] = None,
    no_launches: Annotated[bool, typer.Option("--no-launches", help="No new models on the way.")] = False,
    flat: Annotated[bool, typer.Option("--flat", help="The same load by day and night.")] = False,
    deadlines: Annotated[
        bool, typer.Option("--deadlines", help="Each job must be done in twice its execution on an A100, and ten seconds.")
    ] = False,
) -> None:
    """Make a trace up: hundreds of models, a day by region, bursts, sessions that repeat, pictures, films and 4K. Same seed, same file."""
    from atoll import data
    from atoll.catalog.gpus import parse_gpus
    from sims.traces.generating import MODELS_MAX, REFERENCE_GPU, TENANTS_MAX, Generator, Settings, meta_of
    from sims.traces.writing import write_trace

    base = Settings()
    settings = Settings(
        models=arguments.whole("--models", models, 1, MODELS_MAX, base.models),
        hours=_figure("--hours", hours, 0.01, 87_840, base.hours),
        seed=arguments.whole("--seed", seed, 0, 2**63 - 1),
        jobs_per_hour=_figure("--jobs-per-hour", jobs_per_hour, 0.01, 10_000_000, base.jobs_per_hour),
        tenants=arguments.whole("--tenants", tenants, 1, TENANTS_MAX, base.tenants),
        video_share=_figure("--video-share", video_share, 0, 1, base.video_share),
        share_4k=_figure("--4k-share", share_4k, 0, 1, base.share_4k),
        gap_cv=_figure("--gap-cv", gap_cv, 0, 100, base.gap_cv),
        zipf_exponent=_figure("--zipf", zipf, 0, 8, base.zipf_exponent),
        launches=not no_launches,
        diurnal=not flat,
        deadlines=deadlines,
        gang_share=_figure("--gang-share", gang_share, 0, 1, base.gang_share),
        urgent_share=_figure("--urgent-share", urgent_share, 0, 1, base.urgent_share),
        batch_share=_figure("--batch-share", batch_share, 0, 1, base.batch_share),
    )
    reference = next(gpu for name, gpu in parse_gpus(data.gpus_csv(), "gpus.csv").items() if name == REFERENCE_GPU)
    jobs = Generator(settings, packaged_models(), reference).jobs()
    expected = round(settings.hours * settings.jobs_per_hour)
    written = write_trace(target, meta_of(settings), some(counted(jobs, "written", expected), "these settings"))
    note(f"wrote {count(written, 'job')} to {target}")


class _Source:
    """What is converted: a trace, or a record. Its jobs can be read again and again."""

    def __init__(self, path: Path, rules: Rules, kind: str, *, sort: bool, seed: int, video_share: float | None) -> None:
        self._file: TraceFile | None = None
        self._record: Record | None = None
        self._sort = sort
        if kind == _OWN:
            from dataclasses import replace

            from sims.traces.reading import TraceFile

            self._refuse_share(video_share)
            self._file = TraceFile(path, replace(rules, any_order=sort))
            self.meta = self._file.meta
            return
        from sims.traces.loaders.known import LOADERS
        from sims.traces.loaders.records import VIDEO_SHARE, Record

        if kind not in LOADERS:
            raise FieldError("--from", kind, f"one of {', '.join((_OWN, *LOADERS))}{arguments.meant(kind, LOADERS)}")
        if not path.is_file():
            raise FieldError("FILE", str(path), "a file that exists")
        self._loader: Loader = LOADERS[kind]
        share, settings = VIDEO_SHARE if video_share is None else video_share, {"seed": str(seed)}
        if self._loader.draws_films:
            settings["video_share"] = f"{share:g}"
        else:
            self._refuse_share(video_share)
        self._sort = sort or not self._loader.in_order
        self._record = Record(path=path, rules=rules, seed=seed, catalogue=packaged_models(), video_share=share)
        self.meta = with_settings(self._loader.meta, settings)

    @staticmethod
    def _refuse_share(video_share: float | None) -> None:
        if video_share is not None:
            raise FieldError(
                "--video-share", f"{video_share:g}", "only with --from diffusion, whose record does not say what a model makes"
            )

    def jobs(self) -> Iterator[TraceJob]:
        """All of them, in order."""
        from sims.traces.sorting import in_order

        found = self._file.jobs() if self._file is not None else self._loader.jobs(self._record)  # type: ignore[arg-type]  # one of both
        return in_order(found) if self._sort else found

    @property
    def skipped(self) -> Skipped:
        """What was left out."""
        return self._file.skipped if self._file is not None else self._record.skipped  # type: ignore[union-attr]  # one of both


def packaged_models() -> dict[ModelId, ModelSpec]:
    """The catalogue that comes with Atoll."""
    from atoll import data
    from atoll.catalog.models import parse_models_csv

    return {model.model_id: model for model in parse_models_csv(data.models_csv(), "models.csv")}


def rules_of(rows_max: str | None, *, dense: bool, skip_bad: bool, models: dict[ModelId, ModelSpec] | None = None) -> Rules:
    """What is asked of a trace."""
    from sims.traces.reading import ROWS_MAX, Rules

    return Rules(models=models, rows_max=arguments.whole("--rows-max", rows_max, 1, _ROWS_MOST, ROWS_MAX), dense=dense, skip_bad=skip_bad)


def some(jobs: Iterable[TraceJob], source: str) -> Iterator[TraceJob]:
    """The same, if there are any."""
    empty = True
    for job in jobs:
        empty = False
        yield job
    if empty:
        raise CliError(f"{source}: no job came out of it, so no trace was written", code=Exit.USAGE)


def with_settings(meta: TraceMeta, settings: dict[str, str]) -> TraceMeta:
    """With what was done to it."""
    from dataclasses import replace

    return replace(meta, settings={**meta.settings, **settings})


def told(meta: TraceMeta) -> dict[str, Any]:
    """What a trace says of itself."""
    return {
        "source": meta.source,
        "licence": meta.licence,
        "synthesised": list(meta.synthesised),
        "settings": dict(meta.settings),
    }


def say_skipped(skipped: Skipped) -> None:
    """How many rows of which kind were left out."""
    from sims.traces.reading import as_text

    for line in as_text(skipped):
        note(line)


def _figure(option: str, text: str | None, low: float, high: float, default: float) -> float:
    found = arguments.decimal(option, text, low, high)
    return default if found is None else found


verb(
    app,
    "inspect",
    epilog="""
    atoll sim trace inspect day.parquet
    atoll sim trace inspect others.csv.gz --skip-bad -o json
    """,
)(_inspect)
verb(
    app,
    "convert",
    epilog="""
    atoll sim trace convert day.parquet day.csv.gz
    atoll sim trace convert requests.csv.gz six.parquet --from diffusion --copies 6 --speed 40  # six times the models
    """,
)(_convert)
verb(
    app,
    "generate",
    epilog="""
    atoll sim trace generate day.parquet --models 600 --hours 24 --seed 0
    atoll sim trace generate poisson.csv --hours 2 --gap-cv 1 --flat --deadlines
    """,
)(_generate)
verb(
    app,
    "record",
    epilog="""
    atoll sim trace record yesterday.parquet
    """,
)(recording.record)
