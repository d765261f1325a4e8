"""A core from a snapshot, or from what a store promised: indexes are built anew, in the order that the steps depend on.

Decides what a new incarnation believes: everything durable, and of every site nothing until it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.model.attempt import ENDED
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, TenantId
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.learned import Estimates
from atoll.model.placement import Stopped
from orchestrator.core import claims, keeping, leases, placing, residency, sites, wishes
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.demand import Demand
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.learning.book import restored as restored_book
from orchestrator.core.learning.factors import PoolFactors
from orchestrator.core.placement.choose import Scorer
from orchestrator.core.placement.classes import Avoidance
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.estimate import Estimator
from orchestrator.core.placement.eviction import Wishes
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.promised import Kind
from orchestrator.core.queue import Queue
from orchestrator.core.snapshot import NodeSnapshot, SiteSnapshot, Snapshot, copy_live
from orchestrator.core.state import JobEntry, KeyEntry, LiveAttempt, Node, Replica, ReplicaKey, Site, State

_EXECUTION = TERM_NAMES.index("execution")


def _empty(state: State, policy: Policy, estimates: Estimates) -> Context:
    demand = Demand(
        half_lives_ms=policy.demand_half_lives_ms,
        weights_milli=policy.demand_weights_milli,
        prior_per_hour_milli=policy.launch_prior_per_hour_milli,
    )
    loop = residency.Residency()
    wanted = Wishes(rate_per_hour_milli=demand.rate_per_hour_milli, busy_eighths=loop.busy_eighths, pins=state.pins, pushes=state.pushes)
    columns = Columns(policy, state.models, wanted)
    book = restored_book(estimates, learning=policy.learning, spread_milli=policy.spread_milli)
    return Context(
        state=state,
        policy=policy,
        columns=columns,
        estimator=Estimator(columns, policy, state.links, state.adapters, PoolFactors(book)),
        scorer=Scorer(columns, policy, loop.target, book),
        queue=Queue(policy.check()),
        book=book,
        demand=demand,
        residency=loop,
    )


def from_snapshot(snapshot: Snapshot, policy: Policy, gpus: Mapping[GpuTypeId, GpuType]) -> Context:
    """The working set of a machine that goes on where the snapshot was taken."""
    state = State(
        fleet_id=snapshot.fleet_id,
        term=snapshot.term,
        gpus=dict(gpus),
        models={model.model_id: model for model in snapshot.models},
        adapters={adapter.adapter_id: adapter for adapter in snapshot.adapters},
        pins={(pin.model_id, pin.site_id): pin for pin in snapshot.pins},
        pushes={push.model_id: push for push in snapshot.pushes},
        links={(link.src, link.dst): link for link in snapshot.links},
        ended_keys=_ended_keys(snapshot.ended_keys),
        accept_seq=snapshot.accept_seq,
        audit_seq=snapshot.audit_seq,
        jobs_ended=snapshot.jobs_ended,
        braked=snapshot.braked,
        last_place=snapshot.last_place,
        policy=snapshot.policy,
        failing=dict(snapshot.failing),
    )
    ctx = _empty(state, policy, snapshot.estimates)
    ctx.now_us = snapshot.now_us
    ctx.queue.told_time(ctx.now_us)
    ctx.demand.restore(snapshot.demand)
    ctx.residency.restore(snapshot.residency)
    for one in snapshot.sites:
        state.sites[one.record.spec.site_id] = _restore_site(ctx, one)
    ctx.columns.rebuild(list(state.sites.values()))
    for one in snapshot.sites:
        for pool in one.pools:
            index = ctx.columns.by_pool[(one.record.spec.site_id, pool.spec.pool_id)].index
            for array, rate in zip(
                (ctx.columns.disk_rate, ctx.columns.h2d_rate, ctx.columns.origin_rate), pool.rates_bytes_per_s, strict=True
            ):
                array[index] = rate
    for job in snapshot.jobs:
        _add_job(state, job.job, job.accept_seq, not_before_us=job.not_before_us, deferrals=job.deferrals, stopped=job.stopped)
        if job.waiting:
            avoidance = Avoidance(sites=frozenset(job.avoid), until_us=job.avoid_until_us)
            spec = job.job.spec
            ctx.queue.add(ctx.class_of(spec, avoidance), job.accept_seq, job.job.job_id, spec.tenant, job.job.accepted_us)
    for site in state.sites.values():
        for live in site.attempts.values():
            ctx.bound.add(site, live)
            if live.charge_us:
                ctx.queue.shares.adopt(live.spec.tenant)
        ctx.bound.count_behind(site)
    for promised in snapshot.promises:
        ctx.promises[promised.priority, promised.gang] = Kind(open=dict(promised.open), last_us=promised.last_us)
    for claim in snapshot.claims:
        claims.restore(ctx, claim.job_id, claim.claimed)
    resting = ((rest.job_id, rest.wake_us, rest.pool, rest.patience, rest.stand) for rest in snapshot.resting)
    ctx.queue.restore(snapshot.queue, resting, snapshot.ready)
    ctx.outflow.restore(snapshot.outflow)
    ctx.arrivals.closes_us, ctx.arrivals.held = snapshot.arrivals
    ctx.timers = list(snapshot.timers)
    state.bettered = dict(snapshot.bettered)
    for job_id, move in snapshot.moves:
        keeping.restore(ctx, job_id, move)
    return ctx


def _ended_keys(keys: tuple[EndedKey, ...]) -> dict[tuple[TenantId, str], KeyEntry]:
    return {(key.tenant, key.idempotency_key): KeyEntry(job_id=key.job_id, payload_digest=key.payload_digest) for key in keys}


def _add_job(
    state: State, job: Job, accept_seq: int, *, not_before_us: int = 0, deferrals: int = 0, stopped: tuple[Stopped, ...] = ()
) -> JobEntry:
    entry = JobEntry(job=job, accept_seq=accept_seq, not_before_us=not_before_us, deferrals=deferrals, stopped=stopped)
    state.jobs[job.job_id] = entry
    state.keys[(job.spec.tenant, job.idempotency_key)] = KeyEntry(job_id=job.job_id, payload_digest=job.payload_digest)
    state.tenant_jobs[job.spec.tenant] = state.tenant_jobs.get(job.spec.tenant, 0) + 1
    return entry


def _restore_site(ctx: Context, snapshot: SiteSnapshot) -> Site:
    site = Site(
        record=snapshot.record,
        connection=snapshot.connection,
        session=snapshot.session,
        hello=snapshot.hello,
        reported=snapshot.reported,
        last_heard_us=snapshot.last_heard_us,
        last_report_seq=snapshot.last_report_seq,
        rates=snapshot.rates,
        attempts={live.key: copy_live(live) for live in snapshot.attempts},
        generation=snapshot.generation,
        sent_us=snapshot.sent_us,
        acked_event_seq=snapshot.acked_event_seq,
        acked_sent=snapshot.acked_sent,
        needs_snapshot=snapshot.needs_snapshot,
        dropped=snapshot.dropped,
        changed=dict.fromkeys(snapshot.changed),
        removed=dict.fromkeys(snapshot.removed),
        evict=dict.fromkeys(snapshot.evict),
        fetches=snapshot.fetches,
        copies=snapshot.copies,
        wanted={one.desired.key: one for one in snapshot.wanted},
        wanted_changed=dict.fromkeys(snapshot.wanted_changed),
        unwanted={one.key: one for one in snapshot.unwanted},
        prefetch_from_us=snapshot.prefetch_from_us,
        breakers=dict(snapshot.breakers),
        struck=snapshot.struck,
    )
    wishes.index(ctx, site)
    for pool_snapshot in snapshot.pools:
        pool = sites.make_pool(ctx, site, pool_snapshot.spec)
        site.pools[pool.pool_id] = pool
        pool.stay_us, pool.residence_ms = pool_snapshot.stay_us, pool_snapshot.residence_ms
        for node, told in zip(pool.nodes, pool_snapshot.nodes, strict=True):
            _restore_node(node, told)
    return site


def _restore_node(node: Node, told: NodeSnapshot) -> None:
    node.host_free_bytes, node.disk_free_bytes = told.host_free_bytes, told.disk_free_bytes
    node.host_models, node.disk_models = set(told.host_models), set(told.disk_models)
    node.disk_adapters = set(told.disk_adapters)
    node.fetching, node.flights = dict(told.fetching), dict(told.flights)
    node.copying, node.sources = set(told.copying), dict(told.sources)
    node.pinned, node.host_tier = told.pinned, told.host_tier
    node.compiled, node.shares_compiled = set(told.compiled), told.shares_compiled
    for slot, slot_told in zip(node.slots, told.slots, strict=True):
        slot.ready, slot.fresh = slot_told.ready, slot_told.fresh
        slot.attempts = list(slot_told.attempts)
        slot.busy_until_us, slot.last_used_us, slot.loading = slot_told.busy_until_us, slot_told.last_used_us, slot_told.loading
        slot.replicas = {
            ReplicaKey(replica.model_id, replica.gang_size): Replica(
                model_id=replica.model_id,
                gang_size=replica.gang_size,
                memory_bytes=replica.memory_bytes,
                state=replica.state,
                last_used_us=replica.last_used_us,
                adapters=replica.adapters,
                warm_us=replica.warm_us,
            )
            for replica in slot_told.replicas
        }


def from_stored(stored: Stored, policy: Policy, gpus: Mapping[GpuTypeId, GpuType]) -> Context:
    """The working set of a new incarnation: what was promised, with every site unheard of so far."""
    state = State(
        fleet_id=stored.fleet_id,
        term=stored.term,
        gpus=dict(gpus),
        models={model.model_id: model for model in stored.models},
        adapters={adapter.adapter_id: adapter for adapter in stored.adapters},
        pins={(pin.model_id, pin.site_id): pin for pin in stored.pins},
        pushes={push.model_id: push for push in stored.pushes},
        links={(link.src, link.dst): link for link in stored.links},
        ended_keys=_ended_keys(stored.ended_keys),
        audit_seq=stored.last_audit_seq,
        jobs_ended=stored.ended_count,
        policy=stored.policy,
    )
    ctx = _empty(state, policy, stored.estimates)
    ctx.now_us = stored.fleet_time_us
    ctx.queue.told_time(ctx.now_us)
    for record in stored.sites:
        state.sites[record.spec.site_id] = Site(record=record)
    for job in sorted((*stored.jobs, *stored.stopping), key=lambda job: (job.accepted_us, job.job_id)):
        if job.state not in TERMINAL:
            state.accept_seq += 1
            _add_job(state, job, state.accept_seq)
        _adopt(ctx, job)
    for site in state.sites.values():
        sites.declare_pools(ctx, site)
        if site.record.drain is not None:
            ctx.arm(site.record.drain.deadline_us, TimerKind.DRAIN_DEADLINE, site.site_id)
    ctx.columns.rebuild(list(state.sites.values()))
    placing.requeue_all(ctx)
    ctx.demand.resume(stored.demand, ctx.now_us, max(stored.demand_age_us - (ctx.now_us - stored.demand.saved_us), 0))
    for model_id in ctx.demand.known() - state.models.keys():
        ctx.demand.removed(model_id)
    for model_id in state.models:
        ctx.demand.added(model_id, ctx.now_us)
    for push in state.pushes.values():
        ctx.arm(push.until_us, TimerKind.PUSH_OVER, push.model_id)
    if state.pins or state.pushes or ctx.demand.active:
        residency.arm(ctx)
    return ctx


def _adopt(ctx: Context, job: Job) -> None:
    """The live attempt of a stored job holds its slot again, also where the job has ended and waits for it no more."""
    if job.state is JobState.QUEUED or not job.attempts:
        return
    attempt = job.attempts[-1]
    site = ctx.state.sites.get(attempt.site_id)
    if site is None or attempt.state in ENDED:
        return
    explanation, stop = attempt.explanation, attempt.failure
    live = site.attempts[attempt.key] = LiveAttempt(
        attempt=attempt,
        spec=job.spec,
        request_id=job.request_id,
        evict=tuple(one.model_id for one in explanation.evicted) if explanation is not None else (),
        exec_us=explanation.chosen.terms_us[_EXECUTION] if explanation is not None else attempt.predicted_us,
        lost_after_us=leases.lost_after_us(ctx, attempt.predicted_us),
        given_up=job.state in TERMINAL,
        adopted=True,
        on_stop=stop.kind if stop is not None else None,
        stop_reason=stop.message if stop is not None else "",
    )
    ctx.bound.add(site, live)
