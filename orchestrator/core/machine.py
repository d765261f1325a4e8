"""The orchestrator's brain: one event and the time go in, one Step comes out. Dispatch only; handlers by noun are beside it.

Decides the order within a step: the event, timers that are due, placing, then what sites are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from atoll.model.adapter import AdapterUsage
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, GpuTypeId, JobId, ModelId, SiteId
from atoll.model.job import JobSpec
from atoll.model.learned import Calibration, Component, Residual
from atoll.model.placement import Deferral
from atoll.model.quote import Eta, PlaceView, Quote
from atoll.model.residency import ModelPlaces, PushPlan
from atoll.model.site import LinkSpec, SiteRecord
from atoll.model.views import Alarm, DrainPlan, FleetView, SiteView
from orchestrator.core import (
    adapters,
    alarms,
    arrivals,
    aside,
    assignments,
    attempts,
    breakers,
    drains,
    explain,
    jobs,
    leases,
    models,
    movements,
    moving,
    operators,
    pins,
    placing,
    pushes,
    quoting,
    residency,
    residuals,
    restoring,
    sites,
    whereabouts,
)
from orchestrator.core import snapshot as snapshots
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.durable import Stored
from orchestrator.core.events import (
    AdapterRemoved,
    AdaptersAdded,
    AttemptsEnded,
    EstimatesResetRequested,
    Event,
    JobCancelRequested,
    JobsSubmitted,
    ModelPinned,
    ModelPushed,
    ModelRemoved,
    ModelsAdded,
    ModelUnpinned,
    ResyncRequested,
    SiteAdded,
    SiteConnected,
    SiteCordoned,
    SiteDisconnected,
    SiteDrainRequested,
    SiteRemoveRequested,
    SiteReported,
    SitesApplied,
    SiteUncordoned,
    Stopping,
    TimerFired,
    TookOver,
)
from orchestrator.core.learning import report
from orchestrator.core.outputs import Refusal, Step
from orchestrator.core.placement.policy import Policy
from orchestrator.core.snapshot import Snapshot


class Machine:
    """The state machine. Every method that asks only asks."""

    __slots__ = ("_ctx",)

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    @property
    def context(self) -> Context:
        """The working set, for invariants and tests."""
        return self._ctx

    def handle(self, event: Event, now_us: int) -> Step:
        """Let an event happen at fleet time `now_us` (never before that of an earlier event). Illegal events change nothing."""
        ctx = self._ctx
        ctx.now_us = max(now_us, ctx.now_us)
        ctx.queue.told_time(ctx.now_us)
        _dispatch(ctx, event)
        _fire_timers(ctx)
        placing.wake_due(ctx)
        placing.place_ready(ctx, arrivals.together(ctx, _came(event)))
        ctx.looked_at = ctx.binding = None
        moving.look(ctx)
        residuals.note_placed(ctx)
        quoting.promise(ctx, _came(event))
        movements.placed(ctx)
        assignments.send_touched(ctx)
        return ctx.take_step()

    def suspects(self) -> tuple[JobId, ...]:
        """After `handle` has raised: the jobs that were being placed."""
        return aside.suspects(self._ctx)

    def next_deadline(self) -> int | None:
        """Fleet time in microseconds at which TimerFired is wanted; None: nothing is waited for."""
        timers = self._ctx.timers
        wake_us = self._ctx.queue.next_wake_us()
        times = [at_us for at_us in (timers[0][0] if timers else None, wake_us) if at_us is not None]
        return min(times, default=None)

    def snapshot(self) -> Snapshot:
        """Everything, as a frozen value: `restore` of it goes on with equal steps."""
        return snapshots.take(self._ctx)

    def site_views(self) -> tuple[SiteView, ...]:
        """All sites as they are now, by name."""
        found = self._ctx.state.sites
        return tuple(explain.site_view(found[site_id]) for site_id in sorted(found))

    def site_view(self, site_id: SiteId) -> SiteView | None:
        """One site as it is now."""
        site = self._ctx.state.sites.get(site_id)
        return None if site is None else explain.site_view(site)

    def links(self) -> tuple[LinkSpec, ...]:
        """What is between sites, as declared, by name."""
        found = self._ctx.state.links
        return tuple(found[key] for key in sorted(found))

    def fleet_view(self, now_us: int, time_scale_milli: int) -> FleetView:
        """The fleet in one look."""
        return explain.fleet_view(self._ctx, now_us, time_scale_milli)

    def alarms(self) -> tuple[Alarm, ...]:
        """What is amiss now."""
        return alarms.alarms(self._ctx)

    def queue_position(self, job_id: JobId) -> tuple[int, int]:
        """(place from 1, 0 if it does not wait; how many wait)."""
        return explain.queue_position(self._ctx, job_id)

    def deferral_of(self, job_id: JobId) -> Deferral | None:
        """Why a job waits, if it does and that is known."""
        return explain.deferral_of(self._ctx, job_id)

    def quote_job(self, spec: JobSpec, now_us: int) -> Quote | Refusal:
        """What such a job would be offered if it were submitted now; a Refusal if none such can be."""
        return quoting.quote(self._ctx, spec, now_us)

    def outlook(self, job_id: JobId, spec: JobSpec, now_us: int) -> Quote | Refusal:
        """What a job is offered as of now."""
        return quoting.outlook(self._ctx, job_id, spec, now_us)

    def places(self, job_id: JobId, spec: JobSpec, site_id: SiteId, now_us: int) -> tuple[PlaceView, ...] | Refusal:
        """What each pool of a site offers a job as of now."""
        return quoting.places(self._ctx, job_id, spec, site_id, now_us)

    def eta_of(self, job_id: JobId, now_us: int) -> Eta | None:
        """When a placed or running job should be done."""
        return quoting.eta_of(self._ctx, job_id, now_us)

    def held_until_us(self, job_id: JobId) -> int:
        """Until when a job is held back after a failure; 0 if it is not."""
        return quoting.held_until_us(self._ctx, job_id)

    def queue_depths(self) -> tuple[tuple[str, int], ...]:
        """How many jobs wait, by priority."""
        return tuple(self._ctx.queue.depth_by_priority())

    def plan_drain(self, site_id: SiteId, deadline_ms: int, now_us: int) -> DrainPlan | Refusal:
        """What a drain begun now would do."""
        return explain.plan_drain(self._ctx, site_id, deadline_ms, now_us)

    def model_usage(self, model_id: ModelId) -> tuple[tuple[SiteId, ...], int, int]:
        """(sites where it is warm, replicas, jobs that wait for it)."""
        return explain.model_usage(self._ctx, model_id)

    def adapter_usage(self) -> dict[AdapterId, AdapterUsage]:
        """Where the adapters are that are somewhere."""
        return adapters.usage(self._ctx.state)

    def residuals(
        self, *, component: Component | None = None, site_id: SiteId | None = None, model_id: ModelId | None = None
    ) -> tuple[Residual, ...]:
        """What was learned, a line per cell, as of the last event."""
        ctx = self._ctx
        return report.residuals(ctx.book, ctx.now_us, component=component, site_id=site_id, model_id=model_id)

    def calibration(self) -> Calibration:
        """Whether predictions may be believed."""
        return report.calibration(self._ctx.book)

    def model_places(self, model_id: ModelId, now_us: int, *, events: bool) -> ModelPlaces:
        """Where a model is and should be, and why."""
        return whereabouts.model_places(self._ctx, model_id, now_us, events=events)

    def plan_push(self, model_id: ModelId, sites: int, warm: int, now_us: int) -> PushPlan | Refusal:
        """What a push begun now would do."""
        return pushes.plan(self._ctx, model_id, sites, warm, now_us)

    def copy_counts(self) -> tuple[tuple[str, int, int], ...]:
        """Of each tier: its name, how many copies targets, pins and pushes want, how many there are."""
        return whereabouts.copy_counts(self._ctx)

    def site_credential(self, site_id: SiteId) -> SiteRecord | None:
        """The durable record of a site, with the digests of its token and credential."""
        site = self._ctx.state.sites.get(site_id)
        return None if site is None else site.record


def _dispatch(ctx: Context, event: Event) -> None:  # noqa: C901 - one case per event and nothing else
    match event:
        case JobsSubmitted():
            jobs.submitted(ctx, event)
        case JobCancelRequested():
            jobs.cancel_requested(ctx, event)
        case SiteReported():
            sites.reported(ctx, event)
        case AttemptsEnded():
            attempts.ended(ctx, event)
        case SiteConnected():
            sites.connected(ctx, event)
        case SiteDisconnected():
            sites.disconnected(ctx, event)
        case ResyncRequested():
            sites.resync(ctx, event)
        case SitesApplied():
            operators.applied(ctx, event)
        case SiteAdded():
            operators.added(ctx, event)
        case SiteCordoned():
            operators.cordoned(ctx, event)
        case SiteUncordoned():
            operators.uncordoned(ctx, event)
        case SiteDrainRequested():
            operators.drain_requested(ctx, event)
        case SiteRemoveRequested():
            operators.remove_requested(ctx, event)
        case ModelsAdded():
            models.added(ctx, event)
        case ModelRemoved():
            models.removed(ctx, event)
        case AdaptersAdded():
            adapters.added(ctx, event)
        case AdapterRemoved():
            adapters.removed(ctx, event)
        case EstimatesResetRequested():
            residuals.reset_requested(ctx, event)
        case ModelPinned():
            pins.pinned(ctx, event)
        case ModelUnpinned():
            pins.unpinned(ctx, event)
        case ModelPushed():
            pins.pushed(ctx, event)
        case TookOver():
            ctx.state.fleet_id, ctx.state.term = event.fleet_id, event.term
            aside.set_aside(ctx, event.set_aside, event.reference)
            leases.took_over(ctx)
            operators.policy_taken(ctx)
        case Stopping():
            residuals.stopping(ctx)
        case TimerFired():
            pass
        case _:
            assert_never(event)


def _came(event: Event) -> tuple[JobId, ...]:
    return tuple(one.job_id for one in event.submissions) if isinstance(event, JobsSubmitted) else ()


def _fire_timers(ctx: Context) -> None:
    for kind, subject in ctx.due():
        match kind:
            case TimerKind.SITE_SILENCE:
                leases.silence_due(ctx, SiteId(subject))
            case TimerKind.SITE_LOSSES:
                leases.losses_due(ctx, SiteId(subject))
            case TimerKind.DRAIN_DEADLINE:
                drains.deadline_reached(ctx, SiteId(subject))
            case TimerKind.JOB_EXPIRY:
                jobs.expire(ctx, JobId(subject))
            case TimerKind.RETRY:
                jobs.retry_due(ctx, JobId(subject))
            case TimerKind.RESIDENCY:
                residency.due(ctx)
            case TimerKind.PUSH_OVER:
                pins.push_over(ctx, ModelId(subject))
            case TimerKind.BREAKER:
                breakers.pause_over(ctx, subject)
            case TimerKind.PLACING:
                pass
            case _:
                assert_never(kind)


def new_machine(stored: Stored, policy: Policy, gpus: Mapping[GpuTypeId, GpuType]) -> Machine:
    """A machine from what a store holds. The first event must be TookOver."""
    return Machine(restoring.from_stored(stored, policy, gpus))


def restore(snapshot: Snapshot, policy: Policy, gpus: Mapping[GpuTypeId, GpuType]) -> Machine:
    """A machine that goes on where the snapshot was taken."""
    return Machine(restoring.from_snapshot(snapshot, policy, gpus))
