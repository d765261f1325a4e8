"""What of a class's cost changes only with the fleet's sites: execution by the physics, transfers by the links, hashes of names.

Decides nothing; asks `atoll.physics` once per class and GPU type, and keeps the answer while the fleet's `layout` stands. Measured rates
move and corrections are learned at every end of a job; this is the dear part, and neither changes it. Must not know corrections or rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from atoll.model.ids import ModelId, SiteId
from atoll.model.limits import PRICE_USD_MICROS_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.site import LinkSpec
from atoll.physics.coldstart import transfer_us
from atoll.physics.execution import execution_us
from atoll.physics.output import output_bytes
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.rows import Ints
from orchestrator.core.placement.sets import RATE_MIN

_BYTES_PER_GB: Final = 10**9
# Hashes kept, in bytes: 600 models at 3,600 sites.
_HASHES_BYTES: Final = 32 * 1024 * 1024


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


class Standings:
    """Computes them for one fleet."""

    __slots__ = ("_columns", "_hashes", "_links")

    def __init__(self, columns: Columns, links: Mapping[tuple[SiteId, SiteId], LinkSpec]) -> None:
        self._columns = columns
        self._links = links
        self._hashes: dict[ModelId, tuple[int, Ints]] = {}

    def of(self, key: ClassKey, model: ModelSpec, known: Standing | None) -> Standing:
        """Of a class in the fleet as it is. `known`: as it was told last, if the links are the same."""
        columns = self._columns
        if known is not None and known.layout == columns.layout and known.model is model:
            return known
        by_type = [execution_us(model, key.shape, gpu, key.precision, gang_size=key.gang_size) for gpu in columns.gpu_types]
        input_us, output_us, egress_usd_micros = self._transfers(key, model)
        specs = [column.site.record.spec for column in columns.columns]
        return Standing(
            layout=columns.layout,
            model=model,
            execution_us=np.array(by_type or [0], dtype=np.int64)[columns.gpu],
            input_us=input_us,
            output_us=output_us,
            egress_usd_micros=egress_usd_micros,
            preemptions_per_million_hours=np.array([spec.preemptions_per_million_gpu_hours for spec in specs], dtype=np.int64),
            hashes=self._hash_of(model.model_id),
        )

    def _hash_of(self, model_id: ModelId) -> Ints:
        """Rendezvous hashes of a model and every pool: among equal places each model prefers others, the same ones each time."""
        columns = self._columns
        known = self._hashes.get(model_id)
        if known is not None and known[0] == columns.layout:
            return known[1]
        names = [f"{model_id}/{site_id}/{pool_id}".encode() for site_id, pool_id in (column.place for column in columns.columns)]
        hashes = np.array([int.from_bytes(blake2b(name, digest_size=4).digest(), "big") for name in names], dtype=np.int64)
        if len(self._hashes) * hashes.nbytes >= _HASHES_BYTES:
            self._hashes.clear()
        self._hashes[model_id] = (columns.layout, hashes)
        return hashes

    def _transfers(self, key: ClassKey, model: ModelSpec) -> tuple[Ints, Ints, Ints]:
        """Input to and output from every pool in microseconds, and micro-dollars for the output to leave, by the link between the
        asker's site and the pool's, or the site's own uplink."""
        columns = self._columns
        size = output_bytes(model, key.shape)
        origin = key.origin_site
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
            found[spec.site_id] = (transfer_us(key.input_bytes, rate, rtt), transfer_us(size, rate, rtt), usd_micros)
        table = np.array([found[site_id] for site_id in columns.site_ids] or np.zeros((0, 3)), dtype=np.int64)
        return table[:, 0], table[:, 1], table[:, 2]
