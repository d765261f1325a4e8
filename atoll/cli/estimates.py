"""`atoll costs predict|check|fit`: what an execution takes in seconds, and how good that estimate is.

Decides how rows and runs are read; how answers look is `estimatetable`'s and `costtables`'. Needs no orchestrator:
the estimate is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count
from atoll.cli.output import Form, note, say, show_plain
from atoll.cli.refusals import in_options
from atoll.cli.session import session, verb
from atoll.model import limits
from atoll.model.errors import FieldError, SourceError, quoted
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape

if TYPE_CHECKING:
    from atoll.physics.calibration import Observation
    from atoll.physics.evaluation import Judged, LeaveOut
    from atoll.physics.published import Known, Names, Unknown
    from atoll.physics.stack import Stack

# Rows between two words of how far it is: 3 s of one core.
_TOLD_ROWS: Final = 20_000
# Of a name of which only the end is mistaken.
_BEGINNING_CHARS: Final = 3
# Leaving out one source at a time fits everything anew for each: 24 sources with 191 rows take some seconds.
_SOURCES_MAX: Final = 200
_ROWS_MAX: Final = 5_000
_PACKAGED: Final = "atoll/data/latencies.csv"
_SWEEP: Final = "atoll/data/mlenergy_latency.csv"
_OWN: Final = "atoll/data/gpu_check.csv"


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the noun."""
    verb(
        app,
        "predict",
        epilog="""
        atoll costs predict --model flux.1-dev --gpu H100-SXM
        atoll costs predict --model wan2.1-t2v-14b-720p --size 1280x720 --frames 81 --steps 50 --gpu H100-SXM --gpus 8 -o json
        """,
    )(predict)
    verb(
        app,
        "check",
        epilog="""
        atoll costs check measured.csv
        atoll costs check measured.csv -o json  # every row with predicted and actual seconds
        atoll costs check --cv source  # the packaged rows, each source predicted from the others alone
        atoll costs check --sweep --cv model  # the packaged sweep over batches and gangs, each model from the others alone
        """,
    )(check)
    verb(
        app,
        "fit",
        epilog="""
        atoll costs fit -o json
        atoll costs fit > fitted.py  # the module atoll/physics/fitted.py, from the packaged rows
        """,
    )(fit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of published times as it was read."""

    file: str
    known: Sequence[Known]
    unknown: Sequence[Unknown]

    def fitting(self) -> list[Observation]:
        """Rows that may be learned from."""
        return [row.observation for row in self.known if row.fitting]


def predict(
    *,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A model of the catalogue. Required.")] = "",
    gpu: Annotated[str, typer.Option("--gpu", metavar="TYPE", help="A GPU type of the catalogue, or cpu. Required.")] = "",
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="N", help="GPUs of a gang: 1, 2, 4 or 8.")] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Pixels. What is not given is the model's own.")] = None,
    frames: Annotated[str | None, typer.Option("--frames", metavar="N", help="Frames of a film.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", metavar="N", help="Denoising steps.")] = None,
    cfg: Annotated[str | None, typer.Option("--cfg", metavar="N", help="Passes of the denoiser a step (2: with guidance).")] = None,
    batch: Annotated[str | None, typer.Option("--batch", metavar="N", help="Results of one job.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, fp16, bf16, fp8 or fp4.")] = None,
    stack: Annotated[
        str, typer.Option("--stack", show_default=False, help="What runs the kernels (default: what Atoll's workers run there).")
    ] = "",
) -> None:
    """Predict how long an execution takes, without loading and transfers: seconds by part, and the range of 80 % of such predictions."""
    from atoll.cli.estimatetable import show_estimate
    from atoll.physics.estimate import estimate
    from atoll.physics.fitted import FITTED
    from atoll.physics.stack import ENGINE_STACK, used_stack
    from atoll.physics.terms import Run

    for option, given, such in (("--model", model, "flux.1-dev"), ("--gpu", gpu, "H100-SXM")):
        if not given:
            raise CliError(f"{option} is missing: expected one of the catalogue, such as {such}", code=Exit.USAGE)
    names = _names()
    spec, shape = _wanted(names, model, size, frames, steps, cfg, batch)
    gang = arguments.gang_size("--gpus", gpus)
    gpu_type = names.gpus.get(GpuTypeId(gpu))
    if gpu_type is None:
        raise FieldError("--gpu", gpu, _one_of(gpu, names.gpus, "GPU type"))
    kernels = _stack(stack) if stack else used_stack(ENGINE_STACK, gpu_type.arch)
    run = Run(model=spec, shape=shape, gpu=gpu_type, precision=_precision(precision, spec.precision), stack=kernels, gang_size=gang)
    show_estimate(session().form, run, estimate(FITTED, replace(run, stack=used_stack(run.stack, gpu_type.arch))), names.gpus.values())


def check(
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="Times, with the columns of a packaged table (default: latencies).")
    ] = "",
    sweep: Annotated[bool, typer.Option("--sweep", help="The packaged sweep over batches and gangs instead of a file.")] = False,
    own_times: Annotated[bool, typer.Option("--own", help="What Atoll's own gpu-check measured, instead of a file.")] = False,
    cv: Annotated[
        str,
        typer.Option("--cv", metavar="COLUMN", show_default=False, help="source, model or gpu: fit anew without each, and predict it."),
    ] = "",
) -> None:
    """Predicted against actual seconds: errors by GPU type, class, stack, gang and batch. Names that are not known are listed.

    FILE has commas between the columns model, resolution (WIDTHxHEIGHT), frames, steps, cfg_forwards, batch, precision, optimisation (a
    stack), gpu, n_gpus, seconds, in any order, beside others. With source, --cv source can tell rows apart.

    Exit code 8: no row has names that are known.
    """
    from atoll.cli.costtables import show_check, show_left_out
    from atoll.physics.evaluation import LeaveOut, compare, named

    if cv and cv not in set(LeaveOut):
        raise FieldError("--cv", cv, f"one of {', '.join(LeaveOut)}")
    tables = [name for name, given in (("FILE", file), ("--sweep", sweep), ("--own", own_times)) if given]
    if len(tables) > 1:
        raise CliError(f"{' and '.join(tables)} are given: expected one of them, since each is a table", code=Exit.USAGE)
    form = session().form
    names = _names()
    table = _packaged(_SWEEP if sweep else _OWN, names) if sweep or own_times else _read(file, names)
    if not cv:
        show_check(form, table, _judged(table))
        if not table.known:
            raise _nothing_known(table, "nothing could be checked")
        return
    observations = _to_leave_out(table, what := LeaveOut(cv))
    left_out = {named(one, what) for one in observations}
    if len(left_out) > _SOURCES_MAX or len(observations) > _ROWS_MAX:
        expected = f"at most {_SOURCES_MAX} {cv}s and {_ROWS_MAX} rows, for each {cv} is a fit"
        raise CliError(f"{table.file} has {len(left_out)} {cv}s and {len(observations)} rows: expected {expected}", code=Exit.USAGE)
    own = {one.source for one in observations}
    others = [one for one in _all_packaged(names) if one.source not in own]
    show_left_out(form, table, compare(observations, names.gpus, others=others, what=what), what)


def fit(
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="Times, with the columns of a packaged table (default: all three).")
    ] = "",
) -> None:
    """Fit the effects that predictions use to published times, and print them: as the Python module that Atoll ships, or as data.

    Exit code 8: no row has names that are known.
    """
    from atoll.cli.costtables import coefficients_module, coefficients_plain
    from atoll.physics.calibration import fit as fit_effects
    from atoll.physics.evaluation import leave_out, spreads

    form = session().form
    names = _names()
    judged = [row.observation for row in _fitting(_read(file, names))]
    # The sweep is one witness with many rows, and our own check another: what they say of spreads would drown the rest.
    others = [] if file else [*_packaged(_SWEEP, names).fitting(), *_packaged(_OWN, names).fitting()]
    observations = [*judged, *others]
    if len(observations) > _ROWS_MAX or len({one.source for one in observations}) > _SOURCES_MAX:
        raise CliError(f"{file}: expected at most {_ROWS_MAX} rows of at most {_SOURCES_MAX} sources", code=Exit.USAGE)
    found = fit_effects(observations, names.gpus, spreads=spreads(leave_out(judged, names.gpus, others=others)))
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, coefficients_plain(found))
    else:
        say(coefficients_module(found).rstrip("\n"))
    note(f"{count(len(observations), 'row')} of {count(len({one.source for one in observations}), 'source')}")


def _judged(table: Table) -> list[Judged]:
    """Predictions for all rows; of many it is told how far they are."""
    from atoll.physics.evaluation import judge
    from atoll.physics.fitted import FITTED

    observations = [row.observation for row in table.known]
    judged: list[Judged] = []
    for start in range(0, len(observations), _TOLD_ROWS):
        judged += judge(observations[start : start + _TOLD_ROWS], FITTED)
        if len(judged) < len(observations):
            note(f"{len(judged)} of {len(observations)} rows predicted")
    return judged


def _nothing_known(table: Table, what: str) -> CliError:
    """No row can be predicted. It is no mistake of the file: names may be those of models that are not known yet."""
    fields = ", ".join(sorted({field for one in table.unknown for field, _ in one.cells}))
    told = f"each of its {len(table.unknown)} rows has" if len(table.unknown) > 1 else "its only row has"
    return CliError(f"{table.file}: {what}: {told} a name that is not known here ({fields})", code=Exit.UNDECIDED)


def _to_leave_out(table: Table, what: LeaveOut) -> list[Observation]:
    """The rows that may be learned from, each of which says what it is left out with. Only a source may be missing: nothing is predicted
    without a model or a GPU."""
    from atoll.physics.evaluation import named

    fitting = _fitting(table)
    nameless = [row for row in fitting if not named(row.observation, what)]
    why = f"by which --cv {what} tells rows apart"
    for row in nameless[:1]:
        if what.value not in row.row.cells:
            raise SourceError(table.file, 1, "header", ",".join(row.row.cells), f"also the column {what}, {why}")
        raise SourceError(table.file, row.row.line, what.value, "", f"a {what}, {why}")
    return [row.observation for row in fitting]


def _fitting(table: Table) -> list[Known]:
    """The rows that may be learned from. CliError if there is none."""
    if not table.known:
        raise _nothing_known(table, "nothing to learn from")
    fitting = [row for row in table.known if row.fitting]
    if not fitting:
        raise CliError(f"{table.file}: expected rows to learn from, but those that are known are of the split 'context'", code=Exit.USAGE)
    return fitting


def _names() -> Names:
    from atoll import data
    from atoll.packaged import load_packaged
    from atoll.physics.published import Names

    catalogue = load_packaged()
    return Names(catalogue.models, catalogue.gpus, data.published_names_csv(), "published_names.csv")


def _read(file: str, names: Names) -> Table:
    from atoll.catalog.csv_rows import TABLE_BYTES_MAX
    from atoll.cli.textfile import read_text

    return _table(file, read_text(Path(file), TABLE_BYTES_MAX), names) if file else _packaged(_PACKAGED, names)


def _packaged(file: str, names: Names) -> Table:
    from atoll import data

    texts = {_PACKAGED: data.latencies_csv, _SWEEP: data.mlenergy_latency_csv, _OWN: data.gpu_check_csv}
    return _table(file, texts[file](), names)


def _all_packaged(names: Names) -> list[Observation]:
    return [one for file in (_PACKAGED, _SWEEP, _OWN) for one in _packaged(file, names).fitting()]


def _table(shown: str, text: str, names: Names) -> Table:
    from atoll.catalog.problems import SourceErrors
    from atoll.catalog.sweeps import parse_times
    from atoll.physics.published import read_all

    try:
        known, unknown = read_all(parse_times(text, shown), names, shown)
    except SourceErrors as error:
        first, *more = [str(one) for one in error.errors]
        raise CliError(first, code=Exit.USAGE, more=tuple(more)) from None
    return Table(file=shown, known=known, unknown=unknown)


def _wanted(
    names: Names, model: str, size: str | None, frames: str | None, steps: str | None, cfg: str | None, batch: str | None
) -> tuple[ModelSpec, Shape]:
    """The model and the shape, in which the model's own figures stand where none were given."""
    pixels = arguments.size_px("--size", size) if size is not None else None
    spec = names.model(model, pixels)
    if spec is None:
        raise _unknown_model(model, [str(name) for name in names.all_models()])
    own = spec.default_shape
    width, height = pixels or (own.width, own.height)
    shape = Shape(
        width=width,
        height=height,
        frames=arguments.whole("--frames", frames, 1, limits.FRAMES_MAX, default=own.frames),
        steps=arguments.whole("--steps", steps, 1, limits.STEPS_MAX, default=own.steps),
        cfg_passes=arguments.whole("--cfg", cfg, 1, limits.CFG_PASSES_MAX, default=own.cfg_passes),
        batch=arguments.whole("--batch", batch, 1, limits.BATCH_MAX, default=own.batch),
    )
    try:
        spec.check_shape(shape)
    except FieldError as error:
        told = in_options(error.field, str(error))
        raise CliError(told or str(error), code=Exit.USAGE) from None
    return spec, shape


def _unknown_model(model: str, known: list[str]) -> CliError:
    """What the catalogue has instead. A name that begins like none of its own is taken for a model of somebody's fleet."""
    from atoll.catalog.likeness import alike

    begins = {name[:_BEGINNING_CHARS] for name in known}
    close = alike(model, known) if model[:_BEGINNING_CHARS].lower() in begins else []
    rest = f"did you mean {' or '.join(map(repr, close))}?" if close else f"none of its {len(known)} names is like it"
    hint = "models that a fleet has of its own are asked by 'atoll quote MODEL'"
    return CliError(f"--model is {quoted(model)}: expected a model of the catalogue; {rest}", code=Exit.USAGE, hint=hint)


def _one_of(word: str, known: Iterable[str], kind: str) -> str:
    from atoll.catalog.problems import one_of

    return one_of(word, [str(name) for name in known], kind)


def _precision(text: str | None, own: Precision) -> Precision:
    if text is None:
        return own
    if text not in set(Precision):
        raise FieldError("--precision", text, f"one of {', '.join(Precision)}")
    return Precision(text)


def _stack(text: str) -> Stack:
    from atoll.physics.stack import Stack

    if text not in set(Stack):
        raise FieldError("--stack", text, _one_of(text, list(Stack), "stack"))
    return Stack(text)
