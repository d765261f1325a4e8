"""What readers may ask of the core: sites and the fleet as they are now, places in the queue, what a drain would do.

Decides nothing and changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from atoll.model.attempt import AttemptState
from atoll.model.ids import JobId, ModelId, SiteId
from atoll.model.placement import Deferral
from atoll.model.site import SiteAdmin, SiteConnection
from atoll.model.views import DrainMove, DrainPlan, FleetView, PoolView, SiteView
from orchestrator.core.context import Context
from orchestrator.core.outputs import Refusal, RefusalCode
from orchestrator.core.state import LiveAttempt, Pool, ReplicaKey, Site

# Names in one view of a pool: enough for a table, and a report of 600 models stays readable.
_WARM_NAMES = 32


def site_view(site: Site) -> SiteView:
    """One site as it is now."""
    return SiteView(
        spec=site.record.spec,
        admin=site.record.admin,
        connection=site.connection,
        runtime=site.hello.runtime if site.hello is not None else None,
        reason=site.record.reason,
        drain=site.record.drain,
        pools=tuple(_pool_view(site, site.pools[pool_id]) for pool_id in sorted(site.pools)),
        live_attempts=len(site.attempts),
        last_report_us=site.last_heard_us,
        agent_version=site.hello.agent_version if site.hello is not None else "",
        measured=site.rates,
    )


def _pool_view(site: Site, pool: Pool) -> PoolView:
    slots = [slot for node in pool.nodes for slot in node.slots]
    warm = sorted({model_id for slot in slots if slot.ready for model_id, _ in slot.replicas})
    return PoolView(
        pool_id=pool.pool_id,
        gpu_type=pool.spec.gpu_type,
        nodes=pool.spec.nodes,
        slots=pool.spec.slots,
        slots_used=sum(1 for slot in slots if slot.attempts),
        attempts=sum(len(slot.attempts) for slot in slots),
        warm=tuple(warm[:_WARM_NAMES]),
        usd_micros_per_gpu_hour=pool.spec.usd_micros_per_gpu_hour or pool.gpu.usd_micros_per_hour,
        closed_until_us=site.breakers[pool.pool_id].until_us if pool.pool_id in site.breakers else 0,
        disk_bytes_per_s=pool.spec.node.disk_bytes_per_s,
        h2d_bytes_per_s=pool.spec.node.h2d_bytes_per_s or pool.gpu.h2d_bytes_per_s,
    )


def fleet_view(ctx: Context, now_us: int, time_scale_milli: int) -> FleetView:
    """The fleet in one look."""
    sites = ctx.state.sites.values()
    live = sum(len(site.attempts) for site in sites)
    pools = [pool for site in sites for pool in site.pools.values()]
    policy = ctx.policy.identity
    return FleetView(
        fleet_id=ctx.state.fleet_id,
        term=ctx.state.term,
        now_us=now_us,
        time_scale_milli=time_scale_milli,
        sites=len(ctx.state.sites),
        sites_connected=sum(1 for site in sites if site.connection is SiteConnection.CONNECTED),
        gpus=sum(pool.spec.slots for pool in pools),
        gpus_used=sum(1 for pool in pools for node in pool.nodes for slot in node.slots if slot.attempts),
        jobs_queued=len(ctx.state.jobs) - _placed(ctx),
        jobs_live=live,
        jobs_ended=ctx.state.jobs_ended,
        policy=policy.name,
        policy_digest=policy.digest,
    )


def _placed(ctx: Context) -> int:
    return sum(1 for site in ctx.state.sites.values() for live in site.attempts.values() if not live.given_up)


def queue_position(ctx: Context, job_id: JobId) -> tuple[int, int]:
    """(place from 1 among waiting jobs by priority and age, 0 if it does not wait; how many wait)."""
    if job_id not in ctx.queue:
        return 0, len(ctx.queue)
    return ctx.queue.ahead_of(job_id) + 1, len(ctx.queue)


def deferral_of(ctx: Context, job_id: JobId) -> Deferral | None:
    """Why a job waits: its own deferral, or that of the first job of its class, behind which it waits; and what was stopped for it."""
    entry = ctx.state.jobs.get(job_id)
    key = ctx.queue.class_key(job_id)
    if entry is None or key is None:
        return None
    told = entry.job.deferral or ctx.state.jobs[ctx.queue.classes[key].head[1]].job.deferral
    return replace(told, stopped=entry.stopped) if told is not None and entry.stopped else told


def model_usage(ctx: Context, model_id: ModelId) -> tuple[tuple[SiteId, ...], int, int]:
    """(sites where it is warm, replicas, jobs that wait for it)."""
    sites: dict[SiteId, None] = {}
    replicas = 0
    for index in ctx.columns.where.by_model.get(model_id, ()):
        column = ctx.columns.columns[index]
        held = column.copies(model_id)
        if held:
            sites[column.site.site_id] = None
            replicas += held
    return tuple(sorted(sites)), replicas, ctx.queue.waiting_for(model_id)


def plan_drain(ctx: Context, site_id: SiteId, deadline_ms: int, now_us: int) -> DrainPlan | Refusal:
    """What a drain begun now would do to each live attempt, and when the site would be empty."""
    site = ctx.state.sites.get(site_id)
    if site is None:
        return Refusal(code=RefusalCode.NOT_FOUND, field="site_id", message=f"no site {site_id!r}")
    stored = site.record.drain
    draining = site.record.admin is SiteAdmin.DRAINING and stored is not None
    deadline_us = stored.deadline_us if draining and stored is not None else now_us + deadline_ms * 1_000
    ends = predicted_ends(site, now_us)
    moves = []
    for live in site.attempts.values():
        end_us = ends[str(live.key)]
        action, to_site = "wait", None
        if not live.begun:
            action, to_site = "move", _where_else(ctx, live, site_id, now_us)
            end_us = now_us
        elif end_us > deadline_us:
            action, to_site = "stop_at_deadline", _where_else(ctx, live, site_id, now_us)
            end_us = deadline_us
        moves.append(DrainMove(job_id=live.key.job_id, action=action, ends_us=end_us, to_site=to_site))
    return DrainPlan(
        site_id=site_id,
        deadline_us=deadline_us,
        predicted_end_us=max((move.ends_us for move in moves), default=now_us),
        moves=tuple(sorted(moves, key=lambda move: (move.ends_us, move.job_id))),
        last_warm=tuple(_last_warm(ctx, site)),
    )


def predicted_ends(site: Site, now_us: int) -> dict[str, int]:
    """When each live attempt of a site should end, by the slot's order of work and the steps done."""
    ends: dict[str, int] = {}
    slots = [slot for pool in site.pools.values() for node in pool.nodes for slot in node.slots if slot.attempts]
    for slot in slots:
        end_us = now_us
        for position, key in enumerate(slot.attempts):
            live = site.attempts[key]
            if position == 0:
                behind = sum(site.attempts[other].exec_us for other in slot.attempts[1:])
                end_us = max(now_us, slot.busy_until_us - behind)
            else:
                end_us += live.exec_us
            ends[str(key)] = end_us
    for live in site.attempts.values():
        ends.setdefault(str(live.key), now_us + live.exec_us)
    return ends


def _where_else(ctx: Context, live: LiveAttempt, site_id: SiteId, now_us: int) -> SiteId | None:
    """The site that would take this job if its own were closed."""
    model = ctx.state.models.get(live.model_id)
    if model is None or live.attempt.state is AttemptState.STOPPING:
        return None
    key = ctx.class_of(live.spec)
    estimate = ctx.estimator.of(key, model)
    elsewhere = np.array([site != site_id for site in ctx.columns.site_ids] * (len(estimate.fix) // len(ctx.columns.site_ids)))
    board = ctx.scorer.score(key, estimate, now_us, mask=elsewhere)
    rows = [row for row in (board.bound, board.patient) if row is not None]
    return board.column(min(rows, key=board.total_us)).site.site_id if rows else None


def _last_warm(ctx: Context, site: Site) -> list[ModelId]:
    """Models that are warm nowhere but at this site. What a gang shares elsewhere serves no single job, nor a gang of another size."""
    mine = {key for pool in site.pools.values() for node in pool.nodes for slot in node.slots for key in slot.replicas}
    return sorted({key.model_id for key in mine if not _is_warm_elsewhere(ctx, key, site)})


def _is_warm_elsewhere(ctx: Context, key: ReplicaKey, site: Site) -> bool:
    columns = (ctx.columns.columns[index] for index in ctx.columns.where.by_model.get(key.model_id, ()))
    return any(column.site is not site and key in column.warm for column in columns)
