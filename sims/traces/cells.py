"""Cells of a file -> a `TraceJob`. They may be text (CSV), what JSON has, or what Parquet has.

Decides what each column may hold and says of each wrong cell what would be right; knows neither files nor rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, parse_name
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision
from sims.traces.job import COLUMNS, REQUIRED, TEXT_CHARS_MAX, WHOLE, TraceJob
from sims.traces.variants import MARK, base_of

Parse = Callable[[Any], Any]

ADAPTERS_RULE: Final = (
    "'' or ID:SCALE;ID:SCALE with scales in thousandths, such as 'style:800' (JSON, Parquet: objects with adapter_id, scale_milli)"
)
# The longest text of eight adapters is 600 characters; what is longer is another column.
_ADAPTERS_CHARS_MAX: Final = 1_024
# More digits than any bound has.
_DIGITS_MAX: Final = 20
# Distinct texts that are remembered in place of being parsed again: more than any fleet has names, and 30 MB at most.
_REMEMBERED_MAX: Final = 100_000
# Names that others give the same thing, with what makes them ours.
_OTHER_UNITS: Final = {
    "arrival_s": ("arrival_us", "multiplied by 1,000,000"),
    "arrival_ms": ("arrival_us", "multiplied by 1,000"),
    "arrival": ("arrival_us", "in microseconds since the trace began"),
    "timestamp": ("arrival_us", "in microseconds since the trace began"),
    "time": ("arrival_us", "in microseconds since the trace began"),
    "deadline": ("deadline_ms", "in milliseconds"),
    "deadline_s": ("deadline_ms", "multiplied by 1,000"),
    "start_timeout_s": ("start_timeout_ms", "multiplied by 1,000"),
    "measured_s": ("measured_us", "multiplied by 1,000,000"),
    "measured_ms": ("measured_us", "multiplied by 1,000"),
    "model": ("model_id", "as it is"),
    "tenant_id": ("tenant", "as it is"),
    "region": ("origin", "as it is"),
    "loras": ("adapters", "as ID:SCALE;ID:SCALE"),
}
# Columns of somebody's own, which are read past.
OWN_PREFIX: Final = "x_"


def check_columns(names: Sequence[str]) -> None:
    """FieldError unless a file has these columns once each, those that must be there among them."""
    for name in names:
        if name in _OTHER_UNITS and name not in COLUMNS:
            ours, how = _OTHER_UNITS[name]
            raise FieldError("columns", name, f"{ours}: the same {how}")
        if name not in COLUMNS and not name.startswith(OWN_PREFIX):
            raise FieldError("columns", name, f"one of {', '.join(COLUMNS)}; a column of your own begins with {OWN_PREFIX}")
    lacking = [name for name in REQUIRED if name not in names]
    if lacking:
        raise FieldError("columns", ",".join(names), f"also {', '.join(lacking)}")
    if len(set(names)) < len(names):
        raise FieldError("columns", ",".join(names), "each column once")


class CellParser:
    """Makes jobs of rows with the same columns. `models`: the only ones that there are, with their fine-tunes; None: any."""

    def __init__(self, columns: Sequence[str], models: Collection[str] | None = None) -> None:
        parsers = _parsers(models)
        self._columns = [(index, name, parsers[name]) for index, name in enumerate(columns) if name in parsers]

    def job(self, cells: Sequence[Any]) -> TraceJob:
        """The job of one row. FieldError for its first cell that is wrong."""
        given = {}
        for index, name, parse in self._columns:
            cell = cells[index]
            if cell is None or cell == "":
                if name in REQUIRED:
                    raise FieldError(name, cell, "a value in each row")
                continue
            given[name] = parse(cell)
        found = TraceJob(**given)
        if found.width or found.height:
            _check_size(found)
        return found


def _check_size(job: TraceJob) -> None:
    if not job.width or not job.height:
        raise FieldError("width", f"{job.width} with height {job.height}", "both sides, or neither (the model's own)")
    if min(job.width, job.height) < limits.SIDE_PX_MIN or job.width * job.height > limits.FRAME_PX_MAX:
        expected = f"sides of at least {limits.SIDE_PX_MIN} and at most {limits.FRAME_PX_MAX} pixels a frame"
        raise FieldError("width", f"{job.width} with height {job.height}", expected)


def _parsers(models: Collection[str] | None) -> dict[str, Parse]:
    return {
        **{name: _whole(name, *bounds) for name, bounds in WHOLE.items() if name != "gang_size"},
        "gang_size": _gang_size,
        "model_id": _remembering(lambda cell: _model(cell, models)),
        "tenant": _remembering(lambda cell: parse_name("tenant", cell)),
        "precision": _remembering(lambda cell: _word("precision", cell, Precision)),
        "priority": _remembering(lambda cell: _word("priority", cell, Priority)),
        "adapters": _remembering(_adapters),
        "origin": _remembering(lambda cell: _text("origin", cell)),
        "session": lambda cell: _text("session", cell),
    }


def _remembering(parse: Parse) -> Parse:
    known: dict[Any, Any] = {}

    def recall(cell: Any) -> Any:
        if not isinstance(cell, str):
            return parse(cell)
        found = known.get(cell)
        if found is None:
            found = parse(cell)
            if len(known) < _REMEMBERED_MAX:
                known[cell] = found
        return found

    return recall


def _whole(name: str, low: int, high: int) -> Parse:
    def parse(cell: Any) -> int:
        found = cell if type(cell) is int else _number(cell)
        if found is None or not low <= found <= high:
            raise FieldError(name, cell, _whole_rule(name, cell, low, high))
        return found

    return parse


def _number(cell: Any) -> int | None:
    """The whole number that a cell is, however its file writes it."""
    if isinstance(cell, str):
        text = cell.strip()
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX else None
    if isinstance(cell, float) and math.isfinite(cell) and cell.is_integer():
        return int(cell)
    return None


def _whole_rule(name: str, cell: Any, low: int, high: int) -> str:
    rule = f"a whole number from {low} to {high}"
    if name != "arrival_us":
        return rule
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return f"{rule}, microseconds since the trace began"
    if value > high:
        return f"{rule}, microseconds since the trace began; subtract the first arrival, and divide if these are nanoseconds"
    if math.isfinite(value) and not value.is_integer():
        return f"{rule}; a fraction is none of microseconds: multiply seconds by 1,000,000"
    return f"{rule}, microseconds since the trace began"


def _gang_size(cell: Any) -> int:
    found = cell if type(cell) is int else _number(cell)
    if found not in limits.GANG_SIZES:
        raise FieldError("gang_size", cell, f"one of {', '.join(map(str, limits.GANG_SIZES))}")
    return int(found)


def _model(cell: Any, models: Collection[str] | None) -> str:
    model_id = parse_name("model_id", cell)
    if models is not None and model_id not in models and base_of(model_id) not in models:
        from atoll.catalog.likeness import alike

        near = " or ".join(alike(base_of(model_id), models)) or "its base"
        raise FieldError(
            "model_id", cell, f"a model that there is, such as {near}, or {near.split(' ', maxsplit=1)[0]}{MARK}NAME for a fine-tune"
        )
    return model_id


def _word(name: str, cell: Any, words: Any) -> Any:
    try:
        return words(cell)
    except ValueError:
        raise FieldError(name, cell, f"one of {', '.join(words)}, or nothing") from None


def _text(name: str, cell: Any) -> str:
    if not isinstance(cell, str) or len(cell) > TEXT_CHARS_MAX or not cell.isprintable():
        raise FieldError(name, cell, f"at most {TEXT_CHARS_MAX} printable characters")
    return cell


def _adapters(cell: Any) -> tuple[AdapterUse, ...]:
    if isinstance(cell, str):
        if len(cell) > _ADAPTERS_CHARS_MAX:
            raise FieldError("adapters", cell, ADAPTERS_RULE)
        parts: list[Any] = [part.partition(":") for part in cell.split(";")]
        pairs = [(name.strip(), scale.strip() if colon else 1_000) for name, colon, scale in parts]
    elif isinstance(cell, list) and len(cell) <= limits.ADAPTERS_MAX and all(isinstance(one, dict) for one in cell):
        pairs = [(one.get("adapter_id"), one.get("scale_milli", 1_000)) for one in cell]
    else:
        raise FieldError("adapters", cell, ADAPTERS_RULE)
    if len(pairs) > limits.ADAPTERS_MAX:
        raise FieldError("adapters", cell, f"at most {limits.ADAPTERS_MAX} adapters")
    found = tuple(_adapter(cell, name, scale) for name, scale in pairs)
    if len({use.adapter_id for use in found}) < len(found):
        raise FieldError("adapters", cell, "each adapter once")
    return found


def _adapter(cell: Any, name: Any, scale: Any) -> AdapterUse:
    milli = scale if type(scale) is int else _number(scale)
    if milli is None:
        raise FieldError("adapters", cell, ADAPTERS_RULE)
    try:
        use = AdapterUse(adapter_id=AdapterId(name), scale_milli=milli)
        use.check("adapters")
    except FieldError as error:
        raise FieldError("adapters", cell, f"{ADAPTERS_RULE}: {error}") from None
    return use
