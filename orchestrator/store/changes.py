"""Records, folded: the last state of each noun is all that a transaction has to write of it.

Decides what becomes of a record. Must not know which store writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from atoll.model.adapter import AdapterSpec
from atoll.model.audit import AuditEvent
from atoll.model.demand import KeptDemand
from atoll.model.ids import AdapterId, JobId, ModelId, SiteId
from atoll.model.job import Job
from atoll.model.learned import Estimates
from atoll.model.modelspec import ModelSpec
from atoll.model.residency import Pin, Push
from atoll.model.site import LinkSpec, SiteRecord
from orchestrator.core.demand import PutDemand
from orchestrator.core.ends import EndAttempt
from orchestrator.core.outputs import (
    AppendAudit,
    DeleteAdapter,
    DeleteModel,
    DeletePin,
    DeletePush,
    DeleteSite,
    PutAdapter,
    PutEstimates,
    PutJob,
    PutLinks,
    PutModel,
    PutPin,
    PutPolicy,
    PutPush,
    PutSite,
    Record,
)
from orchestrator.core.placement.policy import Identity


@dataclass(slots=True, kw_only=True)
class Changes:
    """What a transaction is to write: the last state of each noun. None: deleted."""

    jobs: dict[JobId, Job] = field(default_factory=dict)
    ends: list[EndAttempt] = field(default_factory=list)
    sites: dict[SiteId, SiteRecord | None] = field(default_factory=dict)
    models: dict[ModelId, ModelSpec | None] = field(default_factory=dict)
    adapters: dict[AdapterId, AdapterSpec | None] = field(default_factory=dict)
    pins: dict[tuple[ModelId, SiteId], Pin | None] = field(default_factory=dict)
    pushes: dict[ModelId, Push | None] = field(default_factory=dict)
    links: tuple[LinkSpec, ...] | None = None
    estimates: Estimates | None = None
    demand: KeptDemand | None = None
    policy: Identity | None = None
    audit: list[AuditEvent] = field(default_factory=list)


def changes_of(records: Sequence[Record]) -> Changes:  # noqa: C901 - one case per record and nothing else
    """The records, folded."""
    changes = Changes()
    for record in records:
        match record:
            case PutJob(job=job):
                changes.jobs[job.job_id] = job
            case EndAttempt():
                changes.ends.append(record)
            case PutSite(site=site):
                changes.sites[site.spec.site_id] = site
            case DeleteSite(site_id=site_id):
                changes.sites[site_id] = None
            case PutLinks(links=links):
                changes.links = links
            case PutModel(model=model):
                changes.models[model.model_id] = model
            case DeleteModel(model_id=model_id):
                changes.models[model_id] = None
            case PutAdapter(adapter=adapter):
                changes.adapters[adapter.adapter_id] = adapter
            case DeleteAdapter(adapter_id=adapter_id):
                changes.adapters[adapter_id] = None
            case PutEstimates(estimates=estimates):
                changes.estimates = estimates
            case PutDemand(demand=demand):
                changes.demand = demand
            case PutPolicy(policy=policy):
                changes.policy = policy
            case PutPin(pin=pin):
                changes.pins[(pin.model_id, pin.site_id)] = pin
            case DeletePin(model_id=model_id, site_id=site_id):
                changes.pins[(model_id, site_id)] = None
            case PutPush(push=push):
                changes.pushes[push.model_id] = push
            case DeletePush(model_id=model_id):
                changes.pushes[model_id] = None
            case AppendAudit(event=event):
                changes.audit.append(event)
            case _:
                assert_never(record)
    return changes
