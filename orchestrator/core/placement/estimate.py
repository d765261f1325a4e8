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
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.filters import static_reasons
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import Ints, Rows
from orchestrator.core.placement.terms import money

# Classes kept; beyond it the oldest estimate is dropped and computed again when asked for: 600 models x some shapes fit, memory stays flat.
_CLASSES_MAX = 8_192
# A rate of 0 would divide by zero; a byte per second says "never" as well.
_RATE_MIN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Per pool, int64: `codes` of static rejection, times in microseconds; `memory_bytes` of the model with its activations."""

    version: int
    codes: Ints
    memory_bytes: int
    execution_us: Ints
    stage_us: Ints  # from the node's disk
    stage_host_us: Ints  # from its host memory
    fetch_alone_us: Ints  # from the origin with no other flow
    init_us: int
    input_us: Ints
    output_us: Ints


class Estimator:
    """Estimates by class, computed when first asked for."""

    __slots__ = ("_columns", "_estimates", "_links", "_policy")

    def __init__(self, columns: Columns, policy: Policy, links: Mapping[tuple[SiteId, SiteId], LinkSpec]) -> None:
        self._columns = columns
        self._policy = policy
        self._links = links
        self._estimates: dict[tuple[ClassKey, ModelSpec], Estimate] = {}

    def forget(self) -> None:
        """Links changed: compute everything again when asked."""
        self._estimates.clear()

    def of(self, key: ClassKey, model: ModelSpec) -> Estimate:
        """The estimate of this class for the fleet as it is."""
        known = self._estimates.get((key, model))
        if known is not None and known.version == self._columns.version:
            return known
        if len(self._estimates) >= _CLASSES_MAX:
            del self._estimates[next(iter(self._estimates))]
        estimate = self._compute(key, model)
        self._estimates[(key, model)] = estimate
        return estimate

    def _compute(self, key: ClassKey, model: ModelSpec) -> Estimate:
        columns = self._columns
        by_type = [execution_us(model, key.shape, gpu, key.precision) for gpu in columns.gpu_types]
        execution = np.array(by_type or [0], dtype=np.int64)[columns.gpu]
        weights = model.weights_bytes
        h2d = _transfer(weights, columns.h2d_rate)
        disk = _transfer(weights, columns.disk_rate)
        input_time, output_time = self._transfers(key, model)
        started = init_us(model)
        memory = model.resident_bytes + peak_bytes(model, key.shape)
        stage = np.maximum(h2d, disk)
        price = money.price_usd_micros(
            _price_rows(execution, stage, started, columns.price, self._policy.weight_milli(key.priority), self._policy.seconds_per_dollar)
        )
        return Estimate(
            version=columns.version,
            codes=static_reasons(key, model, memory, price, columns),
            memory_bytes=memory,
            execution_us=execution,
            stage_us=stage,
            stage_host_us=h2d,
            fetch_alone_us=_transfer(weights, columns.origin_rate),
            init_us=started,
            input_us=input_time,
            output_us=output_time,
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


def _price_rows(execution: Ints, stage: Ints, started: int, price: Ints, weight_milli: int, seconds_per_dollar: int) -> Rows:
    zero = np.zeros(len(execution), dtype=np.int64)
    return Rows(
        resident=np.zeros(len(execution), dtype=np.bool_),
        wait_us=zero,
        fetch_us=zero,
        input_us=zero,
        stage_us=stage,
        init_us=np.full(len(execution), started, dtype=np.int64),
        execution_us=execution,
        output_us=zero,
        usd_micros_per_hour=price,
        weight_milli=weight_milli,
        seconds_per_dollar=seconds_per_dollar,
    )
