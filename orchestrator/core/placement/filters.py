"""Hard filters: which pools can never run a class of jobs as the fleet is built now, each with a reason.

Decides feasibility, for everybody who asks. Whether a pool's site takes work just now (`Columns.accepting`) and whether a slot is free
are dynamic and looked at beside this; memory of a slot is checked against the whole GPU, because idle replicas can be evicted.
"""

from __future__ import annotations

import numpy as np

from atoll.model.job import Constraints
from atoll.model.limits import PREDICTED_US_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Reason
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import REASON_CODE, Columns
from orchestrator.core.placement.rows import AnyArray, Bools, Ints
from orchestrator.core.placement.tenants import TenantRules


def static_reasons(
    key: ClassKey, model: ModelSpec, memory_bytes: int, price_usd_micros: Ints, columns: Columns, execution_us: Ints | None = None
) -> Ints:
    """Per pool the number (`REASON_CODE`) of the first filter that rejects it, 0 if none does.

    `memory_bytes`: of the model with its activations; `execution_us`: as predicted, without what was learned.
    """
    count = len(columns.columns)
    codes = np.zeros(count, dtype=np.int64)

    def reject(mask: Bools | AnyArray, reason: Reason) -> None:
        codes[(codes == 0) & mask] = REASON_CODE[reason]

    def reject_others(wanted: Constraints | TenantRules, site: Reason, region: Reason, gpu_type: Reason) -> None:
        if wanted.sites:
            reject(~np.array([name in wanted.sites for name in columns.site_ids], dtype=np.bool_), site)
        if wanted.regions:
            reject(~np.array([name in wanted.regions for name in columns.regions], dtype=np.bool_), region)
        if wanted.gpu_types:
            allowed = np.array([gpu.gpu_type in wanted.gpu_types for gpu in columns.gpu_types] or [True], dtype=np.bool_)
            reject(~allowed[columns.gpu], gpu_type)

    wanted = key.constraints
    if key.rules is not None:
        reject_others(key.rules, Reason.TENANT_NOT_ALLOWED, Reason.TENANT_NOT_ALLOWED, Reason.TENANT_NOT_ALLOWED)
    reject_others(wanted, Reason.SITE_NOT_ALLOWED, Reason.REGION_NOT_ALLOWED, Reason.GPU_TYPE_NOT_ALLOWED)
    if key.simulated:
        reject(columns.known & ~columns.simulated, Reason.REAL_SITE)
    else:
        reject(columns.simulated, Reason.SIMULATED_SITE)
        if not model.servable:
            reject(columns.known & ~columns.simulated, Reason.WEIGHTS_UNAVAILABLE)
    if key.avoid:
        reject(np.array([site in key.avoid for site in columns.site_ids], dtype=np.bool_), Reason.RECENT_FAILURE)
    capable = [gpu.supports(key.precision) for gpu in columns.gpu_types]
    reject(~np.array(capable or [True], dtype=np.bool_)[columns.gpu], Reason.PRECISION_UNSUPPORTED)
    # A gang is on one node: it is too large where a whole node has fewer GPUs, however many the pool has. Whether a block of as many is
    # free just now is dynamic (`NO_BLOCK`).
    reject(columns.gpus_per_node < key.gang_size, Reason.GANG_TOO_LARGE)
    reject(columns.memory < memory_bytes, Reason.MEMORY_TOO_SMALL)
    if execution_us is not None:
        reject(execution_us >= PREDICTED_US_MAX, Reason.TOO_SLOW)
    reject(columns.node_disk < model.weights_bytes, Reason.DISK_TOO_SMALL)
    if wanted.max_price_usd_micros:
        reject(price_usd_micros > wanted.max_price_usd_micros, Reason.PRICE_TOO_HIGH)
    return codes
