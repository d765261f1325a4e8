"""A file of a study (YAML) -> what it asks.

    version: 1
    trace: day.parquet        # and what else `atoll sim run` takes, by the names of its options: fleet, scale, copies, sigma, warm_up, ...
    policies: [default, random, own.yaml]
    loads: [0.5, 0.75, 0.9]
    seeds: 5
    ideal: true               # also the highest loads
    ablate: true              # also the first policy without each of its parts
    tune:                     # each policy at the best setting of so many
      by: mean_s
      budget: 8
      load: 0.75
      seeds: 2
      grid: {slot_depth: [1, 2]}
      grids: {default: {seconds_per_dollar: [30, 60, 120]}}

Decides how a study is written. What stands for a world, a policy or a load stays text: whoever reads it from a command line reads it from
here too. Opens no file: text is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from atoll.catalog.figures import parse_figure, parse_whole, range_text
from atoll.catalog.problems import Problems, one_of
from atoll.catalog.yaml_fields import Fields
from atoll.catalog.yaml_nodes import parse_yaml
from orchestrator.core.placement.policy import BOUNDS
from orchestrator.core.placement.policy_settings import SETTINGS
from sims.report.comparison import METRICS
from sims.study.sweeping import POLICIES_MAX, SEEDS_MAX
from sims.study.tuning import Grid

VERSION: Final = 1
FILE_BYTES_MAX: Final = 1 << 20
# Options of a world that a file may have; those that are missing are as the command line has them.
WORLD: Final = ("fleet", "scale", "copies", "sigma", "warm_up", "weather", "sample")
LOADS_MAX: Final = 32
_VALUES_MAX: Final = 64
_BUDGET_MAX: Final = 1_000
_KEYS: Final = {setting.key: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneText:
    """How settings are tried. `grid` and `grids` have fields of Policy and their values; the load is text."""

    by: str
    budget: int
    load: str
    seeds: int
    grid: Grid = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyText:
    """What a file asks. `lines`: where each key stands, for who finds its value wrong."""

    trace: str
    world: Mapping[str, str]
    policies: tuple[str, ...]
    loads: tuple[str, ...]
    seeds: int
    ideal: bool
    ablate: bool
    tune: TuneText | None
    lines: Mapping[str, int]


def parse_study(text: str, file_name: str) -> StudyText:
    """What the file asks. Raises SourceErrors with every mistake found."""
    problems = Problems(file_name)
    fields = Fields(parse_yaml(text, problems), "", problems)
    version = fields.whole("version", 1, 1_000_000)
    if version != VERSION:
        fields.wrong("version", version, f"{VERSION}, the only version there is")
    if not fields.has("trace"):
        fields.wrong("trace", "missing", "a trace's file")
    found = StudyText(
        trace=fields.text("trace", "a trace's file", default=""),
        world={key: fields.text(key, f"what --{key.replace('_', '-')} takes", default="") for key in WORLD if fields.has(key)},
        policies=tuple(fields.texts("policies", POLICIES_MAX, "policies by name, or their files")) or ("default",),
        loads=tuple(fields.texts("loads", LOADS_MAX, "loads such as 0.75")),
        seeds=fields.whole("seeds", 1, SEEDS_MAX, 5),
        ideal=fields.flag("ideal", default=False),
        ablate=fields.flag("ablate", default=False),
        tune=_tune(fields),
        lines={key: fields.line_of(key) for key in tuple(fields.keys())},
    )
    for key in WORLD:
        fields.asked(key)
    fields.finish()
    problems.check()
    return found


def _tune(outer: Fields) -> TuneText | None:
    fields = outer.mapping("tune")
    if fields is None:
        return None
    grids = fields.mapping("grids")
    found = TuneText(
        by=fields.word("by", [metric.key for metric in METRICS], "metric") or "",
        budget=fields.whole("budget", 1, _BUDGET_MAX),
        load=fields.text("load", "a load such as 0.75", default=""),
        seeds=fields.whole("seeds", 1, SEEDS_MAX, 1),
        grid=_grid(fields.mapping("grid")),
        grids={} if grids is None else {name: _grid(grids.mapping(name)) for name in tuple(grids.keys())},
    )
    fields.finish()
    return found


def _grid(fields: Fields | None) -> Grid:
    """By field of Policy the values, in its own unit."""
    found: dict[str, list[int]] = {}
    for key in fields.keys() if fields is not None else ():
        assert fields is not None, "it has keys"
        setting = _KEYS.get(key)
        if setting is None:
            fields.wrong(key, key, one_of(key, _KEYS, "setting of a policy file"))
            continue
        low, high = BOUNDS[setting.field]
        expected = f"a whole number from {low} to {high}" if setting.unit == 1 else range_text(setting.unit, low, high)
        values = []
        for text in fields.texts(key, _VALUES_MAX, expected):
            value = parse_whole(text, low, high) if setting.unit == 1 else parse_figure(text, setting.unit, low, high)
            if value is None:
                fields.wrong(key, text, expected)
            else:
                values.append(value)
        if values:
            found[setting.field] = list(dict.fromkeys(values))
    return found
