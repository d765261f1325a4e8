"""Published rows -> runs that physics can predict, or what of a row it does not know.

Decides which name means which model and what a metric covers. Must not know files: tables come as rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from atoll.catalog.csv_rows import read_rows
from atoll.catalog.latencies import METRICS, LatencyRow
from atoll.catalog.models import slug
from atoll.catalog.problems import Problems
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics.calibration import Observation
from atoll.physics.stack import published_stack
from atoll.physics.terms import Extent, Run

_RING: Final = re.compile(r"ring-([0-9]{1,4})")

_EXTENTS: Final = dict(zip(METRICS, (Extent.WHOLE, Extent.DENOISING, Extent.DENOISING, Extent.THROUGHPUT, Extent.DECODING), strict=True))
# Rows that are published beside others but say too little to learn from: cached, distilled, settings unclear.
_NOT_FOR_FITTING: Final = "context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A row of which something has no meaning here: each such column with its value."""

    row: LatencyRow
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A row that can be predicted. `fitting`: its table says it may be learned from."""

    row: LatencyRow
    observation: Observation
    fitting: bool


class Names:
    """Models and GPU types by the names that people publish them under."""

    __slots__ = ("_by_name", "gpus")

    def __init__(self, models: Iterable[ModelSpec], gpus: Mapping[GpuTypeId, GpuType], table: str, file_name: str) -> None:
        """`table` gives further names of models. Raises SourceErrors for one that is no table, or names a model there is not."""
        self.gpus = gpus
        by_id = {model.model_id: model for model in models}
        self._by_name: dict[str, tuple[ModelSpec, ...]] = {}
        for model in by_id.values():
            for name in {str(model.model_id), slug(model.title)}:
                self._by_name[name] = (model,)
        for model in by_id.values():
            hub_name = model.source.partition(";")[0].strip().lower()
            for name in {hub_name, hub_name.rpartition("/")[2]} - {str(name) for name in by_id} - {""}:
                self._by_name[name] = (*self._by_name.get(name, ()), model)
        problems = Problems(file_name)
        for row in read_rows(table, problems, frozenset({"name", "models"})):
            meant = [by_id.get(ModelId(name)) for name in row.text("models").split(";")]
            if None in meant:
                row.wrong("models", "names of models in the catalogue")
            self._by_name[row.text("name").lower()] = tuple(model for model in meant if model is not None)
        problems.check()

    def model(self, name: str, size: tuple[int, int] | None) -> ModelSpec | None:
        """The model of this name; of several sizes counted apart, the one nearest in pixels."""
        found = self._by_name.get(name.lower()) or self._by_name.get(slug(name))
        if not found:
            return None
        if size is None or len(found) == 1:
            return found[-1]
        pixels = size[0] * size[1]
        return min(found, key=lambda model: _apart(pixels, model.default_shape.width * model.default_shape.height))

    def all_models(self) -> list[str]:
        """Every name a model is known by, for those who misspelt one."""
        return sorted(self._by_name)

    def read(self, row: LatencyRow) -> Known | Unknown:
        """What a row means. FieldError for a shape that is impossible."""
        model = self.model(row.model, row.size)
        gpu = self.gpus.get(GpuTypeId(row.gpu))
        stack = published_stack(row.optimisation, gpu.arch if gpu is not None else "")
        meant = {
            "model": model is not None,
            "gpu": gpu is not None,
            "optimisation": stack is not None,
            "precision": row.precision in set(Precision),
            "metric": row.metric in _EXTENTS,
        }
        if model is None or gpu is None or stack is None or not all(meant.values()):
            return Unknown(row=row, cells=tuple((column, getattr(row, column)) for column, known in meant.items() if not known))
        if row.size is None:
            raise FieldError("resolution", row.resolution, "WIDTHxHEIGHT in pixels")
        if not row.steps:
            raise FieldError("steps", row.steps, "at least 1 for a model that denoises")
        width, height = row.size
        passes = row.cfg_passes or model.default_shape.cfg_passes
        shape = Shape(width=width, height=height, frames=row.frames, steps=row.steps, cfg_passes=passes, batch=row.batch)
        run = Run(
            model=model,
            shape=shape.check(),
            gpu=gpu,
            precision=Precision(row.precision),
            stack=stack.stack,
            gang_size=row.gpus,
            guidance_split="cfg" in row.parallelism.lower(),
            ring=_ring(row.parallelism.lower(), row.gpus),
            offloaded=stack.offloaded,
            extent=_EXTENTS[row.metric],
        )
        observation = Observation(run=run, actual_us=row.seconds_us, source=row.source)
        return Known(row=row, observation=observation, fitting=row.split != _NOT_FOR_FITTING)


def read_all(rows: Iterable[LatencyRow], names: Names, file_name: str) -> tuple[list[Known], list[Unknown]]:
    """Rows that can be predicted, and those with a name that nobody knows here. Raises SourceErrors for impossible shapes."""
    problems = Problems(file_name)
    known: list[Known] = []
    unknown: list[Unknown] = []
    for row in rows:
        try:
            found = names.read(row)
        except FieldError as error:
            problems.add_field(row.line, error)
            continue
        if isinstance(found, Known):
            known.append(found)
        else:
            unknown.append(found)
    problems.check()
    return known, unknown


def _ring(parallelism: str, gpus: int) -> int:
    """Among how many GPUs keys and values go round. Where a split is not told, heads are split, which is the faster way with links."""
    told = _RING.search(parallelism)
    if told is not None:
        return max(int(told[1]), 1)
    return gpus if "ring" in parallelism and "ulysses" not in parallelism else 1


def _apart(one: int, other: int) -> float:
    return max(one / other, other / one)
