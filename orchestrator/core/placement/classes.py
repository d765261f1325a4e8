"""Classes of jobs: jobs of one class cost the same at the same place, so they are scored together.

Decides which jobs are alike. Must not know the fleet's present state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.job import PRIORITY_RANK, Constraints, JobSpec, Priority
from atoll.model.shape import Precision, Shape
from orchestrator.core.placement.tenants import TenantRules


class Variant(NamedTuple):
    """What has to be resident: the model, shared by how many slots, with which adapters (sorted)."""

    model_id: ModelId
    gang_size: int
    adapters: tuple[AdapterId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassKey:
    """What makes jobs alike. `avoid`: sites where these jobs failed a moment ago, until `avoid_until_us`; `rules`: those of their tenant,
    if it has any, so that all others share their classes."""

    model_id: ModelId
    shape: Shape
    precision: Precision
    priority: Priority
    constraints: Constraints
    origin_site: SiteId | None
    simulated: bool
    gang_size: int
    adapters: tuple[AdapterId, ...]  # sorted; their scales make no difference
    input_bytes: int = 0  # rounded up to a power of two, so that pictures of all sizes make few classes
    avoid: frozenset[SiteId]
    avoid_until_us: int
    rules: TenantRules | None = None
    # What the dataclass would compute at each look-up, kept: ten fields hashed anew would cost more than a decision. Only dicts read it.
    _hash: int = field(init=False, repr=False, compare=False)
    rank: int = field(init=False, repr=False, compare=False)  # of the priority: lower goes first

    def __post_init__(self) -> None:
        figures = (
            self.model_id, self.shape, self.precision, self.priority, self.constraints, self.origin_site,
            self.simulated, self.gang_size, self.adapters, self.input_bytes, self.avoid, self.avoid_until_us, self.rules,
        )  # fmt: skip
        object.__setattr__(self, "_hash", figures.__hash__())
        object.__setattr__(self, "rank", PRIORITY_RANK[self.priority])

    def __hash__(self) -> int:
        return self._hash

    @property
    def variant(self) -> Variant:
        """What has to be resident."""
        return Variant(self.model_id, self.gang_size, self.adapters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoidance:
    """Sites to avoid until an instant of fleet time."""

    sites: frozenset[SiteId] = frozenset()
    until_us: int = 0


NO_AVOIDANCE = Avoidance()


def class_of(spec: JobSpec, avoidance: Avoidance = NO_AVOIDANCE, rules: TenantRules | None = None) -> ClassKey:
    """The class of a job; `rules`: those of its tenant."""
    size = sum(one.bytes for one in spec.inputs)
    return ClassKey(
        model_id=spec.model_id,
        shape=spec.denoised,
        precision=spec.precision,
        priority=spec.priority,
        constraints=spec.constraints,
        origin_site=spec.origin_site,
        simulated=spec.simulated,
        gang_size=spec.gang_size,
        adapters=tuple(sorted(use.adapter_id for use in spec.adapters)),
        input_bytes=1 << (size - 1).bit_length() if size else 0,
        avoid=avoidance.sites,
        avoid_until_us=avoidance.until_us,
        rules=rules,
    )
