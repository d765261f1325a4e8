"""What readers see of sites: the durable record beside what is observed now.

Decides the form only; soft figures are as of the last report.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.ids import GpuTypeId, JobId, ModelId, PoolId, SiteId
from atoll.model.report import RateFacts
from atoll.model.site import Drain, SiteAdmin, SiteConnection, SiteRuntime, SiteSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool as it is now. `slots_used` counts slots with at least one live attempt; `warm` the models resident, at most 32, by name;
    `closed_until_us` > 0: its breaker is open, and lets one attempt in from then on. Rates are as declared, else as the data sheet of its
    GPUs says; 0: an older orchestrator, which does not tell."""

    pool_id: PoolId
    gpu_type: GpuTypeId
    nodes: int
    slots: int
    slots_used: int
    attempts: int
    warm: tuple[ModelId, ...]
    usd_micros_per_gpu_hour: int
    closed_until_us: int = 0
    disk_bytes_per_s: int = 0
    h2d_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site as it is now. `connection` is None for a site that has never connected; `live_attempts` counts stopping ones too; `measured`
    is None where an older orchestrator does not tell."""

    spec: SiteSpec
    admin: SiteAdmin
    connection: SiteConnection | None
    runtime: SiteRuntime | None
    reason: str
    drain: Drain | None
    pools: tuple[PoolView, ...]
    live_attempts: int
    last_report_us: int
    agent_version: str = ""
    measured: RateFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainMove:
    """What a drain would do to one live attempt: `ends_us` is its predicted end; `action` is wait, move or stop_at_deadline."""

    job_id: JobId
    action: str
    ends_us: int
    to_site: SiteId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    """The prediction of a drain: when the site is empty, and which models lose their last warm replica."""

    site_id: SiteId
    deadline_us: int
    predicted_end_us: int
    moves: tuple[DrainMove, ...]
    last_warm: tuple[ModelId, ...]


class AlarmKind(StrEnum):
    """What a person on call should look at."""

    LOSSES_BRAKED = "losses_braked"  # most of the fleet fell silent at once, so nothing is given up
    GATE_FAILS = "gate_fails"  # predictions of a component, or of the total, are off
    SITE_SILENT = "site_silent"
    SITE_LOST = "site_lost"  # silent for so long that it has no work any more
    JOBS_IN_VAIN = "jobs_in_vain"  # no site can ever run them as they are
    BREAKER_OPEN = "breaker_open"  # attempts kept failing in a pool, and it takes no new work


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that is amiss now. `subject`: "fleet", a gate's name, a model, a site, or "site/pool"; `since_us` 0: not known.

    `jobs`: how many wait in vain, where that is what is amiss.
    """

    kind: AlarmKind
    subject: str
    since_us: int = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """The fleet in one look. Counts as of now."""

    fleet_id: str
    term: int
    now_us: int
    time_scale_milli: int
    sites: int
    sites_connected: int
    gpus: int
    gpus_used: int
    jobs_queued: int
    jobs_live: int
    jobs_ended: int
    policy: str = ""
    policy_digest: str = ""
    alarms: tuple[Alarm, ...] = ()
