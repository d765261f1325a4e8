"""The site's brain: one event and the time go in, one AgentStep comes out. Dispatch only; handlers by noun are beside it.

Decides the order within a step: the event, work without orders, what slots do next, then what the orchestrator hears.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from agents.core import (
    adapters,
    assignments,
    attempts,
    measures,
    outbox,
    recovery,
    replicas,
    reports,
    residency,
    sessions,
    weights,
)
from agents.core import snapshot as snapshots
from agents.core.context import Context
from agents.core.events import (
    AdapterDeleted,
    AdapterFetched,
    AdapterFetchFailed,
    AgentEvent,
    AssignmentReceived,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    CodeChanged,
    FetchAdvanced,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    NodeMeasured,
    RatesMeasured,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SessionClosed,
    SessionOpened,
    SlotLost,
    SlotReady,
    TimerFired,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import AgentStep
from agents.core.snapshot import AgentSnapshot
from agents.core.state import Node, Slot, State
from atoll.model.gpu import GpuType
from atoll.model.ids import EventSeq, FleetId, GpuTypeId, NodeId, SiteId, SlotRef, Term
from atoll.model.report import AttemptEvent
from atoll.model.site import PoolSpec, SiteRuntime


class AgentMachine:
    """The state machine of one site. `fleet_id`, `term`, `outbox` and `next_event_seq` are what an earlier life left on disk.

    Memory of slots is what the pools say, else what `gpus` knows of their type, else unknown: then nothing is refused for want of it.
    """

    __slots__ = ("_ctx",)

    def __init__(
        self,
        *,
        site_id: SiteId,
        pools: tuple[PoolSpec, ...],
        runtime: SiteRuntime = SiteRuntime.TWIN,
        gpus: Mapping[GpuTypeId, GpuType] | None = None,
        fleet_id: FleetId = FleetId(""),
        term: Term = Term(0),
        outbox: Iterable[AttemptEvent] = (),
        next_event_seq: EventSeq = EventSeq(1),
    ) -> None:
        nodes = {node.node_id: node for pool in pools for node in _nodes(pool, gpus or {})}
        held = {event.seq: event for event in outbox}
        state = State(
            site_id=site_id,
            runtime=runtime,
            nodes=nodes,
            slots={slot.ref: slot for node in nodes.values() for slot in node.slots},
            fleet_id=fleet_id,
            term=term,
            outbox=held,
            ended={event.key: None for event in held.values()},
            next_event_seq=EventSeq(max(next_event_seq, max(held, default=0) + 1)),
        )
        self._ctx = Context(state)

    @property
    def state(self) -> State:
        """The state, for invariants and tests."""
        return self._ctx.state

    def handle(self, event: AgentEvent, now_us: int) -> AgentStep:
        """Let an event happen at `now_us` of the agent's fleet time. What does not fit changes nothing and is noticed."""
        ctx = self._ctx
        ctx.now_us = max(now_us, ctx.now_us)
        _dispatch(ctx, event)
        sessions.expire(ctx)
        nodes: dict[NodeId, None] = {}
        while ctx.touched:
            touched, ctx.touched = ctx.touched, {}
            for ref in touched:
                replicas.advance(ctx, ctx.state.slots[ref])
                nodes[ref.node_id] = None
        residency.advance(ctx, nodes)
        sessions.renew(ctx)
        outbox.flush(ctx)
        reports.flush(ctx)
        return ctx.take_step()

    def next_deadline(self) -> int | None:
        """When TimerFired is wanted, microseconds of the agent's fleet time; None: nothing is waited for."""
        state = self._ctx.state
        times = [sessions.expires_us(state), residency.due_us(state)]
        if state.connected:
            times.append(reports.due_us(state) if state.started else None)
            times.append(state.events_sent_us + outbox.resend_us(state) if state.outbox else None)
            times.append(state.renew_due_us if state.renew_due_us >= 0 else None)
        return min([at_us for at_us in times if at_us is not None], default=None)

    def snapshot(self) -> AgentSnapshot:
        """Everything, as a frozen value: `restore` of it goes on with equal steps."""
        return snapshots.take(self._ctx)


def restore(snapshot: AgentSnapshot) -> AgentMachine:
    """A machine that goes on where the snapshot was taken."""
    machine = AgentMachine.__new__(AgentMachine)
    machine._ctx = snapshots.from_snapshot(snapshot)
    return machine


def _nodes(pool: PoolSpec, gpus: Mapping[GpuTypeId, GpuType]) -> list[Node]:
    known = gpus.get(pool.gpu_type)
    memory = pool.gpu_memory_bytes or (known.memory_bytes if known is not None else 0)

    def slots(node_id: NodeId) -> list[Slot]:
        refs = (SlotRef(pool_id=pool.pool_id, node_id=node_id, index=index) for index in range(pool.gpus_per_node))
        return [Slot(ref=ref, memory_bytes=memory) for ref in refs]

    return [
        Node(
            pool_id=pool.pool_id,
            node_id=pool.node_id(index),
            slots=slots(pool.node_id(index)),
            host_free_bytes=pool.node.host_memory_bytes,
            disk_free_bytes=pool.node.disk_cache_bytes,
        )
        for index in range(pool.nodes)
    ]


def _dispatch(ctx: Context, event: AgentEvent) -> None:  # noqa: C901 - one case per event and nothing else
    match event:
        case AttemptAdvanced():
            attempts.advanced(ctx, event)
        case AttemptFinished():
            attempts.finished(ctx, event)
        case AttemptErrored():
            attempts.errored(ctx, event)
        case AttemptHalted():
            attempts.halted(ctx, event)
        case AssignmentReceived():
            assignments.received(ctx, event)
        case SessionOpened():
            sessions.opened(ctx, event)
        case SessionClosed():
            sessions.closed(ctx)
        case RuntimeStarted():
            recovery.started(ctx, event)
        case WeightsFetched():
            weights.fetched(ctx, event)
        case FetchFailed():
            weights.fetch_failed(ctx, event)
        case FetchAdvanced():
            weights.fetch_advanced(ctx, event)
        case FetchYielded():
            residency.fetch_yielded(ctx, event)
        case HostMemoryChanged():
            residency.host_changed(ctx, event)
        case WeightsDeleted():
            weights.deleted(ctx, event)
        case ReplicaLoaded():
            replicas.loaded(ctx, event)
        case ReplicaLoadFailed():
            replicas.load_failed(ctx, event)
        case ReplicaEvicted():
            replicas.evicted(ctx, event)
        case CodeChanged():
            measures.code_changed(ctx, event)
        case AdapterFetched():
            adapters.fetched(ctx, event)
        case AdapterFetchFailed():
            adapters.fetch_failed(ctx, event)
        case AdapterDeleted():
            adapters.deleted(ctx, event)
        case ReplicaAdapted():
            adapters.adapted(ctx, event)
        case ReplicaAdaptFailed():
            adapters.adapt_failed(ctx, event)
        case SlotLost():
            replicas.lost(ctx, event)
        case SlotReady():
            replicas.ready(ctx, event)
        case RatesMeasured():
            measures.rates_measured(ctx, event)
        case NodeMeasured():
            measures.measured(ctx, event)
        case TimerFired():
            pass
        case _:
            assert_never(event)
