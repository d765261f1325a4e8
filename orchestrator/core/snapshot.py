"""Snapshot and restore: the core as one frozen value, and the core from what a store promised.

Decides what is primary: everything here goes in, indexes are built anew. Replay, what-if and failover rest on it, so a restored
machine answers the same events with the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.model.attempt import ENDED
from atoll.model.gpu import GpuType
from atoll.model.ids import (
    AttemptKey,
    ChangeSeq,
    EventSeq,
    FleetId,
    Generation,
    GpuTypeId,
    JobId,
    ModelId,
    SiteId,
    TenantId,
    Term,
)
from atoll.model.job import Job, JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState
from atoll.model.report import RateFacts, SiteHello
from atoll.model.site import LinkSpec, PoolSpec, SiteConnection, SiteRecord
from orchestrator.core import leases, placing, sites
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.events import SessionRef
from orchestrator.core.placement.classes import Avoidance, class_of
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.estimate import Estimator
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.queue import Queue
from orchestrator.core.state import JobEntry, KeyEntry, LiveAttempt, Node, Replica, Site, State

_EXECUTION = TERM_NAMES.index("execution")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """A job in memory; `waiting`: it is in the queue, avoiding these sites."""

    job: Job
    accept_seq: int
    not_before_us: int
    deferrals: int
    waiting: bool
    avoid: tuple[SiteId, ...]
    avoid_until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSnapshot:
    """A replica of a slot."""

    model_id: ModelId
    memory_bytes: int
    state: ReplicaState
    last_used_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSnapshot:
    """A slot, by its place in its node."""

    ready: bool
    replicas: tuple[ReplicaSnapshot, ...]
    attempts: tuple[AttemptKey, ...]
    busy_until_us: int
    last_used_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSnapshot:
    """A node, by its place in its pool."""

    host_free_bytes: int
    disk_free_bytes: int
    host_models: tuple[ModelId, ...]
    disk_models: tuple[ModelId, ...]
    fetching: tuple[tuple[ModelId, int], ...]
    slots: tuple[SlotSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """A pool with the rates that placing reckons with: disk, host to device, origin; bytes per second."""

    spec: PoolSpec
    rates_bytes_per_s: tuple[int, int, int]
    nodes: tuple[NodeSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSnapshot:
    """A site as observed and promised."""

    record: SiteRecord
    connection: SiteConnection | None
    session: SessionRef | None
    hello: SiteHello | None
    reported: bool
    last_heard_us: int
    last_report_seq: int
    rates: RateFacts
    pools: tuple[PoolSnapshot, ...]
    attempts: tuple[LiveAttempt, ...]
    generation: Generation
    sent_us: int
    acked_event_seq: EventSeq
    acked_sent: EventSeq
    needs_snapshot: bool
    dropped: bool
    changed: tuple[AttemptKey, ...]
    removed: tuple[AttemptKey, ...]
    evict: tuple[ModelId, ...]
    fetches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestSnapshot:
    """A class that rests, named by one of its jobs."""

    job_id: JobId
    wake_us: int
    pool: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole core. Tuples keep the order of the dicts they come from."""

    fleet_id: FleetId
    term: Term
    now_us: int
    accept_seq: int
    audit_seq: ChangeSeq
    jobs_ended: int
    braked: bool
    jobs: tuple[JobSnapshot, ...]
    sites: tuple[SiteSnapshot, ...]
    models: tuple[ModelSpec, ...]
    links: tuple[LinkSpec, ...]
    ended_keys: tuple[EndedKey, ...]
    ready: tuple[JobId, ...]  # one job of each class still to be scored
    resting: tuple[RestSnapshot, ...]
    timers: tuple[tuple[int, TimerKind, str], ...]


def take(ctx: Context) -> Snapshot:
    """The core as it is between two events."""
    state = ctx.state
    return Snapshot(
        fleet_id=state.fleet_id,
        term=state.term,
        now_us=ctx.now_us,
        accept_seq=state.accept_seq,
        audit_seq=state.audit_seq,
        jobs_ended=state.jobs_ended,
        braked=state.braked,
        jobs=tuple(_take_job(ctx, entry) for entry in state.jobs.values()),
        sites=tuple(_take_site(ctx, site) for site in state.sites.values()),
        models=tuple(state.models.values()),
        links=tuple(state.links.values()),
        ended_keys=tuple(
            EndedKey(tenant=tenant, idempotency_key=key, job_id=known.job_id, payload_digest=known.payload_digest)
            for (tenant, key), known in state.ended_keys.items()
        ),
        ready=tuple(ctx.queue.classes[key].head[1] for key in ctx.queue.in_order()),
        resting=tuple(
            RestSnapshot(job_id=known.head[1], wake_us=known.wake_us, pool=known.pool) for known in ctx.queue.resting_in_order()
        ),
        timers=tuple(sorted(ctx.timers)),
    )


def _take_job(ctx: Context, entry: JobEntry) -> JobSnapshot:
    key = ctx.queue.class_key(entry.job.job_id)
    return JobSnapshot(
        job=entry.job,
        accept_seq=entry.accept_seq,
        not_before_us=entry.not_before_us,
        deferrals=entry.deferrals,
        waiting=key is not None,
        avoid=tuple(sorted(key.avoid)) if key is not None else (),
        avoid_until_us=key.avoid_until_us if key is not None else 0,
    )


def _take_site(ctx: Context, site: Site) -> SiteSnapshot:
    pools = []
    for pool_id, pool in site.pools.items():
        column = ctx.columns.by_pool[(site.site_id, pool_id)]
        rates = tuple(int(array[column.index]) for array in (ctx.columns.disk_rate, ctx.columns.h2d_rate, ctx.columns.origin_rate))
        nodes = tuple(_take_node(node) for node in pool.nodes)
        pools.append(PoolSnapshot(spec=pool.spec, rates_bytes_per_s=(rates[0], rates[1], rates[2]), nodes=nodes))
    return SiteSnapshot(
        record=site.record,
        connection=site.connection,
        session=site.session,
        hello=site.hello,
        reported=site.reported,
        last_heard_us=site.last_heard_us,
        last_report_seq=site.last_report_seq,
        rates=site.rates,
        pools=tuple(pools),
        attempts=tuple(_copy(live) for live in site.attempts.values()),
        generation=site.generation,
        sent_us=site.sent_us,
        acked_event_seq=site.acked_event_seq,
        acked_sent=site.acked_sent,
        needs_snapshot=site.needs_snapshot,
        dropped=site.dropped,
        changed=tuple(site.changed),
        removed=tuple(site.removed),
        evict=tuple(site.evict),
        fetches=site.fetches,
    )


def _copy(live: LiveAttempt) -> LiveAttempt:
    return LiveAttempt(
        attempt=live.attempt,
        spec=live.spec,
        request_id=live.request_id,
        evict=live.evict,
        exec_us=live.exec_us,
        lost_after_us=live.lost_after_us,
        given_up=live.given_up,
        on_stop=live.on_stop,
        stop_reason=live.stop_reason,
    )


def _take_node(node: Node) -> NodeSnapshot:
    return NodeSnapshot(
        host_free_bytes=node.host_free_bytes,
        disk_free_bytes=node.disk_free_bytes,
        host_models=tuple(sorted(node.host_models)),
        disk_models=tuple(sorted(node.disk_models)),
        fetching=tuple(sorted(node.fetching.items())),
        slots=tuple(
            SlotSnapshot(
                ready=slot.ready,
                replicas=tuple(
                    ReplicaSnapshot(
                        model_id=replica.model_id,
                        memory_bytes=replica.memory_bytes,
                        state=replica.state,
                        last_used_us=replica.last_used_us,
                    )
                    for replica in slot.replicas.values()
                ),
                attempts=tuple(slot.attempts),
                busy_until_us=slot.busy_until_us,
                last_used_us=slot.last_used_us,
            )
            for slot in node.slots
        ),
    )


def _empty(state: State, policy: Policy) -> Context:
    columns = Columns(policy.slot_depth)
    estimator = Estimator(columns, policy, state.links)
    return Context(state=state, policy=policy, columns=columns, estimator=estimator, queue=Queue())


def from_snapshot(snapshot: Snapshot, policy: Policy, gpus: Mapping[GpuTypeId, GpuType]) -> Context:
    """The working set of a machine that goes on where the snapshot was taken."""
    state = State(
        fleet_id=snapshot.fleet_id,
        term=snapshot.term,
        gpus=dict(gpus),
        models={model.model_id: model for model in snapshot.models},
        links={(link.src, link.dst): link for link in snapshot.links},
        ended_keys=_ended_keys(snapshot.ended_keys),
        accept_seq=snapshot.accept_seq,
        audit_seq=snapshot.audit_seq,
        jobs_ended=snapshot.jobs_ended,
        braked=snapshot.braked,
    )
    ctx = _empty(state, policy)
    ctx.now_us = snapshot.now_us
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
        _add_job(state, job.job, job.accept_seq, not_before_us=job.not_before_us, deferrals=job.deferrals)
        if job.waiting:
            avoidance = Avoidance(sites=frozenset(job.avoid), until_us=job.avoid_until_us)
            ctx.queue.add(class_of(job.job.spec, avoidance), job.accept_seq, job.job.job_id)
    ctx.queue.ready.clear()
    for rest in snapshot.resting:
        key = ctx.queue.class_key(rest.job_id)
        if key is not None:
            ctx.queue.rest(key, rest.wake_us, rest.pool)
    for job_id in snapshot.ready:
        key = ctx.queue.class_key(job_id)
        if key is not None:
            ctx.queue.wake(key)
    ctx.timers = list(snapshot.timers)
    return ctx


def _ended_keys(keys: tuple[EndedKey, ...]) -> dict[tuple[TenantId, str], KeyEntry]:
    return {(key.tenant, key.idempotency_key): KeyEntry(job_id=key.job_id, payload_digest=key.payload_digest) for key in keys}


def _add_job(state: State, job: Job, accept_seq: int, *, not_before_us: int = 0, deferrals: int = 0) -> JobEntry:
    entry = JobEntry(job=job, accept_seq=accept_seq, not_before_us=not_before_us, deferrals=deferrals)
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
        attempts={live.key: _copy(live) for live in snapshot.attempts},
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
    )
    for pool_snapshot in snapshot.pools:
        pool = sites.make_pool(ctx, site, pool_snapshot.spec)
        site.pools[pool.pool_id] = pool
        for node, told in zip(pool.nodes, pool_snapshot.nodes, strict=True):
            _restore_node(node, told)
    return site


def _restore_node(node: Node, told: NodeSnapshot) -> None:
    node.host_free_bytes, node.disk_free_bytes = told.host_free_bytes, told.disk_free_bytes
    node.host_models, node.disk_models = set(told.host_models), set(told.disk_models)
    node.fetching = dict(told.fetching)
    for slot, slot_told in zip(node.slots, told.slots, strict=True):
        slot.ready = slot_told.ready
        slot.attempts = list(slot_told.attempts)
        slot.busy_until_us, slot.last_used_us = slot_told.busy_until_us, slot_told.last_used_us
        slot.replicas = {
            replica.model_id: Replica(
                model_id=replica.model_id,
                memory_bytes=replica.memory_bytes,
                state=replica.state,
                last_used_us=replica.last_used_us,
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
        links={(link.src, link.dst): link for link in stored.links},
        ended_keys=_ended_keys(stored.ended_keys),
        audit_seq=stored.last_audit_seq,
        jobs_ended=stored.ended_count,
    )
    ctx = _empty(state, policy)
    ctx.now_us = stored.fleet_time_us
    for record in stored.sites:
        state.sites[record.spec.site_id] = Site(record=record)
    for job in sorted(stored.jobs, key=lambda job: (job.accepted_us, job.job_id)):
        state.accept_seq += 1
        _adopt(ctx, _add_job(state, job, state.accept_seq))
    for site in state.sites.values():
        sites.declare_pools(ctx, site)
        if site.record.drain is not None:
            ctx.arm(site.record.drain.deadline_us, TimerKind.DRAIN_DEADLINE, site.site_id)
    ctx.columns.rebuild(list(state.sites.values()))
    placing.requeue_all(ctx)
    return ctx


def _adopt(ctx: Context, entry: JobEntry) -> None:
    """The live attempt of a stored job holds its slot again."""
    job = entry.job
    if job.state is JobState.QUEUED or not job.attempts:
        return
    attempt = job.attempts[-1]
    site = ctx.state.sites.get(attempt.site_id)
    if site is None or attempt.state in ENDED:
        return
    explanation = attempt.explanation
    site.attempts[attempt.key] = LiveAttempt(
        attempt=attempt,
        spec=job.spec,
        request_id=job.request_id,
        evict=tuple(ModelId(name) for name in explanation.evicted) if explanation is not None else (),
        exec_us=explanation.chosen.terms_us[_EXECUTION] if explanation is not None else attempt.predicted_us,
        lost_after_us=leases.lost_after_us(ctx, attempt.predicted_us),
    )
