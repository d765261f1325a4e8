"""Hard filters: which pools can never run a class of jobs as the fleet is built now, each with a reason.

Decides feasibility, for everybody who asks. Whether a pool's site takes work just now (`Columns.accepting`) and whether a slot is free
are dynamic and looked at beside this; memory of a slot is checked against the whole GPU, because idle replicas can be evicted.

What a job asks for besides its shape is looked at once for all classes that ask for the same, then memory and disk; what needs a
prediction comes last. So a class that no pool can run is known for next to nothing, however many there are of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from atoll.model.ids import SiteId
from atoll.model.job import Constraints
from atoll.model.limits import PREDICTED_US_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Reason, Rejection, TooSmall
from atoll.model.shape import Precision
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import REASON_CODE, REASONS, Columns
from orchestrator.core.placement.rows import AnyArray, Bools, Ints
from orchestrator.core.placement.tenants import TenantRules

# What jobs ask for, kept: 16 KB at 36 sites. People ask for a few such things, and who asks for more pays for each.
_KEPT: Final = 256
# What the filters that look at no shape read of a class and its model.
_Asked = tuple[Constraints, TenantRules | None, frozenset[SiteId], Precision, int, bool, bool]


class Filters:
    """The filters of one fleet, with what they found while its version stands."""

    __slots__ = ("_columns", "_known", "_version")

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._version = -1
        self._known: dict[_Asked, Ints] = {}

    def standing(self, key: ClassKey, model: ModelSpec, memory_bytes: int) -> Ints:
        """Per pool the number (`REASON_CODE`) of the first filter that rejects it and needs no prediction, 0 if none does.
        `memory_bytes`: of the model with its adapters and activations."""
        columns = self._columns
        codes = self._asked(key, model).copy()
        _reject(codes, columns.memory < memory_bytes, Reason.MEMORY_TOO_SMALL)
        _reject(codes, columns.node_disk < model.weights_bytes, Reason.DISK_TOO_SMALL)
        return codes

    def _asked(self, key: ClassKey, model: ModelSpec) -> Ints:
        if self._version != self._columns.version:
            self._version = self._columns.version
            self._known.clear()
        asked = key.constraints, key.rules, key.avoid, key.precision, key.gang_size, key.simulated, model.servable
        known = self._known.get(asked)
        if known is None:
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            known = self._known[asked] = _asked_codes(key, model, self._columns)
        return known


def predicted(codes: Ints, key: ClassKey, price_usd_micros: Ints, execution_us: Ints) -> Ints:
    """As `Filters.standing`, of which these are, with the filters that need a prediction. `execution_us`: without what was learned."""
    _reject(codes, execution_us >= PREDICTED_US_MAX, Reason.TOO_SLOW)
    if key.constraints.max_price_usd_micros:
        _reject(codes, price_usd_micros > key.constraints.max_price_usd_micros, Reason.PRICE_TOO_HIGH)
    return codes


def rejections(codes: Ints) -> tuple[Rejection, ...]:
    """Pools by the reason that rejects each, in the order of `Reason`; pools with none are left out."""
    return counted(np.bincount(codes, minlength=len(REASONS)).astype(np.int64).tobytes())


@lru_cache(maxsize=4_096)  # most decisions find what many before them did
def counted(counts: bytes) -> tuple[Rejection, ...]:
    """The same of how many there are by number, as bytes of int64."""
    pools = np.frombuffer(counts, dtype=np.int64).tolist()
    return tuple(Rejection(reason=reason, pools=pools[code]) for code, reason in enumerate(REASONS) if reason is not None and pools[code])


def too_small_for(codes: Ints, columns: Columns, memory_bytes: int, model: ModelSpec, adapters_bytes: int) -> TooSmall | None:
    """Why GPUs are too small, if `codes` reject any for that."""
    small = codes == REASON_CODE[Reason.MEMORY_TOO_SMALL]
    if not small.any():
        return None
    return TooSmall(
        needed_bytes=memory_bytes,
        weights_bytes=model.resident_bytes,
        adapters_bytes=adapters_bytes,
        largest_bytes=int(columns.memory[small].max()),
    )


def _reject(codes: Ints, mask: Bools | AnyArray, reason: Reason) -> None:
    codes[(codes == 0) & mask] = REASON_CODE[reason]


def _asked_codes(key: ClassKey, model: ModelSpec, columns: Columns) -> Ints:
    codes = np.zeros(len(columns.columns), dtype=np.int64)

    def reject_others(wanted: Constraints | TenantRules, site: Reason, region: Reason, gpu_type: Reason) -> None:
        if wanted.sites:
            _reject(codes, ~np.array([name in wanted.sites for name in columns.site_ids], dtype=np.bool_), site)
        if wanted.regions:
            _reject(codes, ~np.array([name in wanted.regions for name in columns.regions], dtype=np.bool_), region)
        if wanted.gpu_types:
            allowed = np.array([gpu.gpu_type in wanted.gpu_types for gpu in columns.gpu_types] or [True], dtype=np.bool_)
            _reject(codes, ~allowed[columns.gpu], gpu_type)

    if key.rules is not None:
        reject_others(key.rules, Reason.TENANT_NOT_ALLOWED, Reason.TENANT_NOT_ALLOWED, Reason.TENANT_NOT_ALLOWED)
    reject_others(key.constraints, Reason.SITE_NOT_ALLOWED, Reason.REGION_NOT_ALLOWED, Reason.GPU_TYPE_NOT_ALLOWED)
    if key.simulated:
        _reject(codes, columns.known & ~columns.simulated, Reason.REAL_SITE)
    else:
        _reject(codes, columns.simulated, Reason.SIMULATED_SITE)
        if not model.servable:
            _reject(codes, columns.known & ~columns.simulated, Reason.WEIGHTS_UNAVAILABLE)
    if key.avoid:
        _reject(codes, np.array([site in key.avoid for site in columns.site_ids], dtype=np.bool_), Reason.RECENT_FAILURE)
    capable = [gpu.supports(key.precision) for gpu in columns.gpu_types]
    _reject(codes, ~np.array(capable or [True], dtype=np.bool_)[columns.gpu], Reason.PRECISION_UNSUPPORTED)
    # A gang is on one node: it is too large where a whole node has fewer GPUs, however many the pool has. Whether a block of as many is
    # free just now is dynamic (`NO_BLOCK`).
    _reject(codes, columns.gpus_per_node < key.gang_size, Reason.GANG_TOO_LARGE)
    return codes
