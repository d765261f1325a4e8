"""What a class of jobs costs at each pool, as far as it does not change from one decision to the next.

Decides nothing; asks `atoll.physics` once per class and GPU type, and keeps the answer while the fleet's `version` stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.site import LinkSpec
from atoll.physics.coldstart import init_us
from atoll.physics.execution import execution_us
from atoll.physics.memory import peak_bytes
from atoll.physics.output import output_bytes
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import REASONS, Columns
from orchestrator.core.placement.filters import static_reasons
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import Fixed, fixed
from orchestrator.core.placement.rows import Bools, Ints, Rows
from orchestrator.core.placement.terms import money

# Classes kept; beyond it the oldest estimate is dropped and computed again when asked for: 600 models x some shapes fit, memory stays flat.
_CLASSES_MAX = 8_192
# A rate of 0 would divide by zero; a byte per second says "never" as well.
_RATE_MIN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Per pool `codes` of static rejection, `rejected` counts them; the rest per row (twice the pools) or in all. Microseconds, bytes."""

    version: int
    model: ModelSpec
    codes: Ints
    rejected: Ints
    feasible: Bools
    memory_bytes: int
    fixed: Fixed
    execution_us: Ints
    output_us: Ints
    host_saving_us: Ints  # per pool: what staging from host memory saves over disk
    fetch_alone_us: Ints  # per pool: from the origin with no other flow
    virtue: Ints  # per row: the part of the tie-break that does not change


class Estimator:
    """Estimates by class, computed when first asked for."""

    __slots__ = ("_columns", "_estimates", "_links", "_policy")

    def __init__(self, columns: Columns, policy: Policy, links: Mapping[tuple[SiteId, SiteId], LinkSpec]) -> None:
        self._columns = columns
        self._policy = policy
        self._links = links
        self._estimates: dict[ClassKey, Estimate] = {}

    def forget(self) -> None:
        """Links changed: compute everything again when asked."""
        self._estimates.clear()

    def of(self, key: ClassKey, model: ModelSpec) -> Estimate:
        """The estimate of this class for the fleet as it is."""
        known = self._estimates.get(key)
        if known is not None and known.version == self._columns.version and known.model is model:
            return known
        if len(self._estimates) >= _CLASSES_MAX:
            del self._estimates[next(iter(self._estimates))]
        estimate = self._compute(key, model)
        self._estimates[key] = estimate
        return estimate

    def _compute(self, key: ClassKey, model: ModelSpec) -> Estimate:
        columns = self._columns
        by_type = [execution_us(model, key.shape, gpu, key.precision) for gpu in columns.gpu_types]
        execution = np.array(by_type or [0], dtype=np.int64)[columns.gpu]
        h2d = _transfer(model.weights_bytes, columns.h2d_rate)
        stage = np.maximum(h2d, _transfer(model.weights_bytes, columns.disk_rate))
        rows = self._rows(key, model, execution, stage)
        memory = model.resident_bytes + peak_bytes(model, key.shape)
        count = len(columns.columns)
        codes = static_reasons(key, model, memory, money.price_usd_micros(rows)[count:], columns)
        return Estimate(
            version=columns.version,
            model=model,
            codes=codes,
            rejected=np.bincount(codes, minlength=len(REASONS)),
            feasible=codes == 0,
            memory_bytes=memory,
            fixed=fixed(rows),
            execution_us=rows.execution_us,
            output_us=rows.output_us,
            host_saving_us=stage - h2d,
            fetch_alone_us=_transfer(model.weights_bytes, columns.origin_rate),
            virtue=tie_break(rows.resident, columns.price),
        )

    def _rows(self, key: ClassKey, model: ModelSpec, execution: Ints, stage: Ints) -> Rows:
        """Both rows of every pool, as of no waiting and no fetch."""
        count = len(execution)
        zero = np.zeros(2 * count, dtype=np.int64)
        input_time, output_time = self._transfers(key, model)
        return Rows(
            resident=np.arange(2 * count) < count,
            wait_us=zero,
            fetch_us=zero,
            input_us=np.concatenate([input_time, input_time]),
            stage_us=np.concatenate([stage, stage]),
            init_us=np.full(2 * count, init_us(model), dtype=np.int64),
            execution_us=np.concatenate([execution, execution]),
            output_us=np.concatenate([output_time, output_time]),
            usd_micros_per_hour=np.concatenate([self._columns.price, self._columns.price]),
            weight_milli=self._policy.weight_milli(key.priority),
            seconds_per_dollar=self._policy.seconds_per_dollar,
        )

    def _transfers(self, key: ClassKey, model: ModelSpec) -> tuple[Ints, Ints]:
        """Input to and output from every pool, by the link between the asker's site and the pool's, or the site's own uplink."""
        columns = self._columns
        size = output_bytes(model, key.shape)
        input_time = np.zeros(len(columns.columns), dtype=np.int64)
        output_time = np.zeros(len(columns.columns), dtype=np.int64)
        for index, column in enumerate(columns.columns):
            spec = column.site.record.spec
            rtt, rate = 0, max(spec.wan_bytes_per_s, _RATE_MIN)
            origin = key.origin_site
            if origin is not None and origin != spec.site_id:
                out = self._links.get((spec.site_id, origin)) or self._links.get((origin, spec.site_id))
                if out is not None:
                    rtt, rate = out.rtt_us, max(min(out.bytes_per_s, rate), _RATE_MIN)
            input_time[index] = rtt
            output_time[index] = rtt + size * 1_000_000 // rate
        return input_time, output_time


def _transfer(size: int, rates: Ints) -> Ints:
    """Microseconds for `size` bytes, computed through milliseconds of a megabyte's parts so that int64 holds an exabyte."""
    return np.asarray(size // 1_000 * 1_000_000 // np.maximum(rates // 1_000, _RATE_MIN), dtype=np.int64)


def tie_break(resident: Bools, price: Ints) -> Ints:
    """The unchanging part of a row's place among equals, most important first: resident, (fetch), cheaper, (free slots), row.

    Bits: 61 cold, 60 fetch, 36-59 price in thousandths of a cent per hour, 16-35 free slots (inverted), 0-15 row. Lower wins.
    """
    row = np.arange(len(resident), dtype=np.int64)
    cents = np.minimum(np.concatenate([price, price]) // 10, 2**24 - 1)
    cold = np.where(resident, np.int64(0), np.int64(1 << 61))
    return np.asarray(cold | (cents << 36) | np.minimum(row, 2**16 - 1), dtype=np.int64)
