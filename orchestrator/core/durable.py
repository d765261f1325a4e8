"""What a store hands to the core at start: everything that was promised.

Decides the form only. Must not know which store it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.adapter import AdapterSpec
from atoll.model.demand import KeptDemand
from atoll.model.ids import ChangeSeq, FleetId, JobId, TenantId, Term
from atoll.model.job import Job
from atoll.model.learned import Estimates
from atoll.model.modelspec import ModelSpec
from atoll.model.residency import Pin, Push
from atoll.model.site import LinkSpec, SiteRecord
from orchestrator.core.placement.policy import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedKey:
    """The idempotency key of a terminal job that is still retained."""

    tenant: TenantId
    idempotency_key: str
    job_id: JobId
    payload_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Jobs that are not terminal, those that ended while an attempt of theirs is still `stopping`, and the whole of the rest.

    `fleet_time_us` is the highest fleet time that was ever written; `last_audit_seq` 0: no audit yet.
    `demand_age_us`: how long ago `demand` was kept: not by fleet time, which stands still while nobody runs the fleet; people's clocks can.
    """

    fleet_id: FleetId
    term: Term
    fleet_time_us: int
    last_audit_seq: ChangeSeq
    jobs: tuple[Job, ...] = ()
    stopping: tuple[Job, ...] = ()
    sites: tuple[SiteRecord, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    adapters: tuple[AdapterSpec, ...] = ()
    pins: tuple[Pin, ...] = ()
    pushes: tuple[Push, ...] = ()
    ended_keys: tuple[EndedKey, ...] = ()
    ended_count: int = 0
    estimates: Estimates = Estimates()
    demand: KeptDemand = KeptDemand()
    demand_age_us: int = 0
    policy: Identity | None = None  # by which the fleet was run last; None: by none yet
