"""Snapshot and restore: the core as one frozen value, and the core from what a store promised.

Decides what is primary: everything here goes in, indexes are built anew. Replay, what-if and failover rest on it, so a restored
machine answers the same events with the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import CopyKey, DesiredReplica
from atoll.model.demand import KeptDemand
from atoll.model.ids import (
    AdapterId,
    AttemptKey,
    ChangeSeq,
    EventSeq,
    FleetId,
    FormId,
    Generation,
    JobId,
    ModelId,
    PoolId,
    SiteId,
    Term,
)
from atoll.model.job import Job, Priority
from atoll.model.learned import Estimates
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Stopped
from atoll.model.replica import ReplicaState
from atoll.model.report import RateFacts, SiteHello
from atoll.model.residency import Pin, Push
from atoll.model.site import LinkSpec, PoolSpec, SiteConnection, SiteRecord
from orchestrator.core.claimed import Claimed
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.durable import EndedKey
from orchestrator.core.events import SessionRef
from orchestrator.core.health import Breaker, Struck
from orchestrator.core.moves import Bettered, Move
from orchestrator.core.outflow import OutflowSnapshot
from orchestrator.core.placement.policy import Identity
from orchestrator.core.promised import Promise
from orchestrator.core.queue import QueueSnapshot
from orchestrator.core.residency import ResidencySnapshot
from orchestrator.core.standing import Stand
from orchestrator.core.state import Flight, JobEntry, LiveAttempt, Loading, Node, Site, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """A job in memory; `waiting`: it is in the queue, avoiding these sites."""

    job: Job
    accept_seq: int
    not_before_us: int
    deferrals: int
    stopped: tuple[Stopped, ...]
    waiting: bool
    avoid: tuple[SiteId, ...]
    avoid_until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSnapshot:
    """A replica of a slot."""

    model_id: ModelId
    gang_size: int
    memory_bytes: int
    state: ReplicaState
    last_used_us: int
    adapters: tuple[AdapterId, ...]
    warm_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSnapshot:
    """A slot, by its place in its node."""

    ready: bool
    replicas: tuple[ReplicaSnapshot, ...]
    attempts: tuple[AttemptKey, ...]
    busy_until_us: int
    last_used_us: int
    loading: Loading | None
    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSnapshot:
    """A node, by its place in its pool."""

    host_free_bytes: int
    disk_free_bytes: int
    host_models: tuple[ModelId, ...]
    disk_models: tuple[ModelId, ...]
    disk_adapters: tuple[AdapterId, ...]
    copying: tuple[ModelId, ...]
    fetching: tuple[tuple[ModelId, int], ...]
    sources: tuple[tuple[ModelId, tuple[SiteId, ...]], ...]
    flights: tuple[tuple[ModelId, Flight], ...]
    pinned: tuple[ModelId, ...]
    host_tier: bool
    compiled: tuple[FormId, ...]
    shares_compiled: bool
    slots: tuple[SlotSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """A pool with the rates that placing reckons with: disk, host to device, origin; bytes per second; and how long replicas stay."""

    spec: PoolSpec
    stay_us: int
    residence_ms: int
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
    copies: int
    wanted: tuple[Wanted, ...]
    wanted_changed: tuple[CopyKey, ...]
    unwanted: tuple[DesiredReplica, ...]
    prefetch_from_us: int
    breakers: tuple[tuple[PoolId, Breaker], ...]
    struck: tuple[Struck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestSnapshot:
    """A class that rests, named by one of its jobs."""

    job_id: JobId
    wake_us: int
    pool: int
    patience: int
    stand: Stand


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSnapshot:
    """A block that is kept for a class of gangs, named by one of its jobs."""

    job_id: JobId
    claimed: Claimed


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
    adapters: tuple[AdapterSpec, ...]
    links: tuple[LinkSpec, ...]
    ended_keys: tuple[EndedKey, ...]
    ready: tuple[JobId, ...]  # one job of each class still to be scored
    resting: tuple[RestSnapshot, ...]
    claims: tuple[ClaimSnapshot, ...]
    timers: tuple[tuple[int, TimerKind, str], ...]
    queue: QueueSnapshot
    outflow: OutflowSnapshot
    arrivals: tuple[int, int]  # when the window closes, jobs held
    pins: tuple[Pin, ...]
    pushes: tuple[Push, ...]
    demand: KeptDemand
    residency: ResidencySnapshot
    promises: tuple[PromiseSnapshot, ...]  # of each kind
    estimates: Estimates = Estimates()
    last_place: tuple[SiteId, PoolId] | None = None
    policy: Identity | None = None
    failing: tuple[tuple[ModelId, tuple[tuple[SiteId, PoolId], ...]], ...] = ()
    bettered: tuple[tuple[tuple[SiteId, PoolId], Bettered], ...] = ()
    moves: tuple[tuple[JobId, Move], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseSnapshot:
    """Open promises of a kind of waits, and when the last was made."""

    priority: Priority
    gang: bool
    open: tuple[tuple[JobId, Promise], ...]
    last_us: int


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
        adapters=tuple(state.adapters.values()),
        links=tuple(state.links.values()),
        ended_keys=tuple(
            EndedKey(tenant=tenant, idempotency_key=key, job_id=known.job_id, payload_digest=known.payload_digest)
            for (tenant, key), known in state.ended_keys.items()
        ),
        ready=tuple(ctx.queue.classes[key].head[1] for key in ctx.queue.in_order()),
        resting=tuple(
            RestSnapshot(job_id=known.head[1], wake_us=known.wake_us, pool=known.pool, patience=known.patience, stand=known.stand)
            for known in ctx.queue.resting_in_order()
        ),
        claims=tuple(ClaimSnapshot(job_id=ctx.queue.classes[kept.key].head[1], claimed=claimed) for kept, claimed in state.claims.items()),
        timers=tuple(sorted(ctx.timers)),
        queue=ctx.queue.take(),
        outflow=ctx.outflow.take(),
        arrivals=(ctx.arrivals.closes_us, ctx.arrivals.held),
        pins=tuple(state.pins.values()),
        pushes=tuple(state.pushes.values()),
        demand=ctx.demand.take(),
        promises=tuple(
            PromiseSnapshot(priority=priority, gang=gang, open=tuple(kind.open.items()), last_us=kind.last_us)
            for (priority, gang), kind in ctx.promises.items()
        ),
        residency=ctx.residency.take(),
        estimates=ctx.book.take(),
        last_place=state.last_place,
        policy=state.policy,
        failing=tuple(state.failing.items()),
        bettered=tuple(state.bettered.items()),
        moves=tuple(state.moves.items()),
    )


def _take_job(ctx: Context, entry: JobEntry) -> JobSnapshot:
    key = ctx.queue.class_key(entry.job.job_id)
    return JobSnapshot(
        job=entry.job,
        accept_seq=entry.accept_seq,
        not_before_us=entry.not_before_us,
        deferrals=entry.deferrals,
        stopped=entry.stopped,
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
        pools.append(
            PoolSnapshot(
                spec=pool.spec,
                stay_us=pool.stay_us,
                residence_ms=pool.residence_ms,
                rates_bytes_per_s=(rates[0], rates[1], rates[2]),
                nodes=nodes,
            )
        )
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
        attempts=tuple(copy_live(live) for live in site.attempts.values()),
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
        copies=site.copies,
        wanted=tuple(site.wanted.values()),
        wanted_changed=tuple(site.wanted_changed),
        unwanted=tuple(site.unwanted.values()),
        prefetch_from_us=site.prefetch_from_us,
        breakers=tuple(site.breakers.items()),
        struck=site.struck,
    )


def copy_live(live: LiveAttempt) -> LiveAttempt:
    """A live attempt that changes of the other do not touch."""
    return LiveAttempt(
        attempt=live.attempt,
        spec=live.spec,
        request_id=live.request_id,
        evict=live.evict,
        exec_us=live.exec_us,
        lost_after_us=live.lost_after_us,
        charge_us=live.charge_us,
        given_up=live.given_up,
        advanced_us=live.advanced_us,
        adopted=live.adopted,
        gives_way_to=live.gives_way_to,
        factors_milli=live.factors_milli,
        start=live.start,
        ends_us=live.ends_us,
        phase=live.phase,
        phase_us=live.phase_us,
        on_stop=live.on_stop,
        stop_reason=live.stop_reason,
    )


def _take_node(node: Node) -> NodeSnapshot:
    return NodeSnapshot(
        host_free_bytes=node.host_free_bytes,
        disk_free_bytes=node.disk_free_bytes,
        host_models=tuple(sorted(node.host_models)),
        disk_models=tuple(sorted(node.disk_models)),
        disk_adapters=tuple(sorted(node.disk_adapters)),
        copying=tuple(sorted(node.copying)),
        fetching=tuple(sorted(node.fetching.items())),
        sources=tuple(sorted(node.sources.items())),
        flights=tuple(sorted(node.flights.items(), key=itemgetter(0))),
        pinned=node.pinned,
        host_tier=node.host_tier,
        compiled=tuple(sorted(node.compiled)),
        shares_compiled=node.shares_compiled,
        slots=tuple(
            SlotSnapshot(
                ready=slot.ready,
                replicas=tuple(
                    ReplicaSnapshot(
                        model_id=replica.model_id,
                        gang_size=replica.gang_size,
                        memory_bytes=replica.memory_bytes,
                        state=replica.state,
                        last_used_us=replica.last_used_us,
                        adapters=replica.adapters,
                        warm_us=replica.warm_us,
                    )
                    for replica in slot.replicas.values()
                ),
                attempts=tuple(slot.attempts),
                busy_until_us=slot.busy_until_us,
                last_used_us=slot.last_used_us,
                loading=slot.loading,
                fresh=slot.fresh,
            )
            for slot in node.slots
        ),
    )
