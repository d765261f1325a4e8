"""What of a class's cost changes only with the fleet's sites: execution by the physics, transfers by the links, hashes of names.

Decides nothing; asks `atoll.physics` once per class and GPU type, and keeps the answer while the fleet's `layout` stands. Measured rates
move and corrections are learned at every end of a job; this is the dear part, and neither changes it. Must not know corrections or rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple, TypeVar

import numpy as np

from atoll.model.ids import ModelId, SiteId
from atoll.model.limits import PRICE_USD_MICROS_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.model.site import LinkSpec
from atoll.physics.coldstart import transfer_us
from atoll.physics.execution import Likeness, execution_us, likeness
from atoll.physics.output import output_bytes
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.rows import Ints
from orchestrator.core.placement.sets import RATE_MIN

_BYTES_PER_GB: Final = 10**9
# Kept in bytes, of hashes, executions and transfers each: of 600 models at 3,600 sites.
_KEPT_BYTES: Final = 32 * 1024 * 1024
_BYTES_PER_FIGURE: Final = 8
# Input to and output from every pool, and micro-dollars for the output to leave.
Transfers = tuple[Ints, Ints, Ints]
Name = TypeVar("Name")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Per pool; microseconds as the physics and the links say. `hashes`: of the model and the pool, for ties."""

    layout: int
    model: ModelSpec
    execution_us: Ints
    input_us: Ints
    output_us: Ints
    egress_usd_micros: Ints
    preemptions_per_million_hours: Ints
    hashes: Ints


class Executions(NamedTuple):
    """Microseconds, for each of the fleet's GPU types and for each pool."""

    by_type_us: tuple[int, ...]
    by_pool_us: Ints


class Standings:
    """Computes them for one fleet. What classes have in common is computed once for all of them, while the layout and the links stand."""

    __slots__ = ("_columns", "_executions", "_hashes", "_layout", "_links", "_names", "_preemptions", "_transfers")

    def __init__(self, columns: Columns, links: Mapping[tuple[SiteId, SiteId], LinkSpec]) -> None:
        self._columns = columns
        self._links = links
        self._layout = -1
        self._hashes: dict[ModelId, Ints] = {}
        self._executions: dict[tuple[Likeness, Shape, Precision, int], Executions] = {}
        self._transfers: dict[tuple[int, int, SiteId | None], Transfers] = {}
        self._names: list[bytes] = []  # of pools
        self._preemptions: Ints = np.zeros(0, dtype=np.int64)

    def forget(self) -> None:
        """Links changed."""
        self._transfers.clear()

    def of(self, key: ClassKey, model: ModelSpec, known: Standing | None) -> Standing:
        """Of a class in the fleet as it is. `known`: as it was told last, if the links are the same."""
        columns = self._columns
        if known is not None and known.layout == columns.layout and known.model is model:
            return known
        if self._layout != columns.layout:
            self._lay_out()
        input_us, output_us, egress_usd_micros = self._transfer(key, model)
        return Standing(
            layout=columns.layout,
            model=model,
            execution_us=self.executions(model, key.shape, key.precision, key.gang_size).by_pool_us,
            input_us=input_us,
            output_us=output_us,
            egress_usd_micros=egress_usd_micros,
            preemptions_per_million_hours=self._preemptions,
            hashes=self._hash_of(model.model_id),
        )

    def _lay_out(self) -> None:
        columns = self._columns.columns
        self._layout = self._columns.layout
        for kept in (self._hashes, self._executions, self._transfers):
            kept.clear()
        self._names = [f"/{site_id}/{pool_id}".encode() for site_id, pool_id in (column.place for column in columns)]
        hazards = [column.site.record.spec.preemptions_per_million_gpu_hours for column in columns]
        self._preemptions = np.array(hazards, dtype=np.int64)

    def executions(self, model: ModelSpec, shape: Shape, precision: Precision, gang_size: int = 1) -> Executions:
        """By the physics, which knows fewer models than the catalogue."""
        columns, alike = self._columns, (likeness(model), shape, precision, gang_size)
        if self._layout != columns.layout:
            self._lay_out()
        known = self._executions.get(alike)
        if known is None:
            by_type = tuple([execution_us(model, shape, gpu, precision, gang_size=gang_size) for gpu in columns.gpu_types])
            known = Executions(by_type, np.array(by_type or (0,), dtype=np.int64)[columns.gpu])
            _keep(self._executions, alike, known, len(columns.columns))
        return known

    def _hash_of(self, model_id: ModelId) -> Ints:
        """Rendezvous hashes of a model and every pool: among equal places each model prefers others, the same ones each time."""
        known = self._hashes.get(model_id)
        if known is None:
            begun, digests = blake2b(model_id.encode(), digest_size=4), []
            for name in self._names:
                one = begun.copy()
                one.update(name)
                digests.append(one.digest())
            known = np.frombuffer(b"".join(digests), dtype=">u4").astype(np.int64)
            _keep(self._hashes, model_id, known, len(self._names))
        return known

    def _transfer(self, key: ClassKey, model: ModelSpec) -> Transfers:
        """Input to and output from every pool in microseconds, and micro-dollars for the output to leave, by the link between the
        asker's site and the pool's, or the site's own uplink."""
        size = output_bytes(model, key.shape)
        asked = key.input_bytes, size, key.origin_site
        known = self._transfers.get(asked)
        if known is None:
            known = self._measure(*asked)
            _keep(self._transfers, asked, known, 3 * len(self._names))
        return known

    def _measure(self, input_bytes: int, size: int, origin: SiteId | None) -> Transfers:
        columns = self._columns
        found: dict[SiteId, tuple[int, int, int]] = {}
        for column in columns.columns:
            spec = column.site.record.spec
            if spec.site_id in found:
                continue
            rtt, rate, egress = 0, max(spec.wan_bytes_per_s, RATE_MIN), spec.egress_usd_micros_per_gb
            if origin == spec.site_id:
                egress = 0
            elif origin is not None:
                out = self._links.get((spec.site_id, origin)) or self._links.get((origin, spec.site_id))
                if out is not None:
                    rtt, rate = out.rtt_us, max(min(out.bytes_per_s, rate), RATE_MIN)
                    egress = out.egress_usd_micros_per_gb or egress
            usd_micros = min(egress * size // _BYTES_PER_GB, PRICE_USD_MICROS_MAX)
            found[spec.site_id] = (transfer_us(input_bytes, rate, rtt), transfer_us(size, rate, rtt), usd_micros)
        table = np.array([found[site_id] for site_id in columns.site_ids] or np.zeros((0, 3)), dtype=np.int64)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()


def _keep(kept: dict[Name, Value], name: Name, value: Value, figures: int) -> None:
    """Remember one more; the oldest go where there are many."""
    while len(kept) * max(figures, 1) * _BYTES_PER_FIGURE >= _KEPT_BYTES:
        del kept[next(iter(kept))]
    kept[name] = value
