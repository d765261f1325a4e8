"""How errors of estimates are printed: tables for people, JSON and YAML for programs, effects as a Python module.

Decides units: seconds, and errors as shares of the actual time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from atoll.cli.figures import count, seconds
from atoll.cli.output import Form, note, say, show_plain, table
from atoll.physics.coefficients import Coefficients
from atoll.physics.evaluation import Judged, LeaveOut, LeftOut, Quality, grouped, named, quality
from atoll.physics.peaks import used_precision
from atoll.physics.terms import Run, class_of

if TYPE_CHECKING:
    from atoll.cli.estimates import Table
    from atoll.physics.published import Unknown

_US: Final = 1_000_000
_RIGHTS: Final = frozenset({1, 2, 3, 4})
_LINES_SHOWN: Final = 6
# Of a table of somebody's own names nobody reads a thousand.
_VALUES_SHOWN: Final = 60
_ESTIMATORS: Final = (("ours", "ours"), ("flat", "ours, flat priors"), ("baseline", "one efficiency per GPU"))
_GROUPS: Final[tuple[tuple[str, str, Callable[[Run], str]], ...]] = (
    ("by_gpu", "GPU", lambda run: run.gpu.gpu_type),
    ("by_class", "CLASS", lambda run: class_of(run.model)),
    ("by_stack", "STACK", lambda run: run.stack.value),
    ("by_gpus", "GPUS", lambda run: str(run.gang_size)),
    ("by_batch", "BATCH", lambda run: str(run.shape.batch)),
)
# What a fit to other rows is asked about beside all of them: gangs and batches.
_ASKED: Final = _GROUPS[-2:]


# --- check --------------------------------------------------------------------------------------------------------------------


def show_check(form: Form, source: Table, judged: Sequence[Judged]) -> None:
    """Print predictions against a table."""
    learned = [one for one, row in zip(judged, source.known, strict=True) if row.fitting]
    context = [one for one, row in zip(judged, source.known, strict=True) if not row.fitting]
    groups = {key: grouped(learned or judged, by) for key, _, by in _GROUPS}
    if form in {Form.JSON, Form.YAML}:
        parts_of_it = (("all", judged), ("for_fitting", learned), ("context", context))
        summary: dict[str, Any] = {name: _quality_plain(quality(some)) for name, some in parts_of_it}
        summary |= {key: {name: _quality_plain(found) for name, found in group.items()} for key, group in groups.items()}
        rows = [_row_plain(one, row.row.line, row.row.cells) for one, row in zip(judged, source.known, strict=True)]
        show_plain(form, {"file": source.file, "summary": summary, "rows": rows, "unknown": _unknown_plain(source.unknown)})
        return
    if form is Form.NAME:
        for one, row in zip(judged, source.known, strict=True):
            say(f"row/{row.row.line} {_exact(one.predicted_us)}")
        return
    say(f"{source.file}: {count(len(judged), 'row')} predicted, {len(source.unknown)} not known")
    parts = (("all", judged), ("for fitting", learned), ("context", context)) if context else (("all", judged),)
    _qualities("ROWS", {name: found for name, some in parts if (found := quality(some)) is not None})
    for key, title, _ in _GROUPS:
        _qualities(title, groups[key])
    if form is Form.WIDE:
        _each_row(judged, [row.row.line for row in source.known])
    _say_wider(source)
    _say_unknown(source.unknown)


def show_left_out(form: Form, source: Table, found: LeftOut, what: LeaveOut) -> None:
    """Print how three estimators did on sources (or models, or GPU types) they had not seen."""
    groups: dict[str, dict[str, Quality | None]] = {}
    for key, _ in _ESTIMATORS:
        judged: tuple[Judged, ...] = getattr(found, key)
        alone = [one for one in judged if one.observation.run.gang_size == 1]
        gangs = [one for one in judged if one.observation.run.gang_size > 1]
        groups[key] = {"one GPU": quality(alone), "gangs": quality(gangs), "all": quality(judged)}
    by_name = _by_name(found.ours, what)
    asked = {key: grouped(found.ours, by) for key, _, by in _ASKED}
    if form in {Form.JSON, Form.YAML}:
        lines = {id(row.observation): row.row for row in source.known}
        baseline = {id(one.observation): one.predicted_us for one in found.baseline}
        rows = []
        for one in found.ours:
            row = lines[id(one.observation)]
            rows.append(_row_plain(one, row.line, row.cells) | {"baseline": baseline[id(one.observation)] / _US})
        summary = {key: {name: _quality_plain(one) for name, one in group.items()} for key, group in groups.items()}
        plain: dict[str, Any] = {"file": source.file, "cv": what.value, f"{what.value}s": len(by_name), "summary": summary}
        for key, group in {f"by_{what.value}": by_name, **asked}.items():
            plain |= {key: {name: _quality_plain(one) for name, one in group.items()}}
        show_plain(form, plain | {"rows": rows, "unknown": _unknown_plain(source.unknown)})
        return
    said = {LeaveOut.SOURCE: "source", LeaveOut.MODEL: "model", LeaveOut.GPU: "GPU type"}[what]
    say(f"{source.file}: {count(len(by_name), said)}, each predicted by a fit to rows of others alone")
    titles = dict(_ESTIMATORS)
    for name in ("one GPU", "gangs", "all"):
        _qualities(name.upper(), {titles[key]: found_one for key, group in groups.items() if (found_one := group[name]) is not None})
    for key, title, _ in _ASKED:
        _qualities(f"{title}, OURS", asked[key])
    if form is Form.WIDE or what is not LeaveOut.SOURCE:
        _qualities(f"{said.upper()}, OURS", by_name)


def _by_name(judged: Sequence[Judged], what: LeaveOut) -> dict[str, Quality]:
    names = sorted({named(one.observation, what) for one in judged})
    return {name: found for name in names if (found := quality([one for one in judged if named(one.observation, what) == name]))}


def _qualities(title: str, groups: Mapping[str, Quality]) -> None:
    if not groups:
        return
    rows = [[name, str(one.rows), *map(_percent, (one.median, one.p90, one.within_quarter))] for name, one in groups.items()]
    say("")
    table([title, "N", "MEDIAN", "P90", "WITHIN 25 %"], rows, _RIGHTS)


def _each_row(judged: Sequence[Judged], lines: Sequence[int]) -> None:
    rows = []
    for one, line in zip(judged, lines, strict=True):
        run, actual_us = one.observation.run, one.observation.actual_us
        off = f"{100 * (one.predicted_us / actual_us - 1):+.0f} %"
        what = [str(line), run.model.model_id, str(run.shape), run.gpu.gpu_type, str(run.gang_size), run.stack.value]
        rows.append([*what, seconds(one.predicted_us), seconds(actual_us), off])
    say("")
    titles = ["LINE", "MODEL", "SHAPE", "GPU", "GPUS", "STACK", "PREDICTED", "ACTUAL", "OFF"]
    table(titles, rows, frozenset({0, 4, 6, 7, 8}))


def _quality_plain(found: Quality | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"rows": found.rows, "median": _short(found.median), "p90": _short(found.p90), "within_25": _short(found.within_quarter)}


def _row_plain(one: Judged, line: int, cells: Mapping[str, str]) -> dict[str, Any]:
    run = one.observation.run
    return {
        **cells,
        "line": line,
        "model_id": run.model.model_id,
        "class": class_of(run.model),
        "computed_precision": used_precision(run.gpu, run.precision).value,
        "stack": run.stack.value,
        "predicted": one.predicted_us / _US,
        "actual": one.observation.actual_us / _US,
        "error": _short(one.error),
    }


def _say_wider(source: Table) -> None:
    """Rows in a format that their GPU has no units for. Who really ran a narrower one wrote down another than was measured."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in source.known:
        run = row.observation.run
        computed = used_precision(run.gpu, run.precision)
        if computed is not run.precision:
            groups.setdefault((run.precision.value, run.gpu.gpu_type, computed.value), []).append(row.row.line)
    if groups:
        say("")
        rows = [[*names, str(len(lines)), _lines(lines)] for names, lines in groups.items()]
        table(["NO UNITS FOR", "GPU", "PREDICTED AS", "ROWS", "LINES"], rows, frozenset({3}))
        say("  (a row that really ran in another format should say that one)")


def _lines(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:_LINES_SHOWN])) + (", ..." if len(lines) > _LINES_SHOWN else "")


def _grouped_unknown(unknown: Sequence[Unknown]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for one in unknown:
        for cell in one.cells:
            groups.setdefault(cell, []).append(one.row.line)
    return groups


def _unknown_plain(unknown: Sequence[Unknown]) -> list[dict[str, Any]]:
    return [
        {"field": field, "value": value, "rows": len(lines), "lines": lines} for (field, value), lines in _grouped_unknown(unknown).items()
    ]


def _say_unknown(unknown: Sequence[Unknown]) -> None:
    if not unknown:
        return
    say("")
    rows = [[field, value, str(len(lines)), _lines(lines)] for (field, value), lines in _grouped_unknown(unknown).items()]
    table(["NOT KNOWN", "VALUE", "ROWS", "LINES"], rows[:_VALUES_SHOWN], frozenset({2}))
    if len(rows) > _VALUES_SHOWN:
        note(f"{len(rows) - _VALUES_SHOWN} more values are not known: -o json has all of them")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(share: float) -> float:
    return round(share, 6)


def _exact(us: int) -> str:
    return f"{us / _US:.6f}"


# --- fit ----------------------------------------------------------------------------------------------------------------------

_MODULE: Final = '''"""Effects fitted to the times of the three tables in atoll/data. Written by `atoll costs fit`; do not edit.

Decides nothing. Thousandths of a natural logarithm of time by effect, how many rows spoke for each, and how far rows of a source
that was left out lay from their predictions. Effects without rows are what physics expects.
"""

from __future__ import annotations

from typing import Final

from atoll.physics.coefficients import Coefficients, Spread

FITTED: Final = Coefficients(
    effects_milli={
%s
    },
    rows={
%s
    },
    spreads={
%s
    },
)
'''


def coefficients_module(found: Coefficients) -> str:
    """The module that Atoll ships."""
    spreads = {name: f"Spread(low_milli={one.low_milli}, high_milli={one.high_milli})" for name, one in found.spreads.items()}
    return _MODULE % tuple(
        "\n".join(f'        "{name}": {value},' for name, value in entries.items())
        for entries in (found.effects_milli, found.rows, spreads)
    )


def coefficients_plain(found: Coefficients) -> dict[str, Any]:
    """The same as data."""
    effects = [{"effect": name, "milli": milli, "rows": found.rows.get(name, 0)} for name, milli in found.effects_milli.items()]
    spreads = {name: {"low_milli": one.low_milli, "high_milli": one.high_milli} for name, one in found.spreads.items()}
    return {"effects": effects, "spreads": spreads}
