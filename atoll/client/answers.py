"""What calls answer that is no noun of `atoll.model` itself.

Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.client.errors import ClientError
from atoll.model.adapter import AdapterSpec
from atoll.model.ids import JobId, SiteId
from atoll.model.job import Job
from atoll.model.learned import Residual
from atoll.model.modelspec import ModelSpec
from atoll.model.quote import Eta, PlaceView, Quote
from atoll.model.views import DrainPlan, SiteView


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """One entry of a batch: the job, or why it was not accepted. `existing`: the idempotency key was known, this is its job."""

    job_id: JobId | None
    existing: bool = False
    error: ClientError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """A job after a change. After a long break the present state comes instead of every change in between."""

    seq: int
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobExplained:
    """A job with where it stands in the queue (position from 1; 0: not queued) and the fleet time of the answer.

    `held_until_us` after `now_us`: it is in back-off after a failure. `quote` is what it is offered now: while it waits, and where a site
    was asked for; `places` are the pools of that site.
    """

    job: Job
    queue_position: int
    queue_length: int
    now_us: int
    held_until_us: int = 0
    eta: Eta | None = None
    quote: Quote | None = None
    places: tuple[PlaceView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInUse:
    """The policy that an orchestrator runs by, as a file that can be edited and fed back."""

    name: str
    digest: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLogs:
    """The last lines of one attempt's log."""

    site_id: SiteId | None
    ordinal: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesApplied:
    """What applying a fleet file did, or would do. `not_declared` are known to the orchestrator and absent from the file."""

    added: tuple[SiteId, ...]
    updated: tuple[SiteId, ...]
    unchanged: tuple[SiteId, ...]
    not_declared: tuple[SiteId, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAdded:
    """A new site. `join_token` is shown this once; "" where the orchestrator asks for no credential."""

    site_id: SiteId
    join_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStarted:
    """A drain, or with `dry_run` what it would be. Instants of the plan are fleet time; `now_us` is that of the answer."""

    site: SiteView | None
    plan: DrainPlan
    now_us: int
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """What was learned of the estimates, as of `now_us`. `truncated`: there is more than one answer holds."""

    residuals: tuple[Residual, ...]
    truncated: bool
    now_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model and where it is warm."""

    spec: ModelSpec
    warm_sites: tuple[SiteId, ...]
    warm_replicas: int
    jobs_queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterView:
    """An adapter, the sites with a replica that holds it, how many such replicas, and the sites that have it on a disk."""

    spec: AdapterSpec
    loaded_sites: tuple[SiteId, ...]
    loaded_replicas: int
    disk_sites: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """A copy of the store, on the orchestrator's machine."""

    path: str
    bytes: int
